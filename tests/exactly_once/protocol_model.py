"""A reference model of the protocol, in plain Python over a fold: the expected response to each request."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stepwell.types import ENDS, STARTS, Create, Lifecycle
from stepwell_client.wire.outcomes import ReturnMode
from tests.graphs import fold_reference

_unique = itertools.count()

Ids = Mapping[tuple[Hashable, ...], bytes | None]
"""State ids by the histories that they identify."""


@dataclass(frozen=True)
class StreamRequest:
    """A request to one stream.

    Attributes:
        xs: Inputs, one per timestep; empty for a reset.
        seq: As in the API.
        after: As in the API, 16 bytes.
        key: The Idempotency-Key.
        create: As in the API.
        keep: Which predictions to return.
        life: Whether the request starts or ends the stream.
        to: Target of a reset: the initial state, the stream's snapshot, or a given state.
        given: For a reset to a given state: its value and step.
        unnamed: Distinguishes requests without `seq`, `after` and `key`.
    """

    xs: tuple[int, ...]
    seq: int | None = None
    after: bytes | None = None
    key: str | None = None
    create: Create = "auto"
    keep: ReturnMode = "all"
    life: Lifecycle = "on"
    to: Literal["initial", "snapshot", "state"] = "initial"
    given: tuple[int, int] = (0, 0)
    unnamed: int = field(default_factory=lambda: next(_unique))

    @property
    def is_named(self) -> bool:
        """Whether a second copy is recognized as one."""
        return (self.seq, self.after, self.key) != (None, None, None) or self.to == "state"

    @property
    def identity(self) -> Hashable:
        """Equal for two requests that are one operation."""
        parts = (self.xs, self.seq, self.after, self.key, self.life, self.to, self.given)
        return parts if self.is_named else self.unnamed


@dataclass(frozen=True)
class StreamResponse:
    """A response, expected or real.

    Attributes:
        outcome: `applied`, `replayed`, or the error code.
        ys: The predictions.
        step: Step of the stream.
        history: Of an expected response: the operations that its state id identifies; None if it has no state id.
        expected: The next `seq`, in errors.
        created: Whether the request created the stream.
        state_id: Of a real response: the state id, or None.
    """

    outcome: str
    ys: tuple[int, ...] = ()
    step: int | None = None
    history: tuple[Hashable, ...] | None = None
    expected: int | None = None
    created: bool = False
    state_id: bytes | None = None


@dataclass(frozen=True)
class LiveStream:
    """A stream that exists.

    Attributes:
        history: Its operations.
        value: The fold of its inputs.
        step: Timesteps since the last reset.
        length: Timesteps of the newest operation.
        newest: Identity of the newest operation.
        kept: Predictions that a retry of it can return.
    """

    history: tuple[Hashable, ...] = ()
    value: int = 0
    step: int = 0
    length: int = 0
    newest: Hashable = None
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReplayEntry:
    """The stored response of an idempotency key, or of the request that ended the stream."""

    identity: Hashable
    kept: tuple[int, ...]
    step: int
    history: tuple[Hashable, ...]


@dataclass(frozen=True)
class StreamModel:
    """The expected state of a stream; `apply` returns the next one.

    Attributes:
        life: The stream, or None if it is missing.
        entries: Its idempotency keys.
        end_entry: The response to the last request without a key that ended it.
        snapshot: The stream when its snapshot was taken, or None without a snapshot.
    """

    life: LiveStream | None = None
    entries: dict[str, ReplayEntry] = field(default_factory=dict)
    end_entry: ReplayEntry | None = None
    snapshot: LiveStream | None = None

    def apply(self, request: StreamRequest, state_id: bytes | None) -> tuple[StreamResponse, StreamModel]:
        """Return the expected response to a request, and the stream after it.

        Args:
            ask: The request.
            state_id: The stream's current state id.
        """
        if request.key in self.entries:
            entry = self.entries[request.key]
            if entry.identity != request.identity:
                return StreamResponse("idempotency_key_reused"), self
            return _replay(request, entry.kept, entry.step, entry.history), self
        life, end_entry = self.life, self.end_entry
        if life is None and end_entry is not None and end_entry.identity == request.identity:
            return _replay(request, end_entry.kept, end_entry.step, end_entry.history), self
        if life is not None and life.newest == request.identity:
            return _replay(request, life.kept, life.step, life.history), self
        if request.life in STARTS:
            return self._apply(request)
        rejected = _missing(request) if life is None else _position_error(life, request, state_id)
        return (rejected, self) if rejected else self._apply(request)

    def _apply(self, request: StreamRequest) -> tuple[StreamResponse, StreamModel]:
        before = self.life or LiveStream()
        if request.life in STARTS:
            before = LiveStream((*before.history, ("reset", request.identity)))
        if request.xs:
            ys = tuple(fold_reference(request.xs, start=before.value))
            kept = {"all": ys, "last": ys[-1:], "none": ()}[request.keep]
            life = LiveStream(
                (*before.history, request.identity), ys[-1], before.step + len(ys), len(ys), request.identity, kept
            )  # fmt: skip
        elif request.to == "snapshot":
            if self.snapshot is None:
                return StreamResponse("snapshot_not_found"), self
            kept, then = (), self.snapshot
            history = (*before.history, ("rewind", request.identity, then.history))
            life = LiveStream(history, then.value, then.step, newest=request.identity)
        else:
            kept = ()
            history = (*before.history, (request.to, request.identity))
            life = LiveStream(history, *request.given, newest=request.identity)
        entries, end_entry = dict(self.entries), self.end_entry
        entry = ReplayEntry(request.identity, kept, life.step, life.history)
        if request.key is not None:
            entries[request.key] = entry
        elif request.life == "last":
            end_entry = entry
        created = self.life is None and bool(request.xs)
        response = StreamResponse("applied", kept, life.step, life.history, created=created)
        if request.life in ENDS:
            return response, StreamModel(None, entries, end_entry)
        return response, replace(self, life=life, entries=entries, end_entry=end_entry)

    def take_snapshot(self, after: bytes | None, ids: Ids) -> tuple[StreamResponse, StreamModel]:
        """Return the expected response to a request for a snapshot, and the stream after it.

        Args:
            after: As in the API.
            ids: State ids by history.
        """
        life, before = self.life, self.snapshot
        if life is None:
            return StreamResponse("stream_not_found"), self
        if after not in (None, ids[life.history]):
            if before is not None and ids[before.history] == after:
                return StreamResponse("replayed", (), before.step, before.history), self
            return StreamResponse("state_changed", (), life.step, life.history), self
        return StreamResponse("applied", (), life.step, life.history), replace(self, snapshot=life)


@dataclass(frozen=True)
class ForkRequest:
    """A request to fork a stream.

    Attributes:
        name: The source stream.
        to: The stream to create.
        of_snapshot: Whether to fork the snapshot of the source.
        after: The history that the source must have.
        key: The Idempotency-Key.
    """

    name: str
    to: str
    of_snapshot: bool
    after: bytes | None
    key: str | None

    def expected(self, streams: Mapping[str, StreamModel], ids: Ids) -> tuple[StreamResponse, StreamModel]:
        """Return the expected response, and the target stream after it."""
        source, there = streams[self.name], streams[self.to]
        if self.key in there.entries:
            entry = there.entries[self.key]
            if entry.identity != self:
                return StreamResponse("idempotency_key_reused"), there
            return StreamResponse("replayed", (), entry.step, entry.history), there
        if source.life is None:
            return StreamResponse("stream_not_found"), there
        origin = source.snapshot if self.of_snapshot else source.life
        if origin is None:
            return StreamResponse("snapshot_not_found"), there
        about = self.after if self.after is not None and not self.of_snapshot else ids[origin.history]
        identity = ("fork", about, self.to, self.key)
        if there.life is not None and there.life.newest == identity:
            return StreamResponse("replayed", (), there.life.step, there.life.history), there
        if self.after not in (None, ids[source.life.history]):
            return StreamResponse("state_changed", (), source.life.step, source.life.history), there
        if there.life is not None:
            return StreamResponse("stream_exists", (), there.life.step, there.life.history), there
        life = LiveStream((*origin.history, identity), origin.value, origin.step, newest=identity)
        entries = dict(there.entries)
        if self.key is not None:
            entries[self.key] = ReplayEntry(self, (), life.step, life.history)
        return StreamResponse("applied", (), life.step, life.history), replace(there, life=life, entries=entries)


def _replay(request: StreamRequest, kept: tuple[int, ...], step: int, history: tuple[Hashable, ...]) -> StreamResponse:
    wanted = {"all": len(request.xs), "last": min(len(request.xs), 1), "none": 0}[request.keep]
    if len(kept) < wanted:
        return StreamResponse("seq_passed", (), step, history, step + 1)
    return StreamResponse("replayed", kept[len(kept) - wanted :], step, history)


def _missing(request: StreamRequest) -> StreamResponse | None:
    begins = request.after is None and request.seq in (None, 1) and request.create != "never"
    return None if begins else StreamResponse("stream_not_found", expected=1 if request.xs else None)


def _position_error(life: LiveStream, request: StreamRequest, state_id: bytes | None) -> StreamResponse | None:
    def rejected(code: str, *, with_next: bool = True) -> StreamResponse:
        return StreamResponse(code, (), life.step, life.history, life.step + 1 if with_next and request.xs else None)

    if request.create == "must":
        return rejected("stream_exists", with_next=False)
    if request.after not in (None, state_id):
        return rejected("state_changed")
    if request.seq is None or request.seq == life.step + 1:
        return None
    if request.seq > life.step + 1:
        return rejected("seq_gap")
    taken = life.length > 0 and request.seq == life.step + 1 - life.length
    return rejected("seq_conflict" if taken else "seq_passed")
