"""Step graphs in Spark: predictions of a live stream or of a table, and the states behind it.

In Structured Streaming the hidden state is keyed state of Spark, so it is in Spark's checkpoints: each row is a
timestep of the stream that it names, and is predicted once. For a table, each stream's rows are run in chunks.

Needs the extra `spark`, Java, and this package on the executors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stepwell.addons.offline.graph import OfflineModel
from stepwell.addons.offline.savepoints import ComputedState, write_savepoint
from stepwell_export.runtime.errors import MissingExtraError

_SPARK_TYPES: Final = {
    "float16": "float", "float32": "float", "float64": "double", "int8": "tinyint", "int16": "smallint",
    "int32": "int", "int64": "bigint", "uint8": "smallint", "uint16": "int", "uint32": "bigint", "bool": "boolean",
}  # fmt: skip
_STATES: Final = "stream string, step bigint, state binary"

try:
    import pandas as pd
    from pyspark.sql.streaming import StatefulProcessor
except ImportError as exc:
    raise MissingExtraError(
        "pyspark is not installed.", fix="Install it: pip install 'stepwell[spark]'; it also needs Java 17 or newer."
    ) from exc


def predictions(
    table: Any, model: str | Path, *, stream: str, time: str, inputs: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """Return the prediction of each row.

    Args:
        table: A Spark DataFrame, streaming or not. Streaming, the rows of a micro-batch are sorted by time; a row that
            comes in a later batch than a newer one of its stream is still the stream's next timestep.
        model: The model file.
        stream: The column of the stream ids.
        time: The column by which the rows of each stream are sorted.
        inputs: The columns of inputs by name; others are found by labels, or as `NAME[0]`, `NAME[1]`.

    Returns:
        A DataFrame with `stream`, `step`, the time, and for each output an array of its numbers, in C order.

    Raises:
        ColumnsError: A column is missing.
        StepwellError: The file is no step graph.
    """
    offline = OfflineModel(model, table.columns, stream, time, inputs or {})
    times = dict(table.dtypes)[time]
    outputs = ", ".join(f"`{each.name}` array<{_SPARK_TYPES[each.dtype]}>" for each in offline.outputs)
    schema = f"stream string, step bigint, `{time}` {times}, {outputs}"
    grouped = table.groupBy(stream)
    if table.isStreaming:
        return grouped.transformWithStateInPandas(
            _SteppedStreams(offline), outputStructType=schema, outputMode="Append", timeMode="None"
        )

    def run(frame: Any) -> Any:  # Spark counts the parameters of a bound method with `self`
        return offline.predictions(frame)

    return grouped.applyInPandas(run, schema)


def states(
    table: Any, model: str | Path, *, stream: str, time: str, inputs: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """Return the state of each stream behind its rows, of a table that is not streaming; otherwise as `predictions`.

    Returns:
        A DataFrame with `stream`, `step`, the number of its rows, and `state`, packed; for `save_states`.
    """
    offline = OfflineModel(model, table.columns, stream, time, inputs or {})

    def run(frame: Any) -> Any:  # as in `predictions`
        return offline.state_after(frame)

    return table.groupBy(stream).applyInPandas(run, _STATES)


def save_states(computed: Any, path: str | Path, model: str | Path, *, name: str | None = None) -> int:
    """Write what `states` returns as a savepoint, and return the number of states; as `write_savepoint`."""
    rows = (ComputedState(row["stream"], row["step"], bytes(row["state"])) for row in computed.toLocalIterator())
    return write_savepoint(Path(path), Path(model), rows, name)


class _SteppedStreams(StatefulProcessor):
    """Keeps each stream's step and state as keyed state of Spark."""

    def __init__(self, offline: OfflineModel) -> None:
        self._offline = offline
        self._stored: Any = None

    def init(self, handle: Any) -> None:
        self._stored = handle.getValueState("stepwell", "step bigint, state binary")

    def handleInputRows(self, key: Any, rows: Iterator[Any], timerValues: Any) -> Iterator[Any]:  # noqa: N802, N803
        del key, timerValues
        offline = self._offline
        frame = offline.sorted(pd.concat(list(rows)))
        stored = self._stored.get()
        step, state = (0, None) if stored is None else (stored[0], bytes(stored[1]))
        answered, state = offline.advance(offline.inputs_of(frame), state)
        self._stored.update((step + len(frame), state))
        yield offline.answers(frame, answered, step)

    def close(self) -> None:
        """Nothing is open."""
