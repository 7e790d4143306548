"""A reference model of forks, snapshots, states and rollouts, in plain Python over a fold: the expected responses."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from tests.graphs import fold_reference

OperationName = Literal["step", "rollout", "fork", "snapshot", "drop", "rewind", "state"]

_unique = itertools.count()


@dataclass(frozen=True)
class CopyRequest:
    """A request.

    Attributes:
        operation: The requested operation.
        stream: The stream's name.
        x: The input or the state, or None.
        number: Timesteps of a rollout, or the step of a state.
        name: Name of a snapshot, or None.
        to: The stream to create.
        after: As in the API, 16 bytes.
        key: The Idempotency-Key.
        unnamed: Distinguishes requests without `after` and `key`.
    """

    operation: OperationName
    stream: str
    x: int | None = None
    number: int = 1
    name: str | None = None
    to: str = ""
    after: bytes | None = None
    key: str | None = None
    unnamed: int = field(default_factory=lambda: next(_unique))

    @property
    def is_named(self) -> bool:
        """Whether a second copy is recognized as one while the request is the newest operation."""
        return (self.after, self.key) != (None, None) or self.operation == "state"

    @property
    def identity(self) -> Hashable:
        """Equal for two copies of one request."""
        parts = (self.operation, self.stream, self.x, self.number, self.name, self.to, self.after, self.key)
        return parts if self.is_named else self.unnamed


@dataclass(frozen=True)
class StreamState:
    """A stream that exists, or a snapshot of it.

    Attributes:
        history: Its operations.
        value: Its state.
        step: Its step.
        kept: Its last prediction, if one is kept.
        newest: Identity of the newest operation.
        ys: The predictions of the newest operation.
    """

    history: tuple[Hashable, ...]
    value: int
    step: int
    kept: int | None
    newest: Hashable
    ys: tuple[int, ...] = ()


@dataclass(frozen=True)
class CopyResponse:
    """A response.

    Attributes:
        outcome: `applied`, `replayed`, or the error code.
        step: Step of the stream, if the response has it.
        history: The history that the state id identifies, if the response has one.
        ys: The predictions.
    """

    outcome: str
    step: int | None = None
    history: tuple[Hashable, ...] | None = None
    ys: tuple[int, ...] = ()


@dataclass(frozen=True)
class SeenKey:
    """The request and the response of an idempotency key."""

    identity: Hashable
    response: CopyResponse


class CopiesModel:
    """The expected streams, snapshots and idempotency keys."""

    def __init__(self, id_of: Callable[[tuple[Hashable, ...]], bytes]) -> None:
        self.streams: dict[str, StreamState] = {}
        self.snapshots: dict[tuple[str, str], StreamState] = {}
        self.keys: dict[tuple[str, str], SeenKey] = {}
        self._id_of = id_of

    def apply(self, request: CopyRequest) -> CopyResponse:
        """Apply a request and return the expected response."""
        home = request.to if request.operation == "fork" else request.stream
        entry = None if request.key is None else self.keys.get((home, request.key))
        if entry is not None:
            if entry.identity != request.identity:
                return CopyResponse("idempotency_key_reused")
            if request.operation == "drop":
                return entry.response  # the response is empty, also when it is replayed
            return CopyResponse("replayed", entry.response.step, entry.response.history, entry.response.ys)
        response = getattr(self, f"_{request.operation}")(request)
        if response.outcome == "applied" and request.key is not None:
            self.keys[home, request.key] = SeenKey(request.identity, response)
        return response  # type: ignore[no-any-return]  # the method is looked up by its name

    def delete(self, stream: str) -> None:
        self.streams.pop(stream, None)
        self.snapshots = {at: state for at, state in self.snapshots.items() if at[0] != stream}

    # ---------------------------------------------------------------- operations that change a stream

    def _check(self, request: CopyRequest) -> CopyResponse | None:
        """Return the response of a request that is not applied, or None if it can be applied."""
        state = self.streams.get(request.stream)
        if state is None:
            return None if request.after is None else CopyResponse("stream_not_found")
        if state.newest == request.identity:
            return CopyResponse("replayed", state.step, state.history)
        if request.after is not None and request.after != self._id_of(state.history):
            return CopyResponse("state_changed")
        return None

    def _put(
        self,
        request: CopyRequest,
        value: int,
        step: int,
        kept: int | None,
        *covered: Hashable,
        ys: tuple[int, ...] = (),
    ) -> CopyResponse:
        before = self.streams.get(request.stream)
        history = (*(() if before is None else before.history), (request.identity, *covered))
        self.streams[request.stream] = StreamState(history, value, step, kept, request.identity, ys)
        return CopyResponse("applied", step, history, ys)

    def _advance(self, request: CopyRequest, xs: tuple[int, ...]) -> CopyResponse:
        before = self.streams.get(request.stream)
        value, step = (0, 0) if before is None else (before.value, before.step)
        ys = tuple(fold_reference(xs, start=value))
        return self._put(request, ys[-1], step + len(xs), ys[-1], xs, ys=ys)

    def _step(self, request: CopyRequest) -> CopyResponse:
        assert request.x is not None
        response = self._check(request)
        if response is not None and response.outcome == "replayed":
            return CopyResponse("replayed", response.step, response.history, self.streams[request.stream].ys)
        return self._advance(request, (request.x,)) if response is None else response

    def _rollout(self, request: CopyRequest) -> CopyResponse:
        response, before = self._check(request), self.streams.get(request.stream)
        if response is not None and response.outcome == "replayed":
            assert before is not None
            return CopyResponse("replayed", response.step, response.history, before.ys)
        if response is not None:
            return response
        x = request.x
        if x is None:
            if before is None:
                return CopyResponse("stream_not_found")
            if before.kept is None:
                return CopyResponse("bad_request")
            x = before.kept
        value, xs = 0 if before is None else before.value, [x]
        for _ in range(request.number):
            value = fold_reference([xs[-1]], start=value)[0]
            xs.append(value)
        return self._advance(request, tuple(xs[:-1]))

    def _rewind(self, request: CopyRequest) -> CopyResponse:
        if (response := self._check(request)) is not None:
            return response
        snapshot = self.snapshots.get((request.stream, request.name or ""))
        if snapshot is None:
            return CopyResponse("snapshot_not_found")
        return self._put(request, snapshot.value, snapshot.step, snapshot.kept, snapshot.history)

    def _state(self, request: CopyRequest) -> CopyResponse:
        assert request.x is not None
        return self._check(request) or self._put(request, request.x, request.number, None)

    # ---------------------------------------------------------------- operations that copy a stream

    def _fork(self, request: CopyRequest) -> CopyResponse:
        source = self.streams.get(request.stream)
        if source is None:
            return CopyResponse("stream_not_found")
        copied = source if request.name is None else self.snapshots.get((request.stream, request.name))
        if copied is None:
            return CopyResponse("snapshot_not_found")
        about = request.after if request.after is not None and request.name is None else self._id_of(copied.history)
        operation = ("fork", about, request.to, request.key)
        target = self.streams.get(request.to)
        if target is not None and target.newest == operation:
            return CopyResponse("replayed", target.step, target.history)
        if request.after is not None and request.after != self._id_of(source.history):
            return CopyResponse("state_changed")
        if target is not None:
            return CopyResponse("stream_exists")
        history = (*copied.history, operation)
        self.streams[request.to] = StreamState(history, copied.value, copied.step, copied.kept, operation)
        return CopyResponse("applied", copied.step, history)

    def _snapshot(self, request: CopyRequest) -> CopyResponse:
        assert request.name is not None
        state = self.streams.get(request.stream)
        if state is None:
            return CopyResponse("stream_not_found")
        if request.after is not None and request.after != self._id_of(state.history):
            before = self.snapshots.get((request.stream, request.name))
            if before is not None and self._id_of(before.history) == request.after:
                return CopyResponse("replayed", before.step, before.history)
            return CopyResponse("state_changed")
        self.snapshots[request.stream, request.name] = state
        return CopyResponse("applied", state.step, state.history)

    def _drop(self, request: CopyRequest) -> CopyResponse:
        self.snapshots.pop((request.stream, request.name or ""), None)
        return CopyResponse("applied")
