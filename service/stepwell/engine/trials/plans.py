"""`ReleasePlans`: the release plan of each model, and the moves of streams by it; `BatchPlans`: those of batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stepwell.releases.moves import Assignment, Move, ReleasePlan, Standing
from stepwell.releases.takeover import TakeOver, TakeOverError, VersionNotLoadedError

if TYPE_CHECKING:
    from stepwell.models.registry import ModelRegistry
    from stepwell.releases.lookup import Releases
    from stepwell.store.record import Record

_log = logging.getLogger(__name__)


class ReleasePlans:
    """The release plans of this worker.

    Attributes:
        takeover: Computes the states of streams that move.
    """

    def __init__(self, releases: Releases, models: ModelRegistry) -> None:
        """Create it.

        Args:
            releases: The release documents of this worker.
            models: The loaded models.
        """
        self._releases = releases
        self._models = models
        self._plans: dict[str, ReleasePlan] = {}
        self._logged: set[tuple[str, str]] = set()
        self.takeover = TakeOver(models)

    def plan(self, model: str) -> ReleasePlan | None:
        """Return the plan of a model: the same object as long as nothing in it changes; None: it has no release."""
        document = self._releases.current(model)
        if document is None:
            return None
        now, plan = self._releases.now(), self._plans.get(model)
        if plan is None or not plan.is_valid(document, now):
            plan = self._plans[model] = ReleasePlan.at(document, now)
        return plan

    def fingerprint(self, model: str, assignment: Assignment) -> bytes:
        """Return the fingerprint of a assignment; a pair can be loaded by it from then on."""
        return self._models.pairs.announce(model, *assignment) if assignment.new else assignment.old

    def default(self, model: str) -> bytes:
        """Return the fingerprint of the version of new streams if there is no release."""
        return self._models.get(model).fingerprint

    def pinned(self, model: str, moved: int = 0) -> int:
        """Return the field `moved` of a stream that is put on a version by hand: no release of until now moves it.

        Args:
            model: The model's name.
            moved: The field of the record that it continues from.
        """
        plan = self.plan(model)
        # Not below the record's: with an older document here, an earlier promotion would move the stream again.
        moved_by = max(moved >> 1, 0 if plan is None else plan.document.revision)
        return moved_by << 1 | (moved_by > 0)

    def moved(self, model: str, record: Record, standing: Standing, moves: Sequence[Move]) -> Record:
        """Return a stream's record after its moves, at the same position of its history.

        Args:
            model: The model's name.
            record: The record before.
            standing: What it shows.
            moves: At least one.

        Raises:
            VersionNotLoadedError: A version has to be loaded first.
            TakeOverError: They cannot be made.
        """
        after = moves[-1].standing
        try:
            state = self.takeover.state_after(model, standing, record.state, moves)
        except VersionNotLoadedError:
            raise
        except TakeOverError as exc:
            if (model, exc.problem) not in self._logged:
                self._logged.add((model, exc.problem))
                _log.warning("Streams of %s do not move to their new version: %s", model, exc.problem)
            raise
        return replace(record, state=state, fingerprint=after.assignment.fingerprint, moved=after.moved)


class BatchPlans:
    """Which batches of one model version began by the current plan; only these have moved their streams by it."""

    def __init__(self, plans: ReleasePlans, model: str, on_change: Callable[[], None]) -> None:
        """Create it.

        Args:
            plans: The plans of this worker.
            model: The model's name.
            on_change: Called when a batch begins by another plan than the one before.
        """
        self._plans = plans
        self._model = model
        self._on_change = on_change
        self._plan: ReleasePlan | None = None

    def started(self) -> ReleasePlan | None:
        """Return the plan by which a batch begins."""
        plan = self._plans.plan(self._model)
        if plan is not self._plan:
            self._plan = plan
            self._on_change()
        return plan

    def is_outdated(self, plan: ReleasePlan | None) -> bool:
        """Whether another plan is in force now than the one by which a batch began."""
        return self._plans.plan(self._model) is not plan
