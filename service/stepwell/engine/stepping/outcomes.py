"""`BulkResults`: collects the results of a bulk request, of which parts become several batches or are stepped alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from stepwell.errors import ServiceError
from stepwell.types import BulkParts, BulkPrediction, Prediction

StepOutcome = Prediction | ServiceError
BulkOutcomes = BulkPrediction | BulkParts
"""The results of a bulk request: as columns if all rows were applied in one batch, else in parts."""


class BulkResults:
    """Collects results, and calls back once when all are there."""

    __slots__ = ("_done", "_found", "_n_missing")

    def __init__(
        self,
        n_rows: int,
        done: Callable[[BulkParts], None],
        faults: Mapping[int, ServiceError] = MappingProxyType({}),
    ) -> None:
        """Wait for the results of all rows but those that have one; if all have one, `done` is called at once.

        Args:
            n_rows: Rows of the request.
            done: Called with the results of all rows.
            faults: The errors of rows that are not stepped, by index.
        """
        self._found = BulkParts(n_rows, [], {**faults})
        self._n_missing = n_rows - len(faults)
        self._done = done
        if not self._n_missing:
            done(self._found)

    def receive(self, i: int, result: StepOutcome) -> None:
        """Take the result of row `i`."""
        self._found.others[i] = result
        self._count(1)

    def receive_columns(self, rows: Sequence[int], found: BulkPrediction, at: Sequence[int]) -> None:
        """Take the results of some rows, at least one: predictions of these indices."""
        self._found.columns.append((rows, found, at))
        self._count(len(rows))

    def receive_part(self, rows: Sequence[int], results: BulkOutcomes) -> None:
        """Take the results of a part of the request, with at least one row."""
        if isinstance(results, BulkPrediction):
            self.receive_columns(rows, results, range(len(rows)))
            return
        self._found.columns += [([rows[i] for i in part], found, at) for part, found, at in results.columns]
        self._found.others |= {rows[i]: result for i, result in results.others.items()}
        self._count(len(rows))

    def _count(self, n: int) -> None:
        self._n_missing -= n
        if not self._n_missing:
            self._done(self._found)
