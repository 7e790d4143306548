"""Whatever is forked, kept, rewound, put in and rolled out in whatever order: each once, as the protocol says.

CI runs a part of it; by hand: STEPWELL_MACHINE=2000x60, runs x operations.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec.structs import replace as of

from model_export.step_model import StepModel
from service.engine.engine import Engine
from service.engine.models import ModelShelf
from service.engine.types import GivenState, RolloutAsk, StreamKey
from service.errors import ServiceError
from service.store.keys import record_key
from service.store.record import decode
from service.store.redis import StateStore
from tests.engine.harness import FOLD, step, ys
from tests.exactly_once.copies import Ask, Told, World
from tests.graphs import fold, write_models
from tests.servers import Server, server

RUNS, OPERATIONS = (int(part) for part in os.environ.get("STEPWELL_MACHINE", "25x40").split("x"))

STREAMS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["s", "t"])
WORKERS = st.integers(0, 1)
HISTORIES = st.sampled_from([None, None, "now", "now", "before", "foreign"])
KEYS = st.sampled_from([None, None, None, "k1", "k2"])
XS = st.integers(-(2**63), 2**63 - 1)
FOREIGN = b"nobody's history"
ASKS = st.one_of(
    st.builds(Ask, st.just("step"), STREAMS, XS),
    st.builds(Ask, st.just("rollout"), STREAMS, st.none() | XS, st.integers(1, 4)),
    st.builds(Ask, st.just("fork"), STREAMS, name=st.none() | NAMES, to=STREAMS),
    st.builds(Ask, st.just("snapshot"), STREAMS, name=NAMES),
    st.builds(Ask, st.just("drop"), STREAMS, name=NAMES),
    st.builds(Ask, st.just("rewind"), STREAMS, name=NAMES),
    st.builds(Ask, st.just("state"), STREAMS, XS, st.integers(0, 3)),
)


class Place:
    """What outlives a run: the server and the loaded model."""

    server: Server
    shelf: ModelShelf
    tenants = itertools.count()


class Copies(RuleBasedStateMachine):
    """Two workers on one store, three streams, and everything that copies and moves them."""

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"c{next(Place.tenants)}"
        self.raw = Place.server.client()
        self.ids: dict[tuple[Hashable, ...], bytes] = {}  # state ids by what they name
        self.world = World(self.ids.__getitem__)
        self.sent: list[Ask] = []
        self.loop = asyncio.Runner()
        self.workers: list[Engine] = []

    @initialize()
    def begin(self) -> None:
        self.workers = [self.loop.run(self._worker()) for _ in range(2)]

    def teardown(self) -> None:
        for worker in self.workers:
            self.loop.run(worker.close())
        self.loop.close()
        self.raw.close()

    # ---------------------------------------------------------------- what happens

    @rule(ask=ASKS, history=HISTORIES, key=KEYS, worker=WORKERS)
    def one_asks(self, ask: Ask, history: str | None, key: str | None, worker: int) -> None:
        self.expect(self.concrete(ask, history, key), worker)

    @rule(which=st.integers(0, 2**16), worker=WORKERS)
    def a_copy_comes_late(self, which: int, worker: int) -> None:
        """Of any request that was ever sent, through either worker."""
        if copies := [ask for ask in self.sent if ask.is_named]:
            self.expect(copies[-1 - which % len(copies)], worker)

    @rule(ask=ASKS, history=HISTORIES, key=st.sampled_from(["k1", "k2"]), copies=st.integers(2, 4))
    def copies_come_at_once(self, ask: Ask, history: str | None, key: str, copies: int) -> None:
        """One of them is the first, whichever; the others are told the same, or nothing is done at all."""
        asked = self.concrete(ask, history, key)
        expected = [self.world.ask(asked) for _ in range(copies)]

        async def at_once() -> list[tuple[Told, bytes | None]]:
            return await asyncio.gather(*(self.answer(asked, n % 2) for n in range(copies)))

        found = self.loop.run(at_once())
        self.learn(expected[0].history, found[0][1])
        assert len({state_id for _, state_id in found}) == 1, found
        order = sorted((told for told, _ in found), key=lambda told: told.what)
        assert order == [replace(told, history=None) for told in sorted(expected, key=lambda told: told.what)], asked
        self.check()

    @rule(stream=STREAMS, x=XS, worker=WORKERS)
    def one_looks_ahead(self, stream: str, x: int, worker: int) -> None:
        """Which moves nothing."""
        life, engine, key = self.world.streams.get(stream), self.workers[worker], self.key(stream)
        value, at = (0, 0) if life is None else (life.value, life.step)

        async def look() -> tuple[list[int], list[int]]:
            peeked = await engine.peek(of(step(stream, x), key=key))
            ahead = await engine.rollout(RolloutAsk(key, 2, {"x": np.array([x])}, feedback={"x": "y"}))
            assert (peeked.step, ahead.step) == (at + 1, at + 2)
            return ys(peeked), ahead.outputs["y"][0, :, 0].tolist()

        peeked, ahead = self.loop.run(look())
        world = World(self.ids.__getitem__)
        world.streams = dict(self.world.streams)
        assert peeked == [world.ask(Ask("step", stream, x)).ys[0]] == ahead[:1], value
        self.check()

    @rule(stream=STREAMS, worker=WORKERS)
    def one_deletes(self, stream: str, worker: int) -> None:
        self.loop.run(self.workers[worker].delete(self.key(stream)))
        self.world.delete(stream)
        self.check()

    @rule()
    def the_scripts_are_flushed(self) -> None:
        self.raw.script_flush()

    @rule(ask=ASKS, history=HISTORIES, key=st.sampled_from(["k1", "k2"]), worker=WORKERS, ticks=st.integers(0, 12))
    def connections_are_killed_under_a_request(
        self, ask: Ask, history: str | None, key: str, worker: int, ticks: int
    ) -> None:
        """What was done and whose answer was lost on the way is told as a replay; never is it done twice."""
        asked = self.concrete(ask, history, key)

        async def disturbed() -> tuple[Told, bytes | None]:
            answering = asyncio.create_task(self.answer(asked, worker))
            for _ in range(ticks):
                await asyncio.sleep(0)
            self.raw.client_kill_filter(_type="normal", skipme=True)
            return await answering

        told, state_id = self.loop.run(disturbed())
        expected = self.world.ask(asked)
        if (told.what, expected.what) == ("replayed", "applied"):
            told = replace(told, what="applied")
        assert told == replace(expected, history=None), asked
        self.learn(expected.history, state_id)
        self.check()

    # ---------------------------------------------------------------- asking

    def key(self, stream: str) -> StreamKey:
        return StreamKey(self.tenant, FOLD, stream)

    def concrete(self, ask: Ask, history: str | None, key: str | None) -> Ask:
        """Return the request that is meant where its stream stands."""
        life = self.world.streams.get(ask.stream)
        if ask.what == "drop":
            history = None  # it takes none
        after = None if history is None else FOREIGN
        if life is not None and history == "now":
            after = self.ids[life.history]
        if life is not None and history == "before":
            after = self.ids.get(life.history[:-1], FOREIGN)
        return replace(ask, after=after, key=key)

    async def answer(self, ask: Ask, worker: int) -> tuple[Told, bytes | None]:
        """Return what a worker answers, and the state id in it."""
        self.sent.append(ask)
        try:
            return await self._do(self.workers[worker], ask)
        except ServiceError as exc:
            return Told(exc.code if exc.applied == "no" else f"{exc.code}, applied: {exc.applied}"), None

    async def _do(self, engine: Engine, ask: Ask) -> tuple[Told, bytes | None]:
        key = self.key(ask.stream)
        named: dict[str, Any] = {"after": ask.after, "idempotency_key": ask.key}
        found: Any
        told: tuple[int, ...] = ()
        if ask.what == "step":
            found = await engine.advance(of(step(ask.stream, ask.x or 0, **named), key=key))
            told = tuple(ys(found))
        elif ask.what == "rollout":
            inputs = {} if ask.x is None else {"x": np.array([ask.x])}
            asked = RolloutAsk(key, ask.number, inputs, feedback={"x": "y"}, commit=True)
            found = await engine.rollout(replace(asked, **named))
            told = tuple(found.outputs["y"][0, :, 0].tolist())
            assert found.followed["x"].tolist() == found.outputs["y"].tolist()
        elif ask.what == "fork":
            found = await engine.copies.fork(key, self.key(ask.to), snapshot=ask.name, version=None, **named)
        elif ask.what == "snapshot":
            found = await engine.copies.take_snapshot(key, ask.name or "", **named)
        elif ask.what == "drop":
            await engine.copies.delete_snapshot(key, ask.name or "", idempotency_key=ask.key)
            return Told("applied"), None
        elif ask.what == "rewind":
            found = await engine.reset(key, snapshot=ask.name, **named)
        else:
            given = GivenState({"h": np.array([ask.x])}, ask.number)
            found = await engine.resets.to_state(key, engine.shelf.get(FOLD), given, **named)
        return Told("replayed" if found.replayed else "applied", found.step, None, told), found.state_id

    async def _worker(self) -> Engine:
        engine = Engine(StateStore(Place.server.url), Place.shelf)
        await engine.store.ping(timeout=5)
        return engine

    # ---------------------------------------------------------------- expecting

    def expect(self, ask: Ask, worker: int) -> None:
        expected = self.world.ask(ask)
        told, state_id = self.loop.run(self.answer(ask, worker))
        assert told == replace(expected, history=None), ask
        self.learn(expected.history, state_id)
        self.check()

    def learn(self, history: tuple[Hashable, ...] | None, state_id: bytes | None) -> None:
        """Hold that equal histories have equal names, and others have others."""
        assert (history is None) == (state_id is None), (history, state_id)
        if history is not None and state_id is not None:
            assert self.ids.setdefault(history, state_id) == state_id, "one history, two names"

    def check(self) -> None:
        """Hold what is stored against what has to be."""
        for name in ("a", "b", "c"):
            record, life = record_key(*self.key(name)), self.world.streams.get(name)
            raw = self.raw.get(record)
            assert (raw is None) == (life is None), (name, raw, life)
            if isinstance(raw, bytes) and life is not None:
                stored = decode(raw)
                assert (stored.step, stored.chain) == (life.step, self.ids[life.history])
                assert int.from_bytes(stored.state, "little", signed=True) == life.value
            kept: dict[Any, Any] = self.raw.hgetall(f"{record}:s")
            assert {snapshot.decode() for snapshot in kept} == {s for n, s in self.world.snapshots if n == name}
            for snapshot, value in kept.items():
                assert decode(value[8:]).chain == self.ids[self.world.snapshots[name, snapshot.decode()].history]
        assert len(set(self.ids.values())) == len(self.ids), "two histories, one name"


@pytest.fixture(scope="module")
def place() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder, server(Path(folder) / "r") as Place.server:
        Place.shelf = ModelShelf([write_models(Path(folder) / "models", fold=fold)], StepModel)
        assert not asyncio.run(Place.shelf.reload()).failed
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.timeout(0)
def test_copies_are_made_once_and_are_what_the_protocol_says() -> None:
    run_state_machine_as_test(
        Copies,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=OPERATIONS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
