"""Step graphs in Ray Data: predictions of a table of recorded data, and the states behind it.

Needs the extra `ray`, and this package on the workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwell.addons.offline.graph import OfflineModel
from stepwell.addons.offline.savepoints import ComputedState, write_savepoint


def predictions(
    dataset: Any, model: str | Path, *, stream: str, time: str, inputs: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """Return the prediction of each row.

    Args:
        dataset: A Ray dataset.
        model: The model file.
        stream: The column of the stream ids.
        time: The column by which the rows of each stream are sorted.
        inputs: The columns of inputs by name; others are found by labels, or as `NAME[0]`, `NAME[1]`.

    Returns:
        A dataset with `stream`, `step`, the time, and for each output an array of its numbers, in C order.

    Raises:
        ColumnsError: A column is missing.
        StepwellError: The file is no step graph.
    """
    offline = OfflineModel(model, dataset.columns(), stream, time, inputs or {})
    return dataset.groupby(stream).map_groups(offline.predictions, batch_format="pandas")


def states(
    dataset: Any, model: str | Path, *, stream: str, time: str, inputs: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """Return the state of each stream behind its rows; arguments and errors as for `predictions`.

    Returns:
        A dataset with `stream`, `step`, the number of its rows, and `state`, packed; for `save_states`.
    """
    offline = OfflineModel(model, dataset.columns(), stream, time, inputs or {})
    return dataset.groupby(stream).map_groups(offline.state_after, batch_format="pandas")


def save_states(computed: Any, path: str | Path, model: str | Path, *, name: str | None = None) -> int:
    """Write what `states` returns as a savepoint, and return the number of states; as `write_savepoint`."""
    rows = (ComputedState(row["stream"], row["step"], bytes(row["state"])) for row in computed.iter_rows())
    return write_savepoint(Path(path), Path(model), rows, name)
