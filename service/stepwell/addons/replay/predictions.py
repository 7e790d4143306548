"""`ReplayPredictions`: the predictions of a replay as lines of a CSV file, and the newest ones for a picture."""

from __future__ import annotations

import contextlib
import csv
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from stepwell.addons.charts import line_chart, lines_of, stacked
from stepwell_client.input_columns import prediction_columns
from stepwell_client.protocol.decoding import TensorInfo
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array

_KEPT_STEPS: Final = 100_000  # of a stream, for a picture


class ReplayError(StepwellError):
    """A stream cannot be continued with a recording, a row of it was rejected, or a file cannot be written."""

    code = "replay_failed"


class ReplayPredictions:
    """Writes predictions as they arrive, those of each stream in their order."""

    def __init__(
        self, streams: Sequence[str], outputs: Sequence[TensorInfo], lines: Any = None, *, kept_streams: int = 0
    ) -> None:
        """Create it.

        Args:
            streams: The streams' ids, by their codes.
            outputs: The model's outputs.
            lines: Writes the rows of a CSV file, and has written its header; None: there is no file.
            kept_streams: The predictions of so many streams are kept.
        """
        self._streams, self._outputs, self._lines = streams, outputs, lines
        self._steps = [0] * len(streams)
        self._kept = {
            code: deque[dict[str, Array]](maxlen=_KEPT_STEPS) for code in range(min(kept_streams, len(streams)))
        }

    def write(
        self, positions: Array, codes: Array, last_steps: Array, unknown: Array, outputs: Mapping[str, Array]
    ) -> None:
        """Implement `PredictionSink`; all are known."""
        del unknown
        length = positions.shape[1]
        # as text: the shortest that is read as the same number of the output's dtype
        texts = [outputs[each.name].reshape(*positions.shape, -1).astype(str) for each in self._outputs]
        for i, code in enumerate(codes.tolist()):
            first_step = int(last_steps[i]) - length + 1
            self._steps[code] = int(last_steps[i])
            if code in self._kept:
                self._kept[code].extend({name: array[i, n] for name, array in outputs.items()} for n in range(length))
            if self._lines is None:
                continue
            for n, position in enumerate(positions[i].tolist()):
                numbers = chain(*(text[i, n] for text in texts))
                self._lines.writerow([position + 1, self._streams[code], first_step + n, *numbers])

    def picture(self) -> str:
        """Return the kept predictions as an SVG."""
        charts = []
        for code, kept in self._kept.items():
            for output in self._outputs if kept else ():
                values = np.array([np.ravel(each[output.name]) for each in kept], np.float64)
                first = self._steps[code] - len(values) + 1
                title = f"{output.name} of {self._streams[code]}"
                charts.append(line_chart(title, lines_of(values, output.labels), first))
        return stacked(charts)


@contextlib.contextmanager
def csv_lines(path: Path | None, outputs: Sequence[TensorInfo]) -> Iterator[Any]:
    """Yield a writer of CSV that has written the header of predictions; without a path None.

    Raises:
        ReplayError: The file cannot be written.
    """
    if path is None:
        yield None
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            lines = csv.writer(out, lineterminator="\n")
            lines.writerow(["row", "stream", "step", *chain(*prediction_columns(outputs))])
            yield lines
    except OSError as exc:
        raise ReplayError(f"{path} cannot be written: {exc.strerror}.", fix="Check the path.") from exc
