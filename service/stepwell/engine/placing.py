"""Which version steps a stream: by itself, the one that wrote its record; an add-on may place streams on others.

`Placing` is what an add-on extends, for all models; `Placement` is of one version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from stepwell.models.pair_state import PairMode, PairState, pair_fingerprint, pair_state_of
from stepwell.models.registry import ModelRegistry
from stepwell.store.record import Record
from stepwell.types import STARTS, Timestep
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.errors import ServiceError
    from stepwell.models.paired import Beside
    from stepwell.models.served import ServedModel

HandOver = Callable[[Any, bytes], bool]
"""Gives a row to the version with a fingerprint; False: that version is not there, or has other inputs."""

ChangedError = Callable[[Any, Record], "ServiceError"]
"""Returns the error for a row whose record was written by another version that does not run it."""


class Assignment(NamedTuple):
    """What steps a stream: one version, or a pair.

    Attributes:
        old: Fingerprint of the version, or of the pair's old half, 8 bytes.
        new: Fingerprint of the pair's candidate; empty: one version alone.
        mode: Which half of a pair responds.
    """

    old: bytes
    new: bytes = b""
    mode: PairMode = "shadow"

    @property
    def fingerprint(self) -> bytes:
        """The fingerprint of the records of its streams, 8 bytes."""
        return pair_fingerprint(self.old, self.new, self.mode) if self.new else self.old


class Standing(NamedTuple):
    """What a stream's record shows of releases.

    Attributes:
        assignment: What has stepped the stream.
        moved_by: Revision of the release that moved it last; 0: none.
        has_left: It has left the trial of that release.
        pair: What the record of a pair holds beside both states.
    """

    assignment: Assignment
    moved_by: int = 0
    has_left: bool = False
    pair: PairState | None = None

    @classmethod
    def of(cls, record: Record) -> Standing:
        """Return that of a record."""
        pair = pair_state_of(record.fingerprint, record.state)
        assignment = Assignment(record.fingerprint) if pair is None else Assignment(pair.old, pair.new, pair.mode)
        return cls(assignment, record.moved >> 1, bool(record.moved & 1), pair)

    @property
    def responding(self) -> bytes:
        """Fingerprint of the version that responded to the newest timestep."""
        return self.assignment.old if self.pair is None else self.pair.responding

    def left(self, revision: int) -> Standing:
        """Return that of a stream which leaves the trial of a release, and stays where it is."""
        return self._replace(moved_by=revision, has_left=True)

    @property
    def moved(self) -> int:
        """The field `moved` of the record."""
        return self.moved_by << 1 | self.has_left


class Followed(NamedTuple):
    """Committed rows, and what they follow.

    Attributes:
        names: The keys of their records.
        epochs: The epochs of the records, `(rows,)` uint64: each create, reset and fork begins another one.
        steps: The steps before the timesteps, `(rows,)` int64.
        inputs: `(rows, T, *row)` by name.
    """

    names: Sequence[str]
    epochs: Array
    steps: Array
    inputs: Mapping[str, Array]

    def select(self, rows: Sequence[int]) -> Followed:
        """Return some of the rows."""
        at = list(rows)
        inputs = {name: array[at] for name, array in self.inputs.items()}
        return Followed([self.names[i] for i in at], self.epochs[at], self.steps[at], inputs)


class PlacedRow(Protocol):
    """What is placed: a timestep whose stream's record was loaded; attributes as in `QueuedStep`."""

    name: str
    timestep: Timestep
    record: Record | None
    answered: bool
    standing: Standing | None
    responded_before: bytes
    cannot_move: bool
    leaves_trial: bool


class Placement:
    """Places the streams of one version, or of a pair of versions."""

    def __init__(self, served: ServedModel, models: ModelRegistry, hand_over: HandOver, error: ChangedError) -> None:
        """Create it.

        Args:
            served: The version.
            models: The loaded models.
            hand_over: Gives a row to another version.
            error: Returns the error for a row that no version runs.
        """
        self._served = served
        self._models = models
        self._hand_over = hand_over
        self._error = error

    def may_move(self, name: str) -> bool:
        """Whether a stream may be stepped by another version; False is certain."""
        return self._served.halves is not None

    def may_begin_elsewhere(self) -> bool:
        """Whether a stream that begins again may do so on another version."""
        return self._served.halves is not None

    def announce(self, record: Record) -> None:
        """Let the pair that wrote a record be loaded by its fingerprint from now on."""
        self.fingerprint(Standing.of(record).assignment)

    def fingerprint(self, assignment: Assignment) -> bytes:
        """Return the fingerprint of an assignment; a pair can be loaded by it from then on."""
        pairs = self._models.pairs
        return pairs.announce(self._served.name, *assignment) if assignment.new else assignment.old

    def place(self, row: PlacedRow) -> bool:
        """Whether this version steps a row's stream now; else the row was handed over to the one that does.

        Raises:
            ServiceError: `model_changed`: that version is not there, or the request names another one.
        """
        record = row.record
        if record is None or row.timestep.lifecycle in STARTS:
            return self._served.halves is None or not self._hand_over(
                row, self._models.get(self._served.name).fingerprint
            )
        return record.fingerprint == self._served.fingerprint or self._stays(row, record)

    def _stays(self, row: PlacedRow, record: Record) -> bool:
        """Place a row on the version, or the pair, that wrote its record."""
        served, standing = self._served, Standing.of(record)
        if (fingerprint := self.fingerprint(standing.assignment)) == served.fingerprint:
            return True
        is_free = row.timestep.version is None or (
            standing.pair is not None and standing.responding == served.fingerprint
        )
        if is_free and self._hand_over(row, fingerprint):
            return False
        raise self._error(row, record)


class Placing:
    """Places the streams of all models: each stays on the version that wrote its record.

    A new stream starts on the version that the request names, or on the default.

    Args:
        models: The loaded models.
    """

    def __init__(self, models: ModelRegistry) -> None:
        self.models = models

    def plan(self, model: str) -> object | None:
        """Return what places the streams of a model: another object whenever some may have to move; None: nothing."""
        return None

    def placement(self, served: ServedModel, hand_over: HandOver, error: ChangedError) -> Placement:
        """Return what places the streams of a version; see `Placement`."""
        return Placement(served, self.models, hand_over, error)

    def begin(self, model: str, name: str) -> tuple[bytes, Standing] | None:
        """Return the fingerprint of the version on which a new stream starts, and its standing in a release.

        None: the version that the request names, or the default.

        Args:
            model: The model's name.
            name: Key of the stream's record.
        """
        return None

    def pinned(self, model: str, moved: int = 0) -> int:
        """Return the field `moved` of a stream that is put on a version by hand.

        Args:
            model: The model's name.
            moved: The field of the record that it continues from.
        """
        return moved >> 1 << 1 | (moved > 1)

    def committed(self, served: ServedModel, beside: Beside, states: Array, followed: Followed | None) -> None:
        """Rows of a pair were committed.

        Args:
            served: The pair.
            beside: What its run returned beside the predictions.
            states: The packed states after it, `(rows, bytes)` uint8.
            followed: What the rows follow; None: they begin again.
        """
