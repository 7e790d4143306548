"""The protocol a second time, in plain Python over a fold: what each request has to be answered."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from service.engine.types import BEGINS, ENDS, Create, Life, Return
from tests.graphs import fold_reference

_unique = itertools.count()

Ids = Mapping[tuple[Hashable, ...], bytes | None]
"""State ids by the histories that they name."""


@dataclass(frozen=True)
class Ask:
    """A request to one stream.

    Attributes:
        xs: Inputs, one per timestep; none: a reset.
        seq: As on the wire.
        after: As on the wire, 16 bytes.
        key: The Idempotency-Key.
        create: As on the wire.
        keep: Which predictions are wanted.
        life: Whether the stream begins anew with it, or ends.
        to: Of a reset: the initial state, the stream's snapshot, or a state that is given.
        given: With `to` a state: its value and step.
        unnamed: Tells requests apart that nothing else names.
    """

    xs: tuple[int, ...]
    seq: int | None = None
    after: bytes | None = None
    key: str | None = None
    create: Create = "auto"
    keep: Return = "all"
    life: Life = "on"
    to: Literal["initial", "snapshot", "state"] = "initial"
    given: tuple[int, int] = (0, 0)
    unnamed: int = field(default_factory=lambda: next(_unique))

    @property
    def is_named(self) -> bool:
        """Whether a second copy is known for what it is."""
        return (self.seq, self.after, self.key) != (None, None, None) or self.to == "state"

    @property
    def identity(self) -> Hashable:
        """The same for two requests that are one operation."""
        parts = (self.xs, self.seq, self.after, self.key, self.life, self.to, self.given)
        return parts if self.is_named else self.unnamed


@dataclass(frozen=True)
class Told:
    """An answer.

    Attributes:
        what: `applied`, `replayed`, or the refusal's code.
        ys: The predictions.
        step: The stream's.
        history: In what is expected: the operations that the state id names; None: none is told.
        expected: The `seq` that comes next; told in refusals.
        created: The stream began with this.
        state_id: In what was answered: the state id, or None.
    """

    what: str
    ys: tuple[int, ...] = ()
    step: int | None = None
    history: tuple[Hashable, ...] | None = None
    expected: int | None = None
    created: bool = False
    state_id: bytes | None = None


@dataclass(frozen=True)
class Live:
    """A stream that is there.

    Attributes:
        history: Its operations.
        value: The fold of its inputs.
        step: Timesteps since the last reset.
        length: Timesteps of the newest operation.
        newest: Identity of the newest operation.
        kept: Predictions that a retry of it can be given.
    """

    history: tuple[Hashable, ...] = ()
    value: int = 0
    step: int = 0
    length: int = 0
    newest: Hashable = None
    kept: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What is remembered of an idempotency key, or of the request that ended the stream."""

    identity: Hashable
    kept: tuple[int, ...]
    step: int
    history: tuple[Hashable, ...]


@dataclass(frozen=True)
class Stream:
    """A stream as it has to be; `ask` says how it goes on.

    Attributes:
        life: None: it is missing.
        entries: Its idempotency keys.
        words: The answer to the request without a key that ended it last.
        snapshot: What the stream was when its snapshot was taken; None: there is none.
    """

    life: Live | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    words: Entry | None = None
    snapshot: Live | None = None

    def ask(self, ask: Ask, state_id: bytes | None) -> tuple[Told, Stream]:
        """Return the answer to a request, and the stream after it.

        Args:
            ask: The request.
            state_id: The stream's, as clients know it.
        """
        if ask.key in self.entries:
            known = self.entries[ask.key]
            if known.identity != ask.identity:
                return Told("idempotency_key_reused"), self
            return _replay(ask, known.kept, known.step, known.history), self
        life, words = self.life, self.words
        if life is None and words is not None and words.identity == ask.identity:
            return _replay(ask, words.kept, words.step, words.history), self
        if life is not None and life.newest == ask.identity:
            return _replay(ask, life.kept, life.step, life.history), self
        if ask.life in BEGINS:
            return self._apply(ask)
        refused = _missing(ask) if life is None else _misplaced(life, ask, state_id)
        return (refused, self) if refused else self._apply(ask)

    def _apply(self, ask: Ask) -> tuple[Told, Stream]:
        before = self.life or Live()
        if ask.life in BEGINS:
            before = Live((*before.history, ("reset", ask.identity)))
        if ask.xs:
            ys = tuple(fold_reference(ask.xs, start=before.value))
            kept = {"all": ys, "last": ys[-1:], "none": ()}[ask.keep]
            life = Live(
                (*before.history, ask.identity), ys[-1], before.step + len(ys), len(ys), ask.identity, kept
            )  # fmt: skip
        elif ask.to == "snapshot":
            if self.snapshot is None:
                return Told("snapshot_not_found"), self
            kept, then = (), self.snapshot
            history = (*before.history, ("rewind", ask.identity, then.history))
            life = Live(history, then.value, then.step, newest=ask.identity)
        else:
            kept = ()
            history = (*before.history, (ask.to, ask.identity))
            life = Live(history, *ask.given, newest=ask.identity)
        entries, words = dict(self.entries), self.words
        entry = Entry(ask.identity, kept, life.step, life.history)
        if ask.key is not None:
            entries[ask.key] = entry
        elif ask.life == "last":
            words = entry
        created = self.life is None and bool(ask.xs)
        told = Told("applied", kept, life.step, life.history, created=created)
        if ask.life in ENDS:
            return told, Stream(None, entries, words)
        return told, replace(self, life=life, entries=entries, words=words)

    def take_snapshot(self, after: bytes | None, ids: Ids) -> tuple[Told, Stream]:
        """Return the answer to a request for a snapshot, and the stream after it.

        Args:
            after: As on the wire.
            ids: State ids by what they name.
        """
        life, before = self.life, self.snapshot
        if life is None:
            return Told("stream_not_found"), self
        if after not in (None, ids[life.history]):
            if before is not None and ids[before.history] == after:
                return Told("replayed", (), before.step, before.history), self
            return Told("state_changed", (), life.step, life.history), self
        return Told("applied", (), life.step, life.history), replace(self, snapshot=life)


