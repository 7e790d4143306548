"""`BulkResults`: collects the results of a bulk request, of which parts become several batches or are stepped alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType

import numpy as np

from stepwell.errors import ServiceError
from stepwell.types import BatchOutput, BulkPrediction, Prediction

StepOutcome = Prediction | ServiceError
BulkOutcomes = BulkPrediction | list[StepOutcome]
"""The results of a bulk request: as columns if all rows were applied in columns, else one by one."""


class BulkResults:
    """Collects results, and calls back once when all are there."""

    __slots__ = ("_columns", "_done", "_n_missing", "_results")

    def __init__(
        self,
        n_rows: int,
        done: Callable[[BulkOutcomes], None],
        faults: Mapping[int, ServiceError] = MappingProxyType({}),
    ) -> None:
        """Wait for the results of all rows but those that have one; if all have one, `done` is called at once.

        Args:
            n_rows: Rows of the request.
            done: Called with the results of all rows, in the order of the request.
            faults: The errors of rows that are not stepped, by index.
        """
        self._results: list[StepOutcome] = [None] * n_rows  # type: ignore[list-item]  # until the results are there
        for i, error in faults.items():
            self._results[i] = error
        self._columns: list[tuple[Sequence[int], BulkPrediction]] = []
        self._n_missing = n_rows - len(faults)
        self._done = done
        if not self._n_missing:
            done(self._results)

    def receive(self, i: int, result: StepOutcome) -> None:
        """Take the result of row `i`."""
        self._results[i] = result
        self._count(1)

    def receive_part(self, rows: Sequence[int], results: BulkOutcomes) -> None:
        """Take the results of some rows, at least one."""
        if isinstance(results, BulkPrediction):
            self._columns.append((rows, results))
        else:
            for i, result in zip(rows, results, strict=True):
                self._results[i] = result
        self._count(len(rows))

    def _count(self, n: int) -> None:
        self._n_missing -= n
        if self._n_missing:
            return
        if self._columns and sum([len(rows) for rows, _ in self._columns]) == len(self._results):
            self._done(_joined(self._columns))
            return
        for rows, found in self._columns:
            for j, i in enumerate(rows):
                self._results[i] = Prediction(
                    found.batch, j, version=found.versions[j], shows_version=found.shows_version
                )
        self._done(self._results)


def _joined(parts: Sequence[tuple[Sequence[int], BulkPrediction]]) -> BulkPrediction:
    """Return the results of parts that were all applied as columns."""
    columns = [outcome for _, outcome in parts]
    batches = [outcome.batch for outcome in columns]
    order = np.argsort(np.concatenate([np.asarray(rows, np.intp) for rows, _ in parts]))
    arrays = {
        name: np.concatenate([batch.arrays[name] for batch in batches]).take(order, axis=0)
        for name in batches[0].arrays
    }
    steps, state_ids, versions = (
        [*chain.from_iterable(column)]
        for column in (
            [batch.steps for batch in batches],
            [batch.state_ids for batch in batches],
            [outcome.versions for outcome in columns],
        )
    )
    at = order.tolist()
    output = BatchOutput(arrays, [steps[i] for i in at], [state_ids[i] for i in at])
    return BulkPrediction(output, [versions[i] for i in at], columns[0].shows_version)
