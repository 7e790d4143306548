"""Which version steps a stream: by itself, the one that wrote its record; an add-on may place streams on others.

`Placing` is what an add-on extends, for all models; `Placement` is of one version.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from stepwell.models.registry import ModelRegistry
from stepwell.store.record import Record
from stepwell.types import STARTS, Timestep
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.errors import ServiceError
    from stepwell.models.joined import JoinedRun
    from stepwell.models.served import ServedModel

HandOver = Callable[[Any, bytes], bool]
"""Gives a row to the version with a fingerprint; False: that version is not there, or has other inputs."""

ChangedError = Callable[[Any, Record], "ServiceError"]
"""Returns the error for a row whose record was written by another version that does not run it."""


class Placed(NamedTuple):
    """How the record of a stream continues that was placed on a version.

    Attributes:
        moved: The field `moved` of the record.
        tail: The last bytes of the packed state, which the add-on writes; empty: it writes none.
        responded_before: Fingerprint of the version that responded before; empty: the stream has not moved.
    """

    moved: int
    tail: bytes = b""
    responded_before: bytes = b""

    def state(self, packed: bytes) -> bytes:
        """Return a packed state with the tail as its end."""
        return packed[: len(packed) - len(self.tail)] + self.tail


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
    placed: Placed | None
    note: str


class Placement:
    """Places the streams of one version, or of several that are joined.

    Args:
        served: The version.
        hand_over: Gives a row to another version.
        error: Returns the error for a row that no version runs.
    """

    def __init__(self, served: ServedModel, hand_over: HandOver, error: ChangedError) -> None:
        self.served = served
        self.hand_over = hand_over
        self._error = error

    def may_move(self, name: str) -> bool:
        """Whether a stream may be stepped by another version; False is certain."""
        return False

    def may_begin_elsewhere(self) -> bool:
        """Whether a stream that begins again may do so on another version."""
        return False

    def announce(self, record: Record) -> None:
        """Let the version that wrote a record be loaded by its fingerprint from now on."""

    def place(self, row: PlacedRow) -> bool:
        """Whether this version steps a row's stream now; else the row was handed over to the one that does.

        Raises:
            ServiceError: `model_changed`: that version is not there, or the request names another one.
        """
        record = row.record
        if record is None or row.timestep.lifecycle in STARTS or record.fingerprint == self.served.fingerprint:
            return True
        return self.leave(row, record, is_free=row.timestep.version is None)

    def leave(self, row: PlacedRow, record: Record, *, is_free: bool) -> bool:
        """Hand a row over to the version that wrote its record; return False.

        Args:
            row: The row.
            record: Its record.
            is_free: The request names no version, or that one.

        Raises:
            ServiceError: As for `place`.
        """
        if is_free and self.hand_over(row, record.fingerprint):
            return False
        raise self._error(row, record)


class Placing:
    """Places the streams of all models: each stays on the version that wrote its record.

    A new stream starts on the version that the request names, or on the default.

    Args:
        models: The loaded models.

    Attributes:
        planned: The models for which `plan` may return something; it is not called for others.
    """

    planned: Container[str] = frozenset()

    def __init__(self, models: ModelRegistry) -> None:
        self.models = models

    def plan(self, model: str) -> object | None:
        """Return what places the streams of a model: another object whenever some may have to move; None: nothing."""
        return None

    def placement(self, served: ServedModel, hand_over: HandOver, error: ChangedError) -> Placement:
        """Return what places the streams of a version; see `Placement`."""
        return Placement(served, hand_over, error)

    def begin(self, model: str, name: str) -> tuple[bytes, Placed] | None:
        """Return the fingerprint of the version on which a new stream starts, and how its record does.

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

    def committed(self, served: ServedModel, run: JoinedRun, states: Array, followed: Followed | None) -> Sequence[int]:
        """Rows of joined versions were committed; return those that may move at their next step.

        Args:
            served: The versions, as one.
            run: What their run returned beside the predictions.
            states: The packed states after it, `(rows, bytes)` uint8.
            followed: What the rows follow; None: they begin again.
        """
        return ()
