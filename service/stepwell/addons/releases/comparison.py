"""`TrialComparison`: collects what a worker's paired batches show of a candidate, and adds it to the store."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from stepwell.addons.releases.counters import TrialCounts, add_counts
from stepwell.addons.releases.pair_state import pair_rows
from stepwell.addons.releases.paired import Beside, PairedModel
from stepwell.addons.releases.trial_errors import TrialErrors
from stepwell.engine.packing import all_true
from stepwell.errors import ServiceError
from stepwell.store.transport.retry import deadline
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import truths_of

if TYPE_CHECKING:
    from stepwell.addons.releases.metrics import ReleaseMetrics
    from stepwell.addons.releases.placing import ReleasePlacing
    from stepwell.addons.releases.plan import Move
    from stepwell.engine.placing import Followed
    from stepwell.models.served import ServedModel
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)
_MAX_BUFFERED = 65_536  # timesteps that wait to be compared; from there on they are compared at once
_TIMEOUT_S = 2.0


@dataclass(slots=True)
class _Collected:
    counts: TrialCounts = field(default_factory=TrialCounts)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    answers: dict[str, list[Array]] = field(default_factory=dict)
    others: dict[str, list[Array]] = field(default_factory=dict)
    buffered: int = 0

    def buffer(self, name: str, answers: Array, others: Array) -> None:
        """Keep predictions of one output, `(n, *row)` each, until `compare`."""
        self.answers.setdefault(name, []).append(answers)
        self.others.setdefault(name, []).append(others)

    def compare(self) -> None:
        """Compare what is buffered."""
        for name, parts in self.answers.items():
            labels = self.labels.get(name, ())
            self.counts.compare(name, np.concatenate(parts), np.concatenate(self.others[name]), labels)
        self.answers, self.others, self.buffered = {}, {}, 0


class TrialComparison:
    """Counts the committed timesteps of trials.

    Args:
        store: The store.
        placing: The release plans of this worker.
        metrics: Counts the work.
    """

    def __init__(self, store: StateStore, placing: ReleasePlacing, metrics: ReleaseMetrics) -> None:
        self._store = store
        self._placing = placing
        self._metrics = metrics
        self._collected: dict[tuple[str, int], _Collected] = {}
        self._sending: dict[tuple[str, int], tuple[TrialCounts, int]] = {}
        self._errors: dict[tuple[str, int], tuple[TrialErrors, Mapping[str, Sequence[str]]]] = {}
        self._n_additions = 0
        self._run_s = WeakKeyDictionary[PairedModel, tuple[float, float]]()  # a pair is not kept for its counts
        self._worker = secrets.token_hex(8)

    def add(self, served: ServedModel, beside: Beside, states: Array, followed: Followed | None) -> None:
        """Count the rows of a pair that were committed.

        Args:
            served: The pair.
            beside: What its run returned.
            states: The packed states after it, `(rows, bytes)` uint8.
            followed: What the rows follow; None: they begin again, and show no truth.
        """
        plan, model = self._placing.plan(served.name), served.step_model
        trial = None if plan is None else plan.document.running
        if trial is None or not isinstance(model, PairedModel):
            return
        if (trial.old.fingerprint, trial.new.fingerprint) != (model.old.fingerprint, model.new.fingerprint):
            return
        errors, labels = self._judge(served.name, trial.revision, model)
        collected = self._collected.setdefault((served.name, trial.revision), _Collected(labels=labels))
        is_of_trial = pair_rows(states)["trial"] == trial.revision
        compared = beside.compared & is_of_trial[:, None]
        if all_true(compared):  # the usual case: no row has failed, or is of another trial
            n_compared = n_responding = compared.size
            for name, array in beside.answers.items():
                collected.buffer(name, _flat(array), _flat(beside.others[name]))
        else:
            self._count_failed(served, model, collected.counts, beside.failed[:, 0] * is_of_trial, compared.shape[1])
            n_compared = int(np.count_nonzero(compared))
            n_responding = int(np.count_nonzero(beside.compared))
            for name, array in beside.answers.items() if n_compared else ():
                collected.buffer(name, array[compared], beside.others[name][compared])
        if followed is not None:
            pair = (beside.others, beside.answers) if model.mode == "ramp" else (beside.answers, beside.others)
            for truth, sums in errors.add(followed, *pair, compared):
                collected.counts.add_errors(truth.output, truth.labels, sums)
        collected.counts.steps += n_compared
        collected.buffered += n_compared
        self._count_roles(served, model, compared.size, n_responding)
        self._count_run_s(model, collected.counts)
        if collected.buffered >= _MAX_BUFFERED:
            collected.compare()

    def _judge(self, name: str, trial: int, model: PairedModel) -> tuple[TrialErrors, Mapping[str, Sequence[str]]]:
        """Return the errors of a trial, and the labels of its outputs; those of earlier trials are dropped."""
        if (found := self._errors.get((name, trial))) is None:
            for key in [key for key in self._errors if key[0] == name]:
                del self._errors[key]
            new, old = model.new.manifest, model.old.manifest
            found = self._errors[name, trial] = TrialErrors(truths_of(new, old)), labels_of_outputs(new)
        return found

    def _count_failed(
        self, served: ServedModel, model: PairedModel, counts: TrialCounts, failed: Array, length: int
    ) -> None:
        """Count the rows on which the candidate has failed now; `failed` is as in `Beside`, `(rows,)` uint8."""
        if not (n_failed := int(np.count_nonzero(failed))):
            return
        if model.mode == "shadow":
            counts.lost += n_failed
        else:
            counts.fell_back += n_failed
        counts.non_finite += int(np.count_nonzero(failed == 2))
        counts.steps += n_failed * length
        self._metrics.candidate_failed(served.name, n_failed, responds=model.mode == "ramp")

    def takeover_failed(self, model: str, move: Move) -> None:
        """Count a stream that was to take part, but whose state cannot be made; it stays out of the trial."""
        trial = move.taken_by
        if trial is None or trial.ended is not None:
            return
        counts = self._collected.setdefault((model, trial.revision), _Collected()).counts
        if trial.mode == "shadow":
            counts.lost += 1
        else:
            counts.fell_back += 1
        self._metrics.candidate_failed(model, 1, responds=trial.mode != "shadow")

    def _count_roles(self, served: ServedModel, model: PairedModel, n_steps: int, n_comparable: int) -> None:
        """Count which version responded: in `ramp` the candidate, to every timestep that can be compared."""
        old, new = (part.version for part in served.parts)
        by_new = n_comparable if model.mode == "ramp" else 0
        if by_new:
            self._metrics.paired_steps(served.name, new, old, by_new)
        if by_old := n_steps - by_new:
            self._metrics.paired_steps(served.name, old, new, by_old)

    def _count_run_s(self, model: PairedModel, counts: TrialCounts) -> None:
        old, new = model.run_s
        old_before, new_before = self._run_s.get(model, (0.0, 0.0))
        counts.run_s = counts.run_s[0] + old - old_before, counts.run_s[1] + new - new_before
        self._run_s[model] = old, new

    async def flush(self) -> None:
        """Add what was counted to the counts in the store; what cannot be added now is added at the next call."""
        for key, collected in list(self._collected.items()):
            if key in self._sending:
                continue
            collected.compare()
            for name, output in collected.counts.outputs.items():
                self._metrics.compared(key[0], name, output.differences())
            self._n_additions += 1
            self._sending[key] = collected.counts, self._n_additions
            del self._collected[key]
        for key, (counts, number) in list(self._sending.items()):
            model, trial = key
            try:
                await add_counts(
                    self._store, model, trial, counts, worker=self._worker, number=number, deadline=deadline(_TIMEOUT_S)
                )
            except ServiceError as exc:
                _log.debug("The counts of a trial of %s are added later: %s", model, exc)
                continue
            del self._sending[key]


def _flat(array: Array) -> Array:
    """Return predictions `(rows, T, *row)` as `(rows times T, *row)`."""
    return array.reshape(-1, *array.shape[2:])
