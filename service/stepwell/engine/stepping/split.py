"""Bulk requests whose streams are stepped by several models: their columns are split, and the results are joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from stepwell.engine.stepping.outcomes import BulkOutcomes, StepOutcome
from stepwell.types import BatchOutput, BulkPrediction, BulkTimesteps, Prediction

_ItemT = TypeVar("_ItemT")


def rows_of(bulk: BulkTimesteps, indices: Sequence[int]) -> BulkTimesteps:
    """Return some rows of a bulk request."""
    rows, at = list(indices), np.asarray(indices, np.intp)
    return replace(
        bulk,
        keys=_items(bulk.keys, rows),
        names=_items(bulk.names, rows),
        inputs={name: array.take(at, axis=0) for name, array in bulk.inputs.items()},
        packed=_items(bulk.packed, rows),
        seqs=_items(bulk.seqs, rows),
        afters=_items(bulk.afters, rows),
        sources=None if bulk.sources is None else bulk.sources.select(rows),
    )


class JoinedOutcomes:
    """Collects the results of the parts of a bulk request, and calls back once when all are there."""

    def __init__(self, parts: Sequence[Sequence[int]], done: Callable[[BulkOutcomes], None]) -> None:
        """Wait for the results of the parts.

        Args:
            parts: The rows of each part, by their index in the request.
            done: Called with the results of all rows, in the order of the request.
        """
        self._parts = parts
        self._done = done
        self._outcomes: dict[int, BulkOutcomes] = {}

    def receiver(self, part: int) -> Callable[[BulkOutcomes], None]:
        """Return the function to call with the results of a part."""
        return partial(self._receive, part)

    def _receive(self, part: int, outcomes: BulkOutcomes) -> None:
        self._outcomes[part] = outcomes
        if len(self._outcomes) == len(self._parts):
            self._done(self._joined())

    def _joined(self) -> BulkOutcomes:
        n_rows = sum(map(len, self._parts))
        columns = [one for one in self._outcomes.values() if isinstance(one, BulkPrediction)]
        if len(columns) == len(self._parts):
            return self._joined_columns(n_rows)
        results: list[StepOutcome] = [None] * n_rows  # type: ignore[list-item]  # every row is in a part
        for part, rows in enumerate(self._parts):
            outcomes = self._outcomes[part]
            if isinstance(outcomes, BulkPrediction):
                output, shows_version = outcomes.batch, outcomes.shows_version
                outcomes = [
                    Prediction(output, i, version=version, shows_version=shows_version)
                    for i, version in enumerate(outcomes.versions)
                ]
            for row, outcome in zip(rows, outcomes, strict=True):
                results[row] = outcome
        return results

    def _joined_columns(self, n_rows: int) -> BulkPrediction:
        """Return the results of parts that were all applied as columns."""
        outcomes = [self._outcomes[part] for part in range(len(self._parts))]
        columns = [outcome for outcome in outcomes if isinstance(outcome, BulkPrediction)]
        batches = [outcome.batch for outcome in columns]
        order = np.argsort(np.concatenate([np.asarray(rows, np.intp) for rows in self._parts]))
        steps = [*chain.from_iterable(batch.steps for batch in batches)]
        state_ids = [*chain.from_iterable(batch.state_ids for batch in batches)]
        arrays = {
            name: np.concatenate([batch.arrays[name] for batch in batches]).take(order, axis=0)
            for name in batches[0].arrays
        }
        at = order.tolist()
        assert len(at) == n_rows
        joined = BatchOutput(arrays, _items(steps, at), _items(state_ids, at))
        versions = [*chain.from_iterable(outcome.versions for outcome in columns)]
        return BulkPrediction(joined, _items(versions, at), columns[0].shows_version)


def _items(items: Sequence[_ItemT], indices: Sequence[int]) -> list[_ItemT]:
    return [*map(items.__getitem__, indices)]
