"""`LiveModel`: a trained model on an engine in this process, with the predictions of its streams as a plot."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, Self

import numpy as np

from stepwell.addons.charts import line_chart, lines_of
from stepwell_client import Client, Model, StepResult
from stepwell_client.protocol.inputs import Inputs
from stepwell_client.tables import Columns
from stepwell_client.wire.texts import counted
from stepwell_export.exporter import Exported, export_source
from stepwell_export.runtime.errors import MissingExtraError
from stepwell_export.runtime.manifest import NAME

_KEPT_STEPS = 512
_SHOWN_STREAMS = 4
_UPDATE_S = 0.2
_STREAM = "live"


def run(source: Any, *, name: str | None = None, **options: Any) -> LiveModel:
    """Export a trained model, verify it, and serve it in this process, for a notebook or a first try.

    Args:
        source: As for `stepwell.export`: a Keras model, a `StepSpec`, a `Pipeline`, or the path of a trained model.
        name: The model's name; None: that of the file or the Keras model, else `model`.
        options: Further arguments of `stepwell.export`, such as `accept_weak`, `feedback` and `labels`.

    Raises:
        StepwellError: As for `stepwell.export` and `stepwell.Client`.
    """
    return LiveModel(source, name or _name_of(source), options)


class LiveModel:
    """An exported model with an engine in this process; a notebook shows the newest predictions of its streams.

    The engine ends with `close`, at the end of a `with` block, with the program, and when nothing refers to this object
    any longer, as after the cell of a notebook was run again; the exported file is then deleted.

    Attributes:
        exported: The model file, and the report of its verification.
        client: A client of the engine, with every other operation.
        model: The model, as `client.model(name)` returns it.
    """

    def __init__(self, source: Any, name: str, options: Mapping[str, Any]) -> None:
        """Use `run`."""
        folder = tempfile.TemporaryDirectory(prefix="stepwell-run-")
        target = Path(folder.name) / f"{name}.onnx"
        self.exported: Exported = export_source(source, target, **options)
        # the file was made here, so trying it in another process first would only take time
        self.client = Client(":memory:", models=folder.name, settings={"model_probe_s": 0})
        self.model: Model = self.client.model(name)
        self._outputs = self.model.describe().outputs
        self._recent: dict[str, deque[StepResult]] = {}
        self._display: Any = None
        self._updated_at = 0.0
        self._end = weakref.finalize(self, _close, self.client, folder)

    def step(self, x: Inputs, stream: str = _STREAM) -> StepResult:
        """Step a stream by one timestep; as `Stream.step` of the client.

        Raises:
            ClientError: As for `Stream.step`.
        """
        result = self.model.stream(stream).step(x)
        recent = self._recent.pop(stream, deque(maxlen=_KEPT_STEPS))
        if recent and result.step <= recent[-1].step:
            recent.clear()  # it was reset
        recent.append(result)
        self._recent[stream] = recent  # the newest stream at the end
        self._update()
        return result

    def replay(self, rows: Any, stream: str = _STREAM, *, columns: Columns | None = None) -> list[StepResult]:
        """Step a stream through recorded timesteps; as `Stream.replay` of the client.

        Raises:
            ClientError: As for `Stream.replay`.
        """
        return [self.step(x, stream) for x in self.model.stream(stream).timesteps_of(rows, columns=columns)]

    def show(self) -> None:
        """Show the plot in a notebook now, and update it while streams are stepped.

        Raises:
            MissingExtraError: IPython, which notebooks have, is not installed.
        """
        try:
            display: Callable[..., Any] = importlib.import_module("IPython.display").display
        except ImportError as exc:
            raise MissingExtraError(
                "`show` needs IPython, which is not installed.", fix="Call it in a notebook, or use `to_html`."
            ) from exc
        self._display = display(self, display_id=True)

    def to_html(self) -> str:
        """Return the verification in a sentence, and a chart per output of the newest streams, as HTML."""
        parity = self.exported.report.parity
        difference = f"differs by at most {parity.max_abs:.1e} from {parity.against} in {parity.steps} timesteps"
        parts = [f"<p><b>{escape(self.model.name)}</b>: {escape(difference)}; served in this process.</p>"]
        for stream in list(self._recent)[: -_SHOWN_STREAMS - 1 : -1]:
            results = self._recent[stream]
            for output in self._outputs:
                values = np.array([np.ravel(result.outputs[output.name]) for result in results], np.float64)
                parts.append(line_chart(f"{output.name} of {stream}", lines_of(values, output.labels), results[0].step))
        if not self._recent:
            parts.append("<p>No timestep yet: <code>step(x)</code>.</p>")
        return "<div>" + "".join(parts) + "</div>"

    def close(self) -> None:
        """End the engine and delete the file; calls after the first have no effect."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LiveModel {self.model.name}: {counted(len(self._recent), 'stream')}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.to_html()

    def _update(self) -> None:
        """Update the plot that `show` has shown, a few times a second."""
        if self._display is not None and time.monotonic() - self._updated_at >= _UPDATE_S:
            self._display.update(self)
            self._updated_at = time.monotonic()


def _close(client: Client, folder: tempfile.TemporaryDirectory[str]) -> None:
    client.close()
    folder.cleanup()


def _name_of(source: Any) -> str:
    path = Path(source) if isinstance(source, str | os.PathLike) and ":" not in str(source) else None
    found = path.stem if path else getattr(source, "name", None)
    return found if isinstance(found, str) and NAME.fullmatch(found) else "model"
