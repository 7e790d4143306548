"""Whatever happens to streams in whatever order, two workers on one store answer as the protocol over a fold says.

CI runs a part of it; by hand: STEPWELL_MACHINE=2000x60, runs x operations.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Awaitable, Coroutine, Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from model_export.step_model import StepModel
from service.engine.engine import Engine
from service.engine.models import ModelShelf
from service.engine.types import GivenState, Position, StreamKey
from service.errors import ServiceError
from service.store.keys import entry_key, last_words_key, record_key, snapshots_key
from service.store.record import decode
from service.store.redis import StateStore
from tests.engine.harness import FOLD, chunk, ys
from tests.exactly_once.protocol import Ask, Fork, Live, Stream, Told
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server, server

RUNS, OPERATIONS = (int(part) for part in os.environ.get("STEPWELL_MACHINE", "60x40").split("x"))

NAMES = ("a", "b")
KEYS = ("k1", "k2")
FOREIGN = b"nobody's history"

Step = dict[str, Any]  # a request that is made concrete where its stream stands

STREAMS = st.sampled_from(NAMES)
WORKERS = st.integers(0, 1)
TICKS = st.integers(0, 12)  # turns of the loop that a request gets before something happens to it
INPUTS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3).map(tuple)
STEPS: st.SearchStrategy[Step] = st.fixed_dictionaries({
    "xs": INPUTS,
    "place": st.sampled_from([None, 1, 1, 1, 0, -1, -2, 2, 9]),  # `seq`, from where the stream stands
    "history": st.sampled_from([None, None, "now", "now", "before", "foreign"]),
    "key": st.sampled_from([None, None, None, *KEYS]),
    "create": st.sampled_from(["auto", "auto", "auto", "never", "must"]),
    "keep": st.sampled_from(["all", "all", "last", "none"]),
})  # fmt: skip
RESETS: st.SearchStrategy[Step] = st.fixed_dictionaries({
    "xs": st.just(()),
    "to": st.sampled_from(["initial", "initial", "snapshot", "state"]),
    "given": st.tuples(st.integers(-9, 9), st.integers(0, 3)),
    "history": st.sampled_from([None, "now", "now", "before"]),
    "key": st.sampled_from([None, *KEYS]),
})  # fmt: skip
BEGINNINGS: st.SearchStrategy[Step] = st.fixed_dictionaries({
    "xs": INPUTS,
    "life": st.sampled_from(["new", "new", "whole"]),
    "seq": st.sampled_from([None, None, 1]),
    "key": st.sampled_from([None, None, *KEYS]),
    "keep": st.sampled_from(["all", "all", "last", "none"]),
})  # fmt: skip
ENDINGS: st.SearchStrategy[Step] = st.fixed_dictionaries({
    "xs": INPUTS,
    "life": st.just("last"),
    "place": st.sampled_from([None, 1, 1, 1, 0, -1, 2]),
    "history": st.sampled_from([None, None, "now", "before"]),
    "key": st.sampled_from([None, None, *KEYS]),
    "create": st.just("never"),
    "keep": st.sampled_from(["all", "all", "last", "none"]),
})  # fmt: skip
ASKS = st.one_of(STEPS, STEPS, STEPS, RESETS, BEGINNINGS, ENDINGS)
THREE_STEPS = st.lists(STEPS, min_size=3, max_size=3)  # a reset among three would leave their order open


class World:
    """What outlives a run: the server and the loaded model."""

    server: Server
    shelf: ModelShelf
    tenants = itertools.count()


class ExactlyOnce(RuleBasedStateMachine):
    """Two workers, two streams, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"t{next(World.tenants)}"
        self.raw = World.server.client()
        self.streams = {name: Stream() for name in NAMES}
        self.ids: dict[tuple[Hashable, ...], bytes | None] = {}  # state ids by what they name
        self.sent: list[tuple[str, Ask]] = []
        self.saved: dict[str, tuple[Stream, dict[str, bytes | None]]] = {}
        self.loop = asyncio.Runner()
        self.workers: list[Engine] = []

    @initialize()
    def begin(self) -> None:
        self.workers = [self.run(self._worker()), self.run(self._worker())]

    def teardown(self) -> None:
        for worker in self.workers:
            self.run(worker.close())
        self.loop.close()
        self.raw.close()

    # ---------------------------------------------------------------- what clients do

    @rule(name=STREAMS, worker=WORKERS, step=ASKS)
    def one_asks(self, name: str, worker: int, step: Step) -> None:
        ask = self.concrete(name, step)
        self.expect(name, ask, self.run(self.answer(worker, name, ask)))

    @rule(name=STREAMS, worker=WORKERS, xs=INPUTS)
    def one_steps_as_clients_do(self, name: str, worker: int, xs: tuple[int, ...]) -> None:
        """By `seq` and `after`, right where the stream stands: so that histories get long."""
        self.one_asks(name, worker, {"xs": xs, "place": 1, "history": "now" if self.streams[name].life else None})

    @rule(worker=WORKERS, which=st.integers(0, 2**16))
    def a_copy_comes_late(self, worker: int, which: int) -> None:
        """Of any request that was ever sent, through either worker."""
        copies = [(name, ask) for name, ask in self.sent if ask.is_named]
        if copies:
            name, ask = copies[-1 - which % len(copies)]
            self.expect(name, ask, self.run(self.answer(worker, name, ask)))

    @rule(name=STREAMS, worker=WORKERS, copies=st.lists(WORKERS, max_size=2), step=ENDINGS)
    def one_ends_as_clients_do(self, name: str, worker: int, copies: list[int], step: Step) -> None:
        """Right where the stream stands, and asks again."""
        ask = self.concrete(name, {**step, "place": 1, "history": None})
        for each in (worker, *copies):
            self.expect(name, ask, self.run(self.answer(each, name, ask)))

    @rule(name=STREAMS, step=ASKS, copies=st.lists(WORKERS, min_size=2, max_size=4))
    def copies_come_at_once(self, name: str, step: Step, copies: list[int]) -> None:
        ask = self.concrete(name, step)
        if not ask.is_named:
            ask = replace(ask, key=KEYS[0])
        self.expect_in_some_order(name, [ask] * len(copies), self.run(self.at_once(name, [ask] * len(copies), copies)))

    @rule(name=STREAMS, steps=st.one_of(st.lists(ASKS, min_size=2, max_size=2), THREE_STEPS), first=WORKERS)
    def several_ask_at_once(self, name: str, steps: list[Step], first: int) -> None:
        asks = [self.concrete(name, step) for step in steps]
        workers = [(first + n) % 2 for n in range(len(asks))]
        self.expect_in_some_order(name, asks, self.run(self.at_once(name, asks, workers)))

    @rule(name=STREAMS, worker=WORKERS)
    def one_deletes(self, name: str, worker: int) -> None:
        self.run(self.workers[worker].delete(self.key(name)))
        self.streams[name] = replace(self.streams[name], life=None, snapshot=None)
        self.check(name)

    @rule(name=STREAMS, worker=WORKERS, history=st.sampled_from([None, "now", "now", "before", "foreign"]))
    def one_takes_a_snapshot(self, name: str, worker: int, history: str | None) -> None:
        after = self.concrete(name, {"xs": (), "history": history}).after
        told = self.run(self._told(self.workers[worker].copies.take_snapshot(
            self.key(name), "s", after=after, idempotency_key=None
        )))  # fmt: skip
        expected, stream = self.streams[name].take_snapshot(after, self.ids)
        self.expect_told(name, told, expected, stream)

    @rule(
        name=STREAMS, copies=st.lists(WORKERS, min_size=1, max_size=3), of_snapshot=st.booleans(),
        history=st.sampled_from([None, "now", "now", "before", "foreign"]), key=st.sampled_from([None, *KEYS]),
    )  # fmt: skip
    def one_forks(self, name: str, copies: list[int], of_snapshot: bool, history: str | None, key: str | None) -> None:
        """Onto the other stream, and asks again."""
        [other] = set(NAMES) - {name}
        fork = Fork(name, other, of_snapshot, self.concrete(name, {"xs": (), "history": history}).after, key)
        for worker in copies:
            told = self.run(self._told(self.workers[worker].copies.fork(
                self.key(name), self.key(other), snapshot="s" if of_snapshot else None, version=None,
                after=fork.after, idempotency_key=key,
            )))  # fmt: skip
            self.expect_told(other, told, *fork.expected(self.streams, self.ids))

    @rule(name=STREAMS, worker=WORKERS, xs=INPUTS)
    def one_peeks(self, name: str, worker: int, xs: tuple[int, ...]) -> None:
        """Whatever the worker remembers of the stream; and nothing moves."""
        life = self.streams[name].life or Live()
        found = self.run(self.workers[worker].peek(msgspec.structs.replace(chunk(name, xs), key=self.key(name))))

        assert (tuple(ys(found)), found.step) == (tuple(fold_reference(xs, start=life.value)), life.step + len(xs))
        self.check(name)

    # ---------------------------------------------------------------- what goes wrong

    @rule()
    def the_script_is_flushed(self) -> None:
        self.raw.script_flush()

    @rule(name=STREAMS, worker=WORKERS, step=ASKS, ticks=TICKS)
    def connections_are_killed_under_a_request(self, name: str, worker: int, step: Step, ticks: int) -> None:
        ask = self.concrete(name, step)
        if ask.life == "whole" and ask.key is None:  # leaves nothing by which the worker would know that it is done
            ask = replace(ask, key=KEYS[0])

        async def disturbed() -> Told:
            answering = asyncio.create_task(self.answer(worker, name, ask))
            await turns(ticks)
            self.raw.client_kill_filter(_type="normal", skipme=True)
            return await answering

        self.expect(name, ask, self.run(disturbed()), disturbed=True)

    @rule(name=STREAMS, worker=WORKERS, step=ASKS, ticks=TICKS)
    def a_worker_dies_under_a_request(self, name: str, worker: int, step: Step, ticks: int) -> None:
        """And the client asks the other one again."""
        ask = self.concrete(name, step)
        told = self.run(self._answer_or_die(worker, name, ask, ticks))
        if told is not None:
            self.expect(name, ask, told)
            return
        expected, after = self.streams[name].ask(ask, self.state_id(name))
        remembers = any(self.raw.exists(key) for key in self.new_entries(name, ask))
        if remembers or self.stored_id(name) != self.state_id(name):  # it was applied, so the whole of it was
            assert expected.what == "applied", expected
            self.streams[name] = after
            if after.life is not None:
                self.learn(expected.history, self.stored_id(name))
        self.check(name)
        if ask.is_named:
            self.expect(name, ask, self.run(self.answer(1 - worker, name, ask)))

    @rule(name=STREAMS)
    def a_stream_expires(self, name: str) -> None:
        self.raw.pexpire(self.record(name), 1)
        while self.raw.exists(self.record(name)):
            pass
        self.streams[name] = replace(self.streams[name], life=None)

    @rule(name=STREAMS, key=st.sampled_from(KEYS))
    def a_key_expires(self, name: str, key: str) -> None:
        self.raw.delete(entry_key(self.record(name), key))
        stream = self.streams[name]
        entries = {k: v for k, v in stream.entries.items() if k != key}
        self.streams[name] = replace(stream, entries=entries)

    @rule(name=STREAMS)
    def last_words_expire(self, name: str) -> None:
        self.raw.delete(last_words_key(self.record(name)))
        self.streams[name] = replace(self.streams[name], words=None)

    @rule(name=STREAMS)
    def the_store_is_saved(self, name: str) -> None:
        self.saved[name] = self.streams[name], {key: self.stored(key) for key in self.all_keys(name)}

    @rule(name=STREAMS)
    def the_store_falls_back(self, name: str) -> None:
        """To what was saved: as after a failover to a replica that was behind."""
        if name in self.saved:
            snapshot = self.streams[name].snapshot  # it is not on this machine
            saved, values = self.saved[name]
            self.streams[name] = replace(saved, snapshot=snapshot)
            for key, value in values.items():
                if value is None:
                    self.raw.delete(key)
                else:
                    self.raw.set(key, value, px=10**8)
            self.check(name)

    # ---------------------------------------------------------------- asking

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work)

    def key(self, name: str) -> StreamKey:
        return StreamKey(self.tenant, FOLD, name)

    def record(self, name: str) -> str:
        return record_key(*self.key(name))

    def all_keys(self, name: str) -> list[str]:
        record = self.record(name)
        return [record, last_words_key(record), *(entry_key(record, key) for key in KEYS)]

    def new_entries(self, name: str, ask: Ask) -> list[str]:
        """Return where a request is remembered beside the stream, if nothing was there before it."""
        is_new = ask.key is not None and ask.key not in self.streams[name].entries
        return [entry_key(self.record(name), str(ask.key))] if is_new else []

    def concrete(self, name: str, step: Step) -> Ask:
        """Return the request that is meant where the stream stands."""
        life = self.streams[name].life
        seq = None if step.get("place") is None else max(1, (life.step if life else 0) + step["place"])
        seq = step.get("seq", seq)
        histories = {
            None: None,
            "foreign": FOREIGN,
            "now": self.state_id(name) or FOREIGN,
            "before": self.ids.get(life.history[:-1], FOREIGN) if life else FOREIGN,
        }
        return Ask(
            step["xs"], seq, histories[step.get("history")], step.get("key"), step.get("create", "auto"),
            step.get("keep", "all"), step.get("life", "on"), step.get("to", "initial"),
            step["given"] if step.get("to") == "state" else (0, 0),
        )  # fmt: skip

    async def answer(self, worker: int, name: str, ask: Ask) -> Told:
        """Return what a worker answers, its history for its state id."""
        self.sent.append((name, ask))
        engine, key = self.workers[worker], self.key(name)
        try:
            if not ask.xs:
                return placed(await self._reset(engine, key, ask))
            timestep = chunk(
                name, ask.xs, seq=ask.seq, after=ask.after, idempotency_key=ask.key, create=ask.create,
                keep=ask.keep, life=ask.life,
            )  # fmt: skip
            found = await engine.advance(msgspec.structs.replace(timestep, key=key))
        except ServiceError as exc:
            return refused(exc)
        what = "replayed" if found.replayed else "applied"
        told = tuple(ys(found)) if found.outputs else ()
        return Told(what, told, found.step, state_id=found.state_id, created=found.created)

    @staticmethod
    async def _reset(engine: Engine, key: StreamKey, ask: Ask) -> Position:
        if ask.to == "state":
            value, step = ask.given
            given = GivenState({"h": np.array([value], np.int64)}, step)
            served = World.shelf.get(FOLD)
            return await engine.resets.to_state(key, served, given, after=ask.after, idempotency_key=ask.key)
        snapshot = "s" if ask.to == "snapshot" else None
        return await engine.reset(key, snapshot=snapshot, after=ask.after, idempotency_key=ask.key)

    async def at_once(self, name: str, asks: list[Ask], workers: list[int]) -> list[Told]:
        answers = [self.answer(worker, name, ask) for worker, ask in zip(workers, asks, strict=True)]
        return await asyncio.gather(*answers)

    async def _answer_or_die(self, worker: int, name: str, ask: Ask, ticks: int) -> Told | None:
        """Ask a worker that is gone after some turns of the loop; None: it had not answered."""
        answering = asyncio.create_task(self.answer(worker, name, ask))
        await turns(ticks)
        told = answering.result() if answering.done() else None
        [other] = await self.workers[1 - worker].store.wire.call(("CLIENT", "ID"))
        its_own = {int(c["id"]) for c in self.raw.client_list()} - {other, self.raw.client_id()}
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await self.workers[worker].close()
        while its_own & {int(c["id"]) for c in self.raw.client_list()}:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0)  # until what it had sent is done, or never will be
        await asyncio.gather(answering, return_exceptions=True)
        self.workers[worker] = await self._worker()
        return told

    async def _worker(self) -> Engine:
        engine = Engine(StateStore(World.server.url), World.shelf)
        await engine.store.ping(timeout=5)
        return engine

    # ---------------------------------------------------------------- expecting

    def state_id(self, name: str) -> bytes | None:
        life = self.streams[name].life
        return None if life is None else self.ids[life.history]

    def stored(self, key: str) -> bytes | None:
        value = self.raw.get(key)
        assert not isinstance(value, str)
        return value

    def stored_id(self, name: str) -> bytes | None:
        raw = self.stored(self.record(name))
        return None if raw is None else decode(raw).chain

    def learn(self, history: tuple[Hashable, ...] | None, state_id: bytes | None) -> None:
        """Hold that equal histories have equal names, and others have others."""
        assert (history is None) == (state_id is None)
        if history is not None and state_id is not None:
            assert self.ids.setdefault(history, state_id) == state_id, "one history, two names"

    def expect(self, name: str, ask: Ask, told: Told, *, disturbed: bool = False) -> None:
        expected, after = self.streams[name].ask(ask, self.state_id(name))
        assert same(told, expected, disturbed=disturbed), f"{ask}: expected {expected}, got {told}"
        self.streams[name] = after
        self.learn(expected.history, told.state_id)
        self.check(name)

    def expect_told(self, name: str, told: Told, expected: Told, after: Stream) -> None:
        assert same(told, expected), f"{name}: expected {expected}, got {told}"
        self.streams[name] = after
        self.learn(expected.history, told.state_id)
        self.check(name)

    @staticmethod
    async def _told(asked: Awaitable[Position]) -> Told:
        try:
            return placed(await asked)
        except ServiceError as exc:
            return refused(exc)

    def expect_in_some_order(self, name: str, asks: list[Ask], told: list[Told]) -> None:
        """Hold the answers to requests that came at once against every order that they may have been taken in."""
        orders = itertools.permutations(range(len(asks)))
        if not any(self._explains(name, asks, told, order) for order in orders):
            raise AssertionError(f"{asks} on {self.streams[name]}: no order explains {told}")
        self.check(name)

    def _explains(self, name: str, asks: list[Ask], told: list[Told], order: Sequence[int]) -> bool:
        stream, ids = self.streams[name], dict(self.ids)
        for at in order:
            expected, stream = stream.ask(asks[at], None if stream.life is None else ids[stream.life.history])
            if not same(told[at], expected):
                return False
            if (
                expected.history is not None
                and ids.setdefault(expected.history, told[at].state_id) != told[at].state_id
            ):
                return False
        if self.stored_id(name) != (None if stream.life is None else ids[stream.life.history]):
            return False
        self.streams[name], self.ids = stream, ids
        return True

    def check(self, name: str) -> None:
        """Hold what is stored against what has to be."""
        raw, life = self.stored(self.record(name)), self.streams[name].life
        assert (raw is None) == (life is None), (raw, life)
        if raw is not None and life is not None:
            record = decode(raw)
            assert (record.step, record.length, record.chain) == (life.step, life.length, self.ids[life.history])
            assert int.from_bytes(record.state, "little", signed=True) == life.value
        assert len(set(self.ids.values())) == len(self.ids), "two histories, one name"
        for key in KEYS:
            is_there = self.raw.exists(entry_key(self.record(name), key)) == 1
            assert is_there == (key in self.streams[name].entries), key
        has_snapshot = self.raw.exists(snapshots_key(self.record(name))) == 1
        assert has_snapshot == (self.streams[name].snapshot is not None)
        assert (self.raw.exists(last_words_key(self.record(name))) == 1) == (self.streams[name].words is not None)


