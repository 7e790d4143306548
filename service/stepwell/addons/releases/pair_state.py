"""`Standing`: what a stream's record shows of releases; `PairState`: what that of a pair holds beside both states."""

from __future__ import annotations

import hashlib
from typing import Final, Literal, NamedTuple

import numpy as np

from stepwell.engine.placing import Placed
from stepwell.store.record import Record
from stepwell_export.runtime.manifest import Array

PairMode = Literal["shadow", "ramp"]
"""Which half responds: in `shadow` the old version, in `ramp` the candidate."""

PAIR_DTYPE: Final = np.dtype(
    [
        ("magic", "S4"),
        ("mode", "u1"),  # 0 shadow, 1 ramp
        ("failed", "u1"),  # 1: the candidate failed, so its half is not to be used any more
        ("responded", "u1"),  # which half responded to the newest timestep: 0 the old one, 1 the candidate
        ("reserved", "u1"),
        ("warm_steps", "<u4"),  # timesteps that the candidate still has to consume before it responds
        ("trial", "<u4"),  # revision that identifies the trial
        ("old", "V8"),  # fingerprints
        ("new", "V8"),
    ]
)
"""dtype of the last bytes of a pair's packed state row."""

PAIR_BYTES: Final = PAIR_DTYPE.itemsize
_MAGIC: Final = b"SWP1"
_MODES: Final[tuple[PairMode, ...]] = ("shadow", "ramp")


def pair_fingerprint(old: bytes, new: bytes, mode: PairMode) -> bytes:
    """Return the fingerprint of records that hold the states of two versions, 8 bytes."""
    return hashlib.blake2b(b"pair\0" + old + new + mode.encode(), digest_size=8).digest()


class PairState(NamedTuple):
    """What a record of a pair holds beside the states of both halves.

    Attributes:
        old: Fingerprint of the old version, 8 bytes.
        new: Fingerprint of the candidate, 8 bytes.
        mode: Which half responds.
        trial: Revision that identifies the trial.
        warm_steps: Timesteps that the candidate still has to consume before it responds.
        failed: The candidate has failed.
        responded: The candidate responded to the newest timestep.
    """

    old: bytes
    new: bytes
    mode: PairMode
    trial: int
    warm_steps: int = 0
    failed: bool = False
    responded: bool = False

    @property
    def assignment(self) -> Assignment:
        """What steps its stream."""
        return Assignment(self.old, self.new, self.mode)

    @property
    def responding(self) -> bytes:
        """Fingerprint of the version that responded to the newest timestep."""
        return self.new if self.responded else self.old

    def encode(self) -> bytes:
        """Return the last `PAIR_BYTES` of the packed state row."""
        row = np.zeros(1, PAIR_DTYPE)
        row[0] = (
            _MAGIC, _MODES.index(self.mode), self.failed, self.responded, 0, self.warm_steps, self.trial,
            np.void(self.old), np.void(self.new),
        )  # fmt: skip
        return row.tobytes()


def pair_state_of(fingerprint: bytes, state: bytes) -> PairState | None:
    """Return what a record holds beside the states of its two halves; None: it is the record of one version.

    Args:
        fingerprint: The record's fingerprint, 8 bytes.
        state: Its packed state row.
    """
    if len(state) < PAIR_BYTES or not state.startswith(_MAGIC, len(state) - PAIR_BYTES):
        return None
    row = np.frombuffer(state, PAIR_DTYPE, offset=len(state) - PAIR_BYTES)[0]
    if row["mode"] >= len(_MODES):
        return None
    pair = PairState(
        row["old"].tobytes(),
        row["new"].tobytes(),
        _MODES[row["mode"]],
        int(row["trial"]),
        int(row["warm_steps"]),
        bool(row["failed"]),
        bool(row["responded"]),
    )
    return pair if pair.assignment.fingerprint == fingerprint else None


def pair_rows(packed: Array) -> Array:
    """Return what packed rows of a pair, `(rows, bytes)` uint8, hold beside the states, `(rows,)` of `PAIR_DTYPE`."""
    return np.ascontiguousarray(packed[:, -PAIR_BYTES:]).view(PAIR_DTYPE)[:, 0]


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
        assignment = Assignment(record.fingerprint) if pair is None else pair.assignment
        return cls(assignment, record.moved >> 1, bool(record.moved & 1), pair)

    @property
    def responding(self) -> bytes:
        """Fingerprint of the version that responded to the newest timestep."""
        return self.assignment.old if self.pair is None else self.pair.responding

    def left(self, revision: int) -> Standing:
        """Return that of a stream which leaves the trial of a release, and stays where it is."""
        return self._replace(moved_by=revision, has_left=True)

    def placed(self, responded_before: bytes = b"") -> Placed:
        """Return how the record continues by which it becomes visible; see `Placed`."""
        return Placed(self.moved, b"" if self.pair is None else self.pair.encode(), responded_before)

    @property
    def moved(self) -> int:
        """The field `moved` of the record."""
        return self.moved_by << 1 | self.has_left
