"""`ReleasePlacing`: places streams by the release documents of this worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from stepwell.addons.releases.comparison import TrialComparison
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.metrics import ReleaseMetrics
from stepwell.addons.releases.pair_state import Standing, pair_rows
from stepwell.addons.releases.paired import Beside
from stepwell.addons.releases.pairs import LoadedPairs
from stepwell.addons.releases.plan import Move, ReleasePlan
from stepwell.addons.releases.takeover import NoTranslationError, TakeOver, TakeOverError, VersionNotLoadedError
from stepwell.addons.releases.translations import Translations
from stepwell.engine.packing import all_true
from stepwell.engine.placing import ChangedError, HandOver, Placed, PlacedRow, Placement, Placing
from stepwell.types import STARTS

if TYPE_CHECKING:
    from stepwell.engine.placing import Followed
    from stepwell.models.joined import JoinedRun
    from stepwell.models.registry import ModelRegistry
    from stepwell.models.served import ServedModel
    from stepwell.store.record import Record
    from stepwell.store.state_store import StateStore
    from stepwell_export.runtime.manifest import Array

_log = logging.getLogger(__name__)
_STAYS: Final = "its state cannot be moved here"
_LEAVES_TRIAL: Final = "its state cannot be moved anywhere: it takes no part in the trial any more"
"""Notes of rows whose stream was to be moved, and stays where it is."""


class ReleasePlacing(Placing):
    """Places the streams of all models by their releases.

    Attributes:
        pairs: The pairs that records name.
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
        self.pairs = models.joined = LoadedPairs(models)
        self.documents = Releases() if documents is None else documents
        self.planned = self.documents.by_model
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

    def begin(self, model: str, name: str) -> tuple[bytes, Placed] | None:
        """Return where a new stream begins by the release of its model."""
        if (plan := self.plan(model)) is None:
            return None
        assignment = plan.new_assignment(name)
        return self.pairs.fingerprint(model, assignment), plan.new_standing(assignment).placed()

    def committed(self, served: ServedModel, run: JoinedRun, states: Array, followed: Followed | None) -> Sequence[int]:
        """Count what the versions of a pair have computed.

        Returns:
            The rows of streams that leave the trial, or whose candidate is warm now.
        """
        assert isinstance(run, Beside)
        self.comparison.add(served, run, states, followed)
        if all_true(run.compared):
            return ()
        moving: list[int] = np.flatnonzero((pair_rows(states)["failed"] > 0) | run.is_warm_now).tolist()
        return moving

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
        super().__init__(served, hand_over, error)
        self._placing = placing
        self._is_pair = bool(served.parts)

    def may_move(self, name: str) -> bool:
        """Whether a stream may be stepped by another version; False is certain."""
        plan = self._placing.plan(self.served.name)
        return self._is_pair or (plan is not None and plan.may_move(self.served.fingerprint, name))

    def may_begin_elsewhere(self) -> bool:
        """Whether a stream that begins again may do so on another version."""
        return self._is_pair or self._placing.plan(self.served.name) is not None

    def announce(self, record: Record) -> None:
        """Let the pair that wrote a record be loaded by its fingerprint from now on."""
        self._placing.pairs.announce(self.served.name, record.fingerprint, record.state)

    def place(self, row: PlacedRow) -> bool:
        """Whether this version steps a row's stream now; the row of a stream that moves here gets the moved record."""
        served, record, placing = self.served, row.record, self._placing
        plan = None if row.timestep.version is not None or row.note else placing.plan(served.name)
        if record is None or row.timestep.lifecycle in STARTS:
            if plan is None:
                default = placing.models.get(served.name).fingerprint
                return not self._is_pair or not self.hand_over(row, default)
            assignment = plan.new_assignment(row.name)
            if (fingerprint := placing.pairs.fingerprint(served.name, assignment)) != served.fingerprint:
                return not self.hand_over(row, fingerprint)
            row.placed = plan.new_standing(assignment).placed()
            return True
        standing = Standing.of(record)
        if moves := [] if plan is None else plan.moves(standing, row.name):
            target = placing.pairs.fingerprint(served.name, moves[-1].assignment)
            if target != served.fingerprint:
                if self.hand_over(row, target):
                    return False
            elif self._move(row, standing, record, moves):
                return True
            elif row.answered:  # it waits until the other version is loaded
                return False
        if row.note == _LEAVES_TRIAL and (plan := placing.plan(served.name)) is not None:
            row.placed = standing.left(plan.document.revision).placed()
        if record.fingerprint == served.fingerprint:
            return True
        self.announce(record)
        names_half = standing.pair is not None and standing.responding == served.fingerprint
        return self.leave(row, record, is_free=row.timestep.version is None or names_half)

    def _move(self, row: PlacedRow, standing: Standing, record: Record, moves: Sequence[Move]) -> bool:
        """Give a row the record of its stream after its moves to this version; False: they cannot be made."""
        try:
            row.record = self._placing.moved(self.served.name, record, standing, moves)
        except VersionNotLoadedError as exc:
            row.note = "" if self.hand_over(row, exc.fingerprint) else _STAYS
            return False
        except NoTranslationError:
            row.note = _STAYS
            return False
        except TakeOverError:
            row.note = _LEAVES_TRIAL
            self._placing.comparison.takeover_failed(self.served.name, moves[-1])
            return False
        row.placed = moves[-1].standing.placed(standing.responding)
        return True