@dataclass(frozen=True)
class Fork:
    """A request to begin a stream with what another one is.

    Attributes:
        name: The other one.
        to: The stream to begin.
        of_snapshot: With what the other's snapshot is.
        after: The history that the other must have.
        key: The Idempotency-Key.
    """

    name: str
    to: str
    of_snapshot: bool
    after: bytes | None
    key: str | None

    def expected(self, streams: Mapping[str, Stream], ids: Ids) -> tuple[Told, Stream]:
        """Return the answer, and the stream that was to begin."""
        source, there = streams[self.name], streams[self.to]
        if self.key in there.entries:
            known = there.entries[self.key]
            same = known.identity == self
            return Told("replayed", (), known.step, known.history) if same else Told("idempotency_key_reused"), there
        if source.life is None:
            return Told("stream_not_found"), there
        origin = source.snapshot if self.of_snapshot else source.life
        if origin is None:
            return Told("snapshot_not_found"), there
        about = self.after if self.after is not None and not self.of_snapshot else ids[origin.history]
        identity = ("fork", about, self.to, self.key)
        if there.life is not None and there.life.newest == identity:
            return Told("replayed", (), there.life.step, there.life.history), there
        if self.after not in (None, ids[source.life.history]):
            return Told("state_changed", (), source.life.step, source.life.history), there
        if there.life is not None:
            return Told("stream_exists", (), there.life.step, there.life.history), there
        life = Live((*origin.history, identity), origin.value, origin.step, newest=identity)
        entries = dict(there.entries)
        if self.key is not None:
            entries[self.key] = Entry(self, (), life.step, life.history)
        return Told("applied", (), life.step, life.history), replace(there, life=life, entries=entries)


def _replay(ask: Ask, kept: tuple[int, ...], step: int, history: tuple[Hashable, ...]) -> Told:
    wanted = {"all": len(ask.xs), "last": min(len(ask.xs), 1), "none": 0}[ask.keep]
    if len(kept) < wanted:
        return Told("seq_passed", (), step, history, step + 1)
    return Told("replayed", kept[len(kept) - wanted :], step, history)


def _missing(ask: Ask) -> Told | None:
    begins = ask.after is None and ask.seq in (None, 1) and ask.create != "never"
    return None if begins else Told("stream_not_found", expected=1 if ask.xs else None)


def _misplaced(life: Live, ask: Ask, state_id: bytes | None) -> Told | None:
    def refused(code: str, *, told_next: bool = True) -> Told:
        return Told(code, (), life.step, life.history, life.step + 1 if told_next and ask.xs else None)

    if ask.create == "must":
        return refused("stream_exists", told_next=False)
    if ask.after not in (None, state_id):
        return refused("state_changed")
    if ask.seq is None or ask.seq == life.step + 1:
        return None
    if ask.seq > life.step + 1:
        return refused("seq_gap")
    taken = life.length > 0 and ask.seq == life.step + 1 - life.length
    return refused("seq_conflict" if taken else "seq_passed")
