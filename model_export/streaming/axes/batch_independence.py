"""Whether a graph that was made for one row runs several together as it runs each alone."""

from __future__ import annotations

import numpy as np

from model_export.runtime.batch_independence import nearly_equal
from model_export.streaming.axes.inputs import SequenceInputs
from model_export.streaming.axes.runs import TensorRuns
from model_export.streaming.normal_form.load import Declared


def is_for_one_row(inputs: SequenceInputs, declared: Declared) -> bool:
    """Whether a graph declares one row, and runs several only because none of its nodes fails."""
    rows = {declared[one.name][one.batch] for one in inputs.external if one.batch is not None}
    return inputs.only_rows is None and rows == {1}


def rows_are_independent(runs: TensorRuns, inputs: SequenceInputs) -> bool:
    """Whether two rows run together equal each alone."""
    loaded = runs.load(inputs, inputs.lengths[0])
    feeds = inputs.feeds(2, inputs.lengths[0], 0)
    places = {one.name: one.batch for one in inputs.inputs}
    both = loaded.run(feeds)
    for row in range(2):
        alone = loaded.run(
            {name: x if (at := places[name]) is None else np.take(x, [row], at) for name, x in feeds.items()}
        )
        for name in (output.name for output in runs.graph.graph.output):
            grown = [axis for axis, (a, b) in enumerate(zip(both[name].shape, alone[name].shape, strict=True)) if a > b]
            one_axis = len(grown) == 1 and (both[name].shape[grown[0]], alone[name].shape[grown[0]]) == (2, 1)
            if one_axis and not nearly_equal(np.take(both[name], [row], grown[0]), alone[name]):
                return False
    return True