def placed(at: Position) -> Told:
    return Told("replayed" if at.replayed else "applied", (), at.step, state_id=at.state_id)


def refused(exc: ServiceError) -> Told:
    is_right = exc.applied == ("yes" if exc.code == "seq_passed" else "no")
    what = exc.code if is_right else f"{exc.code}, applied: {exc.applied}"
    return Told(what, (), exc.step, None, exc.expected, state_id=exc.state_id)


def same(told: Told, expected: Told, *, disturbed: bool = False) -> bool:
    """Whether an answer is the expected one; `disturbed`: the first one may have been lost on the way."""
    if disturbed and (told.what, expected.what) == ("replayed", "applied"):
        told = replace(told, what="applied", created=expected.created)
    has_id = (told.state_id is None) == (expected.history is None)
    return has_id and replace(told, state_id=None) == replace(expected, history=None)


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder, server(Path(folder) / "r") as World.server:
        World.shelf = ModelShelf([write_models(Path(folder) / "models", fold=fold)], StepModel)
        assert not asyncio.run(World.shelf.reload()).failed
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("world")
@pytest.mark.timeout(0)
def test_two_workers_answer_as_the_protocol_over_a_fold_says() -> None:
    run_state_machine_as_test(
        ExactlyOnce,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=OPERATIONS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
