"""Whether the rows of a sequence graph depend on each other, as its operators have it."""

from __future__ import annotations

from stepwell_export.streaming.axes.inputs import SequenceInputs
from stepwell_export.streaming.axes.runs import TensorRuns
from stepwell_export.streaming.normal_form.load import Declared
from stepwell_export.structure.rows import RowsVerdict, read_rows


def is_for_one_row(inputs: SequenceInputs, declared: Declared) -> bool:
    """Whether a graph declares one row, and runs several only because none of its nodes fails."""
    rows = {declared[layout.name][layout.batch] for layout in inputs.external if layout.batch is not None}
    return inputs.only_rows is None and rows == {1}


def rows_of_sequence(runs: TensorRuns, inputs: SequenceInputs) -> RowsVerdict:
    """Return whether its rows depend on each other, over a sequence of a length that it is run with."""
    steps = inputs.lengths[0]
    given = {layout.name: (_row(layout.shape(1, steps), layout.batch), layout.batch) for layout in inputs.inputs}
    graph = inputs.with_length(runs.graph, steps)
    return read_rows(graph, given, dict.fromkeys((output.name for output in graph.graph.output), None)).verdict


def _row(shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis != batch)
