"""`ReleasePlacing`: places streams by the release documents of this worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from stepwell.addons.releases.comparison import TrialComparison
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.metrics import ReleaseMetrics
from stepwell.addons.releases.plan import Move, ReleasePlan
from stepwell.addons.releases.takeover import NoTranslationError, TakeOver, TakeOverError, VersionNotLoadedError
from stepwell.addons.releases.translations import Translations
from stepwell.engine.placing import ChangedError, HandOver, PlacedRow, Placement, Placing, Standing
from stepwell.types import STARTS

if TYPE_CHECKING:
    from stepwell.engine.placing import Followed
    from stepwell.models.paired import Beside
    from stepwell.models.registry import ModelRegistry
    from stepwell.models.served import ServedModel
    from stepwell.store.record import Record
    from stepwell.store.state_store import StateStore
    from stepwell_export.runtime.manifest import Array

_log = logging.getLogger(__name__)


class ReleasePlacing(Placing):
    """Places the streams of all models by their releases.

    Attributes:
        documents: The release documents of this worker.
        translations: The graphs that compute a version's states from those of an older one.
        takeover: Computes the states of streams that move.
        comparison: Counts the committed timesteps of trials.
    """

    def __init__(
        self,
        store: StateStore,
        models: ModelRegistry,
        metrics: ReleaseMetrics | None = None,
        documents: Releases | None = None,
    ) -> None:
        """Create it.

        Args:
            store: For the counts of trials.
            models: The loaded models.
            metrics: Counts what trials show; None: nothing does.
            documents: The release documents; None: there is none yet.
        """
        super().__init__(models)
        self.documents = Releases() if documents is None else documents
        self.translations = Translations(models.artifacts)
        self.takeover = TakeOver(models, self.translations)
        metrics = ReleaseMetrics(CollectorRegistry()) if metrics is None else metrics
        self.comparison = TrialComparison(store, self, metrics)
        self._plans: dict[str, ReleasePlan] = {}
        self._logged: set[tuple[str, str]] = set()

    def plan(self, model: str) -> ReleasePlan | None:
        """Return the plan of a model: the same object as long as nothing in it changes; None: it has no release."""
        document = self.documents.current(model)
        if document is None:
            return None
        now, plan = self.documents.now(), self._plans.get(model)
        if plan is None or not plan.is_valid(document, now):
            plan = self._plans[model] = ReleasePlan.at(document, now)
        return plan

    def placement(self, served: ServedModel, hand_over: HandOver, error: ChangedError) -> Placement:
        """Return what places the streams of a version by the release of its model."""
        return ReleasePlacement(self, served, hand_over, error)

    def begin(self, model: str, name: str) -> tuple[bytes, Standing] | None:
        """Return where a new stream begins by the release of its model."""
        if (plan := self.plan(model)) is None:
            return None
        assignment = plan.new_assignment(name)
        fingerprint = self.models.pairs.announce(model, *assignment) if assignment.new else assignment.old
        return fingerprint, plan.new_standing(assignment)

    def committed(self, served: ServedModel, beside: Beside, states: Array, followed: Followed | None) -> None:
        """Count what the versions of a pair have computed."""
        self.comparison.add(served, beside, states, followed)

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


class ReleasePlacement(Placement):
    """Places the streams of one version, or of a pair, by the release of its model."""

    def __init__(self, placing: ReleasePlacing, served: ServedModel, hand_over: HandOver, error: ChangedError) -> None:
        super().__init__(served, placing.models, hand_over, error)
        self._placing = placing

    def may_move(self, name: str) -> bool:
        """Whether a stream may be stepped by another version; False is certain."""
        plan = self._placing.plan(self._served.name)
        return super().may_move(name) or (plan is not None and plan.may_move(self._served.fingerprint, name))

    def may_begin_elsewhere(self) -> bool:
        """Whether a stream that begins again may do so on another version."""
        return super().may_begin_elsewhere() or self._placing.plan(self._served.name) is not None

    def place(self, row: PlacedRow) -> bool:
        """Whether this version steps a row's stream now; the row of a stream that moves here gets the moved record."""
        served, record, placing = self._served, row.record, self._placing
        plan = None if row.timestep.version is not None or row.cannot_move else placing.plan(served.name)
        if plan is not None and (record is None or row.timestep.lifecycle in STARTS):
            assignment = plan.new_assignment(row.name)
            if (fingerprint := self.fingerprint(assignment)) == served.fingerprint:
                row.standing = plan.new_standing(assignment)
                return True
            return not self._hand_over(row, fingerprint)
        if record is None or row.timestep.lifecycle in STARTS:
            return super().place(row)
        standing = Standing.of(record)
        if moves := [] if plan is None else plan.moves(standing, row.name):
            target = self.fingerprint(moves[-1].assignment)
            if target != served.fingerprint:
                if self._hand_over(row, target):
                    return False
            elif self._move(row, standing, record, moves):
                return True
            elif row.answered:  # it waits until the other version is loaded
                return False
        if row.leaves_trial and (plan := placing.plan(served.name)) is not None:
            row.standing = standing.left(plan.document.revision)
        return super().place(row)

    def _move(self, row: PlacedRow, standing: Standing, record: Record, moves: Sequence[Move]) -> bool:
        """Give a row the record of its stream after its moves to this version; False: they cannot be made."""
        try:
            row.record = self._placing.moved(self._served.name, record, standing, moves)
        except VersionNotLoadedError as exc:
            row.cannot_move = not self._hand_over(row, exc.fingerprint)
            return False
        except NoTranslationError:
            row.cannot_move = True
            return False
        except TakeOverError:
            row.cannot_move = row.leaves_trial = True
            self._placing.comparison.takeover_failed(self._served.name, moves[-1])
            return False
        row.standing, row.responded_before = moves[-1].standing, standing.responding
        return True
