"""Forks, snapshots, states and rollouts a second time, in plain Python over a fold: what each has to be answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from tests.graphs import fold_reference

What = Literal["step", "rollout", "fork", "snapshot", "drop", "rewind", "state"]

_unique = itertools.count()


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        what: What is to be done.
        stream: To which stream.
        x: An input, a state, or None.
        number: Timesteps of a rollout, the step of a state.
        name: Of a snapshot, or None.
        to: The stream to begin.
        after: As on the wire, 16 bytes.
        key: The Idempotency-Key.
        unnamed: Tells requests apart that nothing else names.
    """

    what: What
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
        """Whether a second copy is known for what it is, while it is the newest that happened."""
        return (self.after, self.key) != (None, None) or self.what == "state"

    @property
    def request(self) -> Hashable:
        """The same for two copies of one request."""
        said = (self.what, self.stream, self.x, self.number, self.name, self.to, self.after, self.key)
        return said if self.is_named else self.unnamed


@dataclass(frozen=True)
class Life:
    """A stream that is there, or a snapshot of it.

    Attributes:
        history: What happened to it.
        value: Its state.
        step: Its step.
        kept: Its last prediction, where one is kept.
        newest: The operation that happened last.
        told: The predictions that it was answered.
    """

    history: tuple[Hashable, ...]
    value: int
    step: int
    kept: int | None
    newest: Hashable
    told: tuple[int, ...] = ()


@dataclass(frozen=True)
class Told:
    """An answer.

    Attributes:
        what: `applied`, `replayed`, or the refusal's code.
        step: The stream's, where it is told.
        history: What the state id names, where it is told.
        ys: The predictions.
    """

    what: str
    step: int | None = None
    history: tuple[Hashable, ...] | None = None
    ys: tuple[int, ...] = ()


@dataclass(frozen=True)
class Known:
    """What an idempotency key was answered."""

    request: Hashable
    told: Told


class World:
    """All streams, snapshots and keys, as they have to be."""

    def __init__(self, id_of: Callable[[tuple[Hashable, ...]], bytes]) -> None:
        self.streams: dict[str, Life] = {}
        self.snapshots: dict[tuple[str, str], Life] = {}
        self.keys: dict[tuple[str, str], Known] = {}
        self._id_of = id_of

    def ask(self, ask: Ask) -> Told:
        """Return what a request has to be answered, and do it."""
        home = ask.to if ask.what == "fork" else ask.stream
        known = None if ask.key is None else self.keys.get((home, ask.key))
        if known is not None:
            if known.request != ask.request:
                return Told("idempotency_key_reused")
            if ask.what == "drop":
                return known.told  # its answer is empty, the first time and ever after
            return Told("replayed", known.told.step, known.told.history, known.told.ys)
        told = getattr(self, f"_{ask.what}")(ask)
        if told.what == "applied" and ask.key is not None:
            self.keys[home, ask.key] = Known(ask.request, told)
        return told  # type: ignore[no-any-return]  # found by its name

    def delete(self, stream: str) -> None:
        self.streams.pop(stream, None)
        self.snapshots = {at: life for at, life in self.snapshots.items() if at[0] != stream}

    # ---------------------------------------------------------------- what moves a stream

    def _begin(self, ask: Ask) -> Told | None:
        """Return what is told before anything is done, None where it is to be done."""
        life = self.streams.get(ask.stream)
        if life is None:
            return None if ask.after is None else Told("stream_not_found")
        if life.newest == ask.request:
            return Told("replayed", life.step, life.history)
        if ask.after is not None and ask.after != self._id_of(life.history):
            return Told("state_changed")
        return None

    def _put(
        self, ask: Ask, value: int, step: int, kept: int | None, *covered: Hashable, told: tuple[int, ...] = ()
    ) -> Told:
        before = self.streams.get(ask.stream)
        history = (*(() if before is None else before.history), (ask.request, *covered))
        self.streams[ask.stream] = Life(history, value, step, kept, ask.request, told)
        return Told("applied", step, history, told)

    def _move(self, ask: Ask, xs: tuple[int, ...]) -> Told:
        before = self.streams.get(ask.stream)
        value, step = (0, 0) if before is None else (before.value, before.step)
        ys = tuple(fold_reference(xs, start=value))
        return self._put(ask, ys[-1], step + len(xs), ys[-1], xs, told=ys)

    def _step(self, ask: Ask) -> Told:
        assert ask.x is not None
        told = self._begin(ask)
        if told is not None and told.what == "replayed":
            return Told("replayed", told.step, told.history, self.streams[ask.stream].told)
        return self._move(ask, (ask.x,)) if told is None else told

    def _rollout(self, ask: Ask) -> Told:
        told, before = self._begin(ask), self.streams.get(ask.stream)
        if told is not None and told.what == "replayed":
            assert before is not None
            return Told("replayed", told.step, told.history, before.told)
        if told is not None:
            return told
        x = ask.x
        if x is None:
            if before is None:
                return Told("stream_not_found")
            if before.kept is None:
                return Told("bad_request")
            x = before.kept
        value, xs = 0 if before is None else before.value, [x]
        for _ in range(ask.number):
            value = fold_reference([xs[-1]], start=value)[0]
            xs.append(value)
        return self._move(ask, tuple(xs[:-1]))

    def _rewind(self, ask: Ask) -> Told:
        if (told := self._begin(ask)) is not None:
            return told
        snapshot = self.snapshots.get((ask.stream, ask.name or ""))
        if snapshot is None:
            return Told("snapshot_not_found")
        return self._put(ask, snapshot.value, snapshot.step, snapshot.kept, snapshot.history)

    def _state(self, ask: Ask) -> Told:
        assert ask.x is not None
        return self._begin(ask) or self._put(ask, ask.x, ask.number, None)

    # ---------------------------------------------------------------- what copies a stream

    def _fork(self, ask: Ask) -> Told:
        source = self.streams.get(ask.stream)
        if source is None:
            return Told("stream_not_found")
        copied = source if ask.name is None else self.snapshots.get((ask.stream, ask.name))
        if copied is None:
            return Told("snapshot_not_found")
        about = ask.after if ask.after is not None and ask.name is None else self._id_of(copied.history)
        operation = ("fork", about, ask.to, ask.key)
        there = self.streams.get(ask.to)
        if there is not None and there.newest == operation:
            return Told("replayed", there.step, there.history)
        if ask.after is not None and ask.after != self._id_of(source.history):
            return Told("state_changed")
        if there is not None:
            return Told("stream_exists")
        history = (*copied.history, operation)
        self.streams[ask.to] = Life(history, copied.value, copied.step, copied.kept, operation)
        return Told("applied", copied.step, history)

    def _snapshot(self, ask: Ask) -> Told:
        assert ask.name is not None
        life = self.streams.get(ask.stream)
        if life is None:
            return Told("stream_not_found")
        if ask.after is not None and ask.after != self._id_of(life.history):
            before = self.snapshots.get((ask.stream, ask.name))
            if before is not None and self._id_of(before.history) == ask.after:
                return Told("replayed", before.step, before.history)
            return Told("state_changed")
        self.snapshots[ask.stream, ask.name] = life
        return Told("applied", life.step, life.history)

    def _drop(self, ask: Ask) -> Told:
        self.snapshots.pop((ask.stream, ask.name or ""), None)
        return Told("applied")
