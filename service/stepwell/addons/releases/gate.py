"""`Gates`: aborts the trials whose gate is broken, by what all workers have counted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stepwell.addons.releases.counters import OutputCounts, TrialCounts, read_counts
from stepwell.addons.releases.document import Gate
from stepwell.addons.releases.forecast_errors import figures
from stepwell.store.transport.retry import deadline

if TYPE_CHECKING:
    from stepwell.addons.releases.lookup import Releases
    from stepwell.addons.releases.service import ReleaseService
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)


class Gates:
    """Judges the running trials; every worker does, and a broken limit ends a trial once."""

    def __init__(self, store: StateStore, releases: Releases, service: ReleaseService) -> None:
        """Create it.

        Args:
            store: Has the counts.
            releases: The release documents of this worker.
            service: Ends trials.
        """
        self._store = store
        self._releases = releases
        self._service = service
        self._waiting: dict[str, bool] = {}

    def waiting(self) -> dict[tuple[str, ...], float]:
        """Return by model whether its gate is not judged yet, 1 or 0, for the running trials that have a gate."""
        return {(model,): float(is_waiting) for model, is_waiting in self._waiting.items()}

    async def judge(self) -> None:
        """Judge every running trial that has a gate.

        Raises:
            ServiceError: An error of the store.
        """
        waiting: dict[str, bool] = {}
        for model in self._releases.models():
            document = self._releases.current(model)
            trial = None if document is None else document.running
            if trial is None or trial.gate is None:
                continue
            counts = await read_counts(self._store, model, trial.revision, deadline=deadline())
            waiting[model] = counts.steps < trial.gate.min_compared
            why = broken_limit(trial.gate, counts)
            if why is not None and await self._service.abort_trial(model, trial.revision, why):
                _log.warning("The release of model %s, candidate %d, was aborted: %s", model, trial.new.number, why)
        self._waiting = waiting


def broken_limit(gate: Gate, counts: TrialCounts) -> str | None:
    """Return the first limit of a gate that is broken, as a sentence; None: none is, or too little was compared."""
    if counts.steps < gate.min_compared:
        return None
    if (why := _broken_difference(gate, counts)) is not None:
        return why
    if gate.max_disagree is not None:
        for output, found in counts.outputs.items():
            share = (found.disagree or 0) / max(counts.steps, 1)
            if (limit := gate.max_disagree) < share:
                return f"The arg max of {output!r} differs in {share:.6g} of the timesteps; the limit is {limit:.6g}."
    if gate.max_non_finite is not None and counts.non_finite > gate.max_non_finite:
        return f"{counts.non_finite} timesteps of the candidate are not finite; the limit is {gate.max_non_finite}."
    n_left = counts.lost + counts.fell_back
    if gate.max_lost is not None and n_left > gate.max_lost:
        return f"{n_left} streams have left the release; the limit is {gate.max_lost}."
    old_s, new_s = counts.run_s
    if gate.max_run_ratio is not None and old_s > 0 and new_s / old_s > gate.max_run_ratio:
        return f"The candidate runs {new_s / old_s:.3g} times as long; the limit is {gate.max_run_ratio:.3g}."
    return None if gate.max_error_ratio is None else _broken_error(gate.max_error_ratio, counts)


def _broken_difference(gate: Gate, counts: TrialCounts) -> str | None:
    for output, limit in gate.max_abs.items():
        of_output = counts.outputs.get(output, OutputCounts())
        limits = [(output, of_output, limit)] if not isinstance(limit, dict) else [
            (f"{output}[{label}]", of_output.labels.get(label, OutputCounts()), most) for label, most in limit.items()
        ]  # fmt: skip
        for place, found, most in limits:
            if found.max_abs > most:
                return f"The largest difference of {place!r} is {found.max_abs:.6g}; the limit is {most:.6g}."
    return None


def _broken_error(limit: float, counts: TrialCounts) -> str | None:
    """Return what is wrong with the label in which the candidate is worst; None: no interval is above the limit."""
    found = {
        f"{output}[{label}]": errors
        for output, labels in counts.errors.items()
        for label, sums in labels.items()
        if (errors := figures(sums)).low is not None and errors.low > limit
    }
    if not found:
        return None
    place = max(found, key=lambda place: found[place].ratio or 0.0)
    worst = found[place]
    return (
        f"The error of {place!r} is {worst.candidate:.6g}, {worst.ratio:.4g} times that of the current version "
        f"({worst.low:.4g} to {worst.high:.4g}, {worst.n:,} truths); the limit is {limit:.4g}."
    )
