"""Random forks, snapshots, resets, imports and rollouts: each applied once, as the reference model expects.

CI runs a part; for more: STEPWELL_MACHINE=2000x60, runs x operations.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from msgspec.structs import replace as replace_struct

from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.addons.copies.values import ImportedState
from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.store.record import decode
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey
from tests.addons.rollouts.harness import rollouts_of
from tests.engine.harness import FOLD, step, ys
from tests.exactly_once.copies_model import CopiesModel, CopyRequest, CopyResponse
from tests.exactly_once.machines import Shared, run_machine

RUNS, OPERATIONS = (int(part) for part in os.environ.get("STEPWELL_MACHINE", "25x40").split("x"))

STREAMS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["s", "t"])
WORKERS = st.integers(0, 1)
HISTORIES = st.sampled_from([None, None, "now", "now", "before", "foreign"])
KEYS = st.sampled_from([None, None, None, "k1", "k2"])
XS = st.integers(-(2**63), 2**63 - 1)
FOREIGN = b"another history."
REQUESTS = st.one_of(
    st.builds(CopyRequest, st.just("step"), STREAMS, XS),
    st.builds(CopyRequest, st.just("rollout"), STREAMS, st.none() | XS, st.integers(1, 4)),
    st.builds(CopyRequest, st.just("fork"), STREAMS, name=st.none() | NAMES, to=STREAMS),
    st.builds(CopyRequest, st.just("snapshot"), STREAMS, name=NAMES),
    st.builds(CopyRequest, st.just("drop"), STREAMS, name=NAMES),
    st.builds(CopyRequest, st.just("rewind"), STREAMS, name=NAMES),
    st.builds(CopyRequest, st.just("state"), STREAMS, XS, st.integers(0, 3)),
)


class CopiesMachine(RuleBasedStateMachine):
    """Two engines on one store, three streams, and every operation that copies or changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"c{next(Shared.tenants)}"
        self.raw = Shared.server.client()
        self.ids: dict[tuple[Hashable, ...], bytes] = {}  # state ids by history
        self.model = CopiesModel(self.ids.__getitem__)
        self.sent: list[CopyRequest] = []
        self.loop = asyncio.Runner()
        self.workers: list[Engine] = []

    @initialize()
    def start(self) -> None:
        self.workers = [self.loop.run(self._worker()) for _ in range(2)]

    def teardown(self) -> None:
        for worker in self.workers:
            self.loop.run(worker.close())
        self.loop.close()
        self.raw.close()

    # ---------------------------------------------------------------- rules

    @rule(request=REQUESTS, history=HISTORIES, key=KEYS, worker=WORKERS)
    def send_request(self, request: CopyRequest, history: str | None, key: str | None, worker: int) -> None:
        self.expect(self.make_concrete(request, history, key), worker)

    @rule(which=st.integers(0, 2**16), worker=WORKERS)
    def send_late_copy(self, which: int, worker: int) -> None:
        """Send a copy of any earlier request, through either worker."""
        if copies := [request for request in self.sent if request.is_named]:
            self.expect(copies[-1 - which % len(copies)], worker)

    @rule(request=REQUESTS, history=HISTORIES, key=st.sampled_from(["k1", "k2"]), copies=st.integers(2, 4))
    def send_concurrent_copies(self, request: CopyRequest, history: str | None, key: str, copies: int) -> None:
        """One copy is applied and the others are replays, or all get the same error."""
        concrete_request = self.make_concrete(request, history, key)
        expected = [self.model.apply(concrete_request) for _ in range(copies)]

        async def send_all() -> list[tuple[CopyResponse, bytes | None]]:
            return await asyncio.gather(*(self.send(concrete_request, n % 2) for n in range(copies)))

        found = self.loop.run(send_all())
        self.check_state_id(expected[0].history, found[0][1])
        assert len({state_id for _, state_id in found}) == 1, found
        order = sorted((response for response, _ in found), key=lambda one: one.outcome)
        assert order == [
            replace(response, history=None) for response in sorted(expected, key=lambda one: one.outcome)
        ], concrete_request
        self.check()

    @rule(stream=STREAMS, x=XS, worker=WORKERS)
    def peek_and_roll_out(self, stream: str, x: int, worker: int) -> None:
        """A peek and an uncommitted rollout change nothing."""
        state, engine, key = self.model.streams.get(stream), self.workers[worker], self.key(stream)
        value, at = (0, 0) if state is None else (state.value, state.step)

        async def peek_then_roll_out() -> tuple[list[int], list[int]]:
            peeked = await engine.steps.peek(replace_struct(step(stream, x), key=key))
            ahead = await rollouts_of(engine).run(RolloutRequest(key, 2, {"x": np.array([x])}, feedback={"x": "y"}))
            assert (peeked.step, ahead.step) == (at + 1, at + 2)
            return ys(peeked), ahead.outputs["y"][0, :, 0].tolist()

        peeked, ahead = self.loop.run(peek_then_roll_out())
        model = CopiesModel(self.ids.__getitem__)
        model.streams = dict(self.model.streams)
        assert peeked == [model.apply(CopyRequest("step", stream, x)).ys[0]] == ahead[:1], value
        self.check()

    @rule(stream=STREAMS, worker=WORKERS)
    def delete_stream(self, stream: str, worker: int) -> None:
        self.loop.run(self.workers[worker].streams.delete(self.key(stream)))
        self.model.delete(stream)
        self.check()

    @rule()
    def flush_scripts(self) -> None:
        self.raw.script_flush()

    @rule(
        request=REQUESTS, history=HISTORIES, key=st.sampled_from(["k1", "k2"]), worker=WORKERS, ticks=st.integers(0, 12)
    )
    def kill_connections_during_a_request(
        self, request: CopyRequest, history: str | None, key: str, worker: int, ticks: int
    ) -> None:
        """If the response of an applied request is lost, the retry gets a replay and is not applied again."""
        concrete_request = self.make_concrete(request, history, key)

        async def send_and_kill() -> tuple[CopyResponse, bytes | None]:
            sending = asyncio.create_task(self.send(concrete_request, worker))
            for _ in range(ticks):
                await asyncio.sleep(0)
            self.raw.client_kill_filter(_type="normal", skipme=True)
            return await sending

        response, state_id = self.loop.run(send_and_kill())
        expected = self.model.apply(concrete_request)
        if (response.outcome, expected.outcome) == ("replayed", "applied"):
            response = replace(response, outcome="applied")
        assert response == replace(expected, history=None), concrete_request
        self.check_state_id(expected.history, state_id)
        self.check()

    # ---------------------------------------------------------------- sending

    def key(self, stream: str) -> StreamKey:
        return StreamKey(self.tenant, FOLD, stream)

    def make_concrete(self, request: CopyRequest, history: str | None, key: str | None) -> CopyRequest:
        """Return the request with `after` and `key` filled in from the state of its stream."""
        state = self.model.streams.get(request.stream)
        if request.operation == "drop":
            history = None  # this request has no `after`
        after = None if history is None else FOREIGN
        if state is not None and history == "now":
            after = self.ids[state.history]
        if state is not None and history == "before":
            after = self.ids.get(state.history[:-1], FOREIGN)
        return replace(request, after=after, key=key)

    async def send(self, request: CopyRequest, worker: int) -> tuple[CopyResponse, bytes | None]:
        """Send a request to a worker; return its response and state id."""
        self.sent.append(request)
        try:
            return await self._call_engine(self.workers[worker], request)
        except ServiceError as exc:
            return CopyResponse(exc.code if exc.applied == "no" else f"{exc.code}, applied: {exc.applied}"), None

    async def _call_engine(self, engine: Engine, request: CopyRequest) -> tuple[CopyResponse, bytes | None]:
        key = self.key(request.stream)
        named: dict[str, Any] = {"after": request.after, "idempotency_key": request.key}
        found: Any
        values: tuple[int, ...] = ()
        if request.operation == "step":
            found = await engine.steps.advance(replace_struct(step(request.stream, request.x or 0, **named), key=key))
            values = tuple(ys(found))
        elif request.operation == "rollout":
            inputs = {} if request.x is None else {"x": np.array([request.x])}
            rollout = RolloutRequest(key, request.number, inputs, feedback={"x": "y"}, commit=True)
            found = await rollouts_of(engine).run(replace(rollout, **named))
            values = tuple(found.outputs["y"][0, :, 0].tolist())
            assert found.next_inputs["x"].tolist() == found.outputs["y"].tolist()
        elif request.operation == "fork":
            found = await StreamCopies(engine).fork(
                key, self.key(request.to), snapshot=request.name, version=None, **named
            )
        elif request.operation == "snapshot":
            found = await StreamCopies(engine).create_snapshot(key, request.name or "", **named)
        elif request.operation == "drop":
            await StreamCopies(engine).delete_snapshot(key, request.name or "", idempotency_key=request.key)
            return CopyResponse("applied"), None
        elif request.operation == "rewind":
            found = await engine.streams.reset(key, snapshot=request.name, **named)
        else:
            given = ImportedState({"h": np.array([request.x])}, request.number)
            found = await StreamCopies(engine).put_state(key, engine.models.get(FOLD), given, **named)
        return CopyResponse("replayed" if found.replayed else "applied", found.step, None, values), found.state_id

    async def _worker(self) -> Engine:
        engine = Engine(StateStore(Shared.server.url), Shared.shelf)
        engine.streams.state_of_snapshot = StreamCopies(engine).state_of_snapshot
        await engine.store.ping(timeout=5)
        return engine

    # ---------------------------------------------------------------- checking

    def expect(self, request: CopyRequest, worker: int) -> None:
        expected = self.model.apply(request)
        response, state_id = self.loop.run(self.send(request, worker))
        assert response == replace(expected, history=None), request
        self.check_state_id(expected.history, state_id)
        self.check()

    def check_state_id(self, history: tuple[Hashable, ...] | None, state_id: bytes | None) -> None:
        """Check that equal histories have equal state ids, and different histories different ones."""
        assert (history is None) == (state_id is None), (history, state_id)
        if history is not None and state_id is not None:
            assert self.ids.setdefault(history, state_id) == state_id, "one history, two state ids"

    def check(self) -> None:
        """Compare the stored records with the reference model."""
        for name in ("a", "b", "c"):
            record, state = record_key(*self.key(name)), self.model.streams.get(name)
            raw = self.raw.get(record)
            assert (raw is None) == (state is None), (name, raw, state)
            if isinstance(raw, bytes) and state is not None:
                stored = decode(raw)
                assert (stored.step, stored.history_hash) == (state.step, self.ids[state.history])
                assert int.from_bytes(stored.state, "little", signed=True) == state.value
            kept: dict[Any, Any] = self.raw.hgetall(f"{record}:s")
            assert {snapshot.decode() for snapshot in kept} == {s for n, s in self.model.snapshots if n == name}
            for snapshot, value in kept.items():
                assert decode(value[8:]).history_hash == self.ids[self.model.snapshots[name, snapshot.decode()].history]
        assert len(set(self.ids.values())) == len(self.ids), "two histories, one state id"


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
@pytest.mark.timeout(0)
def test_copies_are_applied_once_as_the_reference_model_expects() -> None:
    run_machine(CopiesMachine, RUNS, OPERATIONS)
