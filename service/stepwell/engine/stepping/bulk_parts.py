"""Bulk requests that become several batches: their columns are cut, and the results are joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from stepwell.engine.stepping.outcomes import BulkOutcomes, StepOutcome
from stepwell.errors import ServiceError
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

    def __init__(self, n_rows: int, faults: Mapping[int, ServiceError], done: Callable[[BulkOutcomes], None]) -> None:
        """Wait for the results of all rows but those that have one already.

        Args:
            n_rows: Rows of the request.
            faults: The errors of rows that are not stepped.
            done: Called with the results of all rows, in the order of the request.
        """
        self._parts: list[tuple[Sequence[int], BulkOutcomes]] = [([i], [error]) for i, error in faults.items()]
        self._n_rows = n_rows
        self._n_missing = n_rows - len(faults)
        self._done = done

    def receive(self, rows: Sequence[int], outcomes: BulkOutcomes) -> None:
        """Take the results of some rows."""
        self._parts.append((rows, outcomes))
        self._n_missing -= len(rows)
        if not self._n_missing:
            self._done(self._joined())

    def receive_one(self, row: int, outcome: StepOutcome) -> None:
        """Take the result of one row."""
        self.receive((row,), [outcome])

    def _joined(self) -> BulkOutcomes:
        columns = [(rows, one) for rows, one in self._parts if isinstance(one, BulkPrediction)]
        if len(columns) == len(self._parts):
            return self._joined_columns(columns)
        results: list[StepOutcome] = [None] * self._n_rows  # type: ignore[list-item]  # every row is in a part
        for rows, outcomes in self._parts:
            each = _predictions(outcomes) if isinstance(outcomes, BulkPrediction) else outcomes
            for row, outcome in zip(rows, each, strict=True):
                results[row] = outcome
        return results

    @staticmethod
    def _joined_columns(parts: Sequence[tuple[Sequence[int], BulkPrediction]]) -> BulkPrediction:
        """Return the results of parts that were all applied as columns."""
        columns = [outcome for _, outcome in parts]
        batches = [outcome.batch for outcome in columns]
        order = np.argsort(np.concatenate([np.asarray(rows, np.intp) for rows, _ in parts]))
        steps = [*chain.from_iterable(batch.steps for batch in batches)]
        state_ids = [*chain.from_iterable(batch.state_ids for batch in batches)]
        arrays = {
            name: np.concatenate([batch.arrays[name] for batch in batches]).take(order, axis=0)
            for name in batches[0].arrays
        }
        at = order.tolist()
        joined = BatchOutput(arrays, _items(steps, at), _items(state_ids, at))
        versions = [*chain.from_iterable(outcome.versions for outcome in columns)]
        return BulkPrediction(joined, _items(versions, at), columns[0].shows_version)


def _predictions(found: BulkPrediction) -> list[StepOutcome]:
    """Return the result of each row."""
    output, shows_version = found.batch, found.shows_version
    return [
        Prediction(output, i, version=version, shows_version=shows_version) for i, version in enumerate(found.versions)
    ]


def _items(items: Sequence[_ItemT], indices: Sequence[int]) -> list[_ItemT]:
    return [*map(items.__getitem__, indices)]
