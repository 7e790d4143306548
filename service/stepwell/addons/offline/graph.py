"""`OfflineModel`: a step graph in the processes of another engine, fed from the columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell.addons.recorded.values import cast, integers, numbers
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec
from stepwell_export.runtime.step_model import StepModel

_CHUNK: Final = 256
"""Timesteps in one run."""


class OfflineModel:
    """A step graph, sent to other processes as its bytes and loaded there once.

    Attributes:
        stream: The column of the stream ids.
        time: The column by which the rows of each stream are sorted.
    """

    def __init__(
        self, model: str | Path, columns: Sequence[str], stream: str, time: str, inputs: Mapping[str, Sequence[str]]
    ) -> None:
        """Load a step graph, and find the columns of its inputs.

        Args:
            model: The file.
            columns: The columns of the table.
            stream: As the attribute.
            time: As the attribute.
            inputs: The columns of inputs by name; others are found by labels, or as `NAME[0]`, `NAME[1]`.

        Raises:
            ColumnsError: A column is missing.
            StepwellError: The file is no step graph.
        """
        self._content = Path(model).read_bytes()
        self.stream = stream
        self.time = time
        self._columns = ColumnChoice(stream, time, inputs).input_columns(self.manifest.inputs, columns, "The table")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "graph"}

    @cached_property
    def graph(self) -> StepModel:
        """The loaded graph."""
        return StepModel(self._content)

    @property
    def manifest(self) -> Manifest:
        """The graph's manifest."""
        return self.graph.manifest

    @property
    def outputs(self) -> list[OutputSpec]:
        """The outputs that a prediction has."""
        return self.manifest.answered

    def sorted(self, frame: Any) -> Any:
        """Return the rows of one stream, a pandas DataFrame, in the order of their times."""
        return frame.sort_values(self.time, kind="stable")

    def inputs_of(self, frame: Any) -> dict[str, Array]:
        """Return the inputs in a pandas DataFrame's rows, `(T, *row)` by name.

        Raises:
            RecordedDataError: A value is missing, or does not fit.
        """
        found = {}
        for spec in self.manifest.inputs:
            read = integers if np.dtype(spec.dtype).kind in "iu" else numbers
            names = self._columns[spec.name]
            columns = [read(frame[name].to_numpy(), f"column {name!r}", 0) for name in names]
            found[spec.name] = cast(np.stack(columns, axis=1), spec, names, "the table", 0)
        return found

    def advance(self, inputs: Mapping[str, Array], state: bytes | None) -> tuple[dict[str, Array], bytes]:
        """Run consecutive timesteps of one stream.

        Args:
            inputs: `(T, *row)` by name, at least one timestep.
            state: The state before them, packed; None: the initial one.

        Returns:
            Predictions `(T, *row)` by output, and the state behind them, packed.
        """
        graph = self.graph
        packed = np.frombuffer(graph.initial_state if state is None else state, np.uint8)[None]
        states, parts = graph.unpack(packed), []
        length = len(next(iter(inputs.values())))
        for start in range(0, length, _CHUNK):
            chunk = {name: array[None, start : start + _CHUNK] for name, array in inputs.items()}
            outputs, states = graph.chunk(chunk, states)
            parts.append(outputs)
        joined = {each.name: np.concatenate([part[each.name][0] for part in parts]) for each in self.outputs}
        return joined, graph.pack(states, rows=1)[0].tobytes()

    def answers(self, rows: Any, answered: Mapping[str, Array], step: int) -> Any:
        """Return a DataFrame with the predictions of a stream's rows: `stream`, `step`, the time, and the outputs.

        Args:
            rows: The rows, a pandas DataFrame.
            answered: Their predictions, `(T, *row)` by output.
            step: The stream's step before them.
        """
        import pandas as pd

        flat = {name: list(np.reshape(array, (len(rows), -1))) for name, array in answered.items()}
        frame = {
            "stream": rows[self.stream].astype(str).to_numpy(),
            "step": np.arange(step + 1, step + len(rows) + 1),
            self.time: rows[self.time].to_numpy(),
        }
        return pd.DataFrame({**frame, **flat})

    def predictions(self, frame: Any) -> Any:
        """Return what `answers` does, for all rows of a stream in any order."""
        rows = self.sorted(frame)
        answered, _ = self.advance(self.inputs_of(rows), None)
        return self.answers(rows, answered, 0)

    def state_after(self, frame: Any) -> Any:
        """Return a DataFrame of one row, `stream`, `step` and `state`, for all rows of a stream in any order."""
        import pandas as pd

        rows = self.sorted(frame)
        _, state = self.advance(self.inputs_of(rows), None)
        return pd.DataFrame({"stream": [str(rows[self.stream].iloc[0])], "step": [len(rows)], "state": [state]})
