"""`Placement`: which model steps a stream while releases move streams between the versions of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stepwell.releases.moves import Standing
from stepwell.releases.takeover import NoTranslationError, TakeOverError, VersionNotLoadedError
from stepwell.types import STARTS

if TYPE_CHECKING:
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.trials.comparison import TrialComparison
    from stepwell.engine.trials.plans import ReleasePlans
    from stepwell.errors import ServiceError
    from stepwell.models.served import ServedModel
    from stepwell.releases.moves import Move
    from stepwell.store.record import Record


class Placement:
    """Places the streams of one model version, or of a pair: what of releases the path of a timestep asks.

    Args:
        served: The model version.
        plans: Where streams move by a release.
        comparison: Counts the committed timesteps of trials.
        hand_over: Gives a row to the version with a fingerprint; False: that version is not there.
        changed_error: Returns the error for a row whose record was written by another version that does not run it.
    """

    def __init__(
        self,
        served: ServedModel,
        *,
        plans: ReleasePlans,
        comparison: TrialComparison,
        hand_over: Callable[[QueuedStep, bytes], bool],
        changed_error: Callable[[QueuedStep, Record], ServiceError],
    ) -> None:
        self._served = served
        self._plans = plans
        self._comparison = comparison
        self._hand_over = hand_over
        self._changed_error = changed_error

    def may_move(self, name: str) -> bool:
        """Whether a stream may be stepped by another model; False is certain."""
        if self._served.halves is not None:
            return True
        plan = self._plans.plan(self._served.name)
        return plan is not None and plan.may_move(self._served.fingerprint, name)

    def may_begin_elsewhere(self) -> bool:
        """Whether a stream that begins again may do so on another model."""
        return self._served.halves is not None or self._plans.plan(self._served.name) is not None

    def announce(self, record: Record) -> None:
        """Let the pair that wrote a record be loaded by its fingerprint from now on."""
        self._plans.fingerprint(self._served.name, Standing.of(record).assignment)

    def place(self, row: QueuedStep) -> bool:
        """Whether this model steps a row's stream now; the row of a stream that moves here gets the moved record.

        Otherwise the row is handed over to the model that does.

        Raises:
            ServiceError: `model_changed`: that model is not there, or the request names another version.
        """
        served, record, is_named = self._served, row.record, row.timestep.version is not None
        plan = None if is_named or row.cannot_move else self._plans.plan(served.name)
        if record is None or row.timestep.lifecycle in STARTS:
            if plan is None:
                return served.halves is None or not self._hand_over(row, self._plans.default(served.name))
            assignment = plan.new_assignment(row.name)
            if (fingerprint := self._plans.fingerprint(served.name, assignment)) == served.fingerprint:
                row.standing = plan.new_standing(assignment)
                return True
            return not self._hand_over(row, fingerprint)
        if plan is None and record.fingerprint == served.fingerprint:
            return True
        standing = Standing.of(record)
        if moves := [] if plan is None else plan.moves(standing, row.name):
            target = self._plans.fingerprint(served.name, moves[-1].assignment)
            if target != served.fingerprint:
                if self._hand_over(row, target):
                    return False
            elif self._move(row, standing, record, moves):
                return True
            elif row.answered:  # it waits until the other version is loaded
                return False
        if row.leaves_trial and (plan := self._plans.plan(served.name)) is not None:
            row.standing = standing.left(plan.document.revision)
        if (fingerprint := self._plans.fingerprint(served.name, standing.assignment)) == served.fingerprint:
            return True
        is_free = not is_named or (standing.pair is not None and standing.responding == served.fingerprint)
        if is_free and self._hand_over(row, fingerprint):
            return False
        raise self._changed_error(row, record)

    def _move(self, row: QueuedStep, standing: Standing, record: Record, moves: Sequence[Move]) -> bool:
        """Give a row the record of its stream after its moves to this model; False: they cannot be made."""
        try:
            row.record = self._plans.moved(self._served.name, record, standing, moves)
        except VersionNotLoadedError as exc:
            row.cannot_move = not self._hand_over(row, exc.fingerprint)
            return False
        except NoTranslationError:
            row.cannot_move = True
            return False
        except TakeOverError:
            row.cannot_move = row.leaves_trial = True
            self._comparison.takeover_failed(self._served.name, moves[-1])
            return False
        row.standing, row.responded_before = moves[-1].standing, standing.responding
        return True
