"""Random requests and faults: two workers on one store answer as the reference model of the protocol expects.

CI runs a part; for more: STEPWELL_MACHINE=2000x60, runs x operations.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Coroutine, Hashable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.addons.copies.values import ImportedState
from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.store.keys import end_entry_key, idempotency_key_of, record_key, snapshots_key
from stepwell.store.record import decode
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey, StreamPosition
from tests.engine.harness import FOLD, chunk, ys
from tests.exactly_once.machines import Shared, run_machine
from tests.exactly_once.protocol_model import ForkRequest, LiveStream, StreamModel, StreamRequest, StreamResponse
from tests.graphs import fold_reference

RUNS, OPERATIONS = (int(part) for part in os.environ.get("STEPWELL_MACHINE", "60x40").split("x"))

NAMES = ("a", "b")
KEYS = ("k1", "k2")
FOREIGN = b"another history."

Template = dict[str, Any]  # a request, relative to the state of its stream

STREAMS = st.sampled_from(NAMES)
WORKERS = st.integers(0, 1)
TICKS = st.integers(0, 12)  # event loop iterations before a fault hits the request
INPUTS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3).map(tuple)
STEPS: st.SearchStrategy[Template] = st.fixed_dictionaries({
    "xs": INPUTS,
    "place": st.sampled_from([None, 1, 1, 1, 0, -1, -2, 2, 9]),  # `seq`, relative to the step of the stream
    "history": st.sampled_from([None, None, "now", "now", "before", "foreign"]),
    "key": st.sampled_from([None, None, None, *KEYS]),
    "create": st.sampled_from(["auto", "auto", "auto", "never", "must"]),
    "keep": st.sampled_from(["all", "all", "last", "none"]),
})  # fmt: skip
RESETS: st.SearchStrategy[Template] = st.fixed_dictionaries({
    "xs": st.just(()),
    "to": st.sampled_from(["initial", "initial", "snapshot", "state"]),
    "given": st.tuples(st.integers(-9, 9), st.integers(0, 3)),
    "history": st.sampled_from([None, "now", "now", "before"]),
    "key": st.sampled_from([None, *KEYS]),
})  # fmt: skip
STARTS: st.SearchStrategy[Template] = st.fixed_dictionaries({
    "xs": INPUTS,
    "life": st.sampled_from(["new", "new", "whole"]),
    "seq": st.sampled_from([None, None, 1]),
    "key": st.sampled_from([None, None, *KEYS]),
    "keep": st.sampled_from(["all", "all", "last", "none"]),
})  # fmt: skip
ENDS: st.SearchStrategy[Template] = st.fixed_dictionaries({
    "xs": INPUTS,
    "life": st.just("last"),
    "place": st.sampled_from([None, 1, 1, 1, 0, -1, 2]),
    "history": st.sampled_from([None, None, "now", "before"]),
    "key": st.sampled_from([None, None, *KEYS]),
    "create": st.just("never"),
    "keep": st.sampled_from(["all", "all", "last", "none"]),
})  # fmt: skip
REQUESTS = st.one_of(STEPS, STEPS, STEPS, RESETS, STARTS, ENDS)
THREE_STEPS = st.lists(
    STEPS, min_size=3, max_size=3
)  # no resets: among three requests they would make the order ambiguous


class ExactlyOnceMachine(RuleBasedStateMachine):
    """Two engines on one store, two streams, and every request and fault."""

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"t{next(Shared.tenants)}"
        self.raw = Shared.server.client()
        self.streams = {name: StreamModel() for name in NAMES}
        self.ids: dict[tuple[Hashable, ...], bytes | None] = {}  # state ids by history
        self.sent: list[tuple[str, StreamRequest]] = []
        self.saved: dict[str, tuple[StreamModel, dict[str, bytes | None]]] = {}
        self.loop = asyncio.Runner()
        self.workers: list[Engine] = []

    @initialize()
    def start(self) -> None:
        self.workers = [self.run(self._worker()), self.run(self._worker())]

    def teardown(self) -> None:
        for worker in self.workers:
            self.run(worker.close())
        self.loop.close()
        self.raw.close()

    # ---------------------------------------------------------------- rules: requests

    @rule(name=STREAMS, worker=WORKERS, step=REQUESTS)
    def send_request(self, name: str, worker: int, step: Template) -> None:
        request = self.make_concrete(name, step)
        self.expect(name, request, self.run(self.send(worker, name, request)))

    @rule(name=STREAMS, worker=WORKERS, xs=INPUTS)
    def send_next_step(self, name: str, worker: int, xs: tuple[int, ...]) -> None:
        """Send the next step with `seq` and `after`, so that histories get long."""
        self.send_request(name, worker, {"xs": xs, "place": 1, "history": "now" if self.streams[name].life else None})

    @rule(worker=WORKERS, which=st.integers(0, 2**16))
    def send_late_copy(self, worker: int, which: int) -> None:
        """Send a copy of any earlier request, through either worker."""
        copies = [(name, request) for name, request in self.sent if request.is_named]
        if copies:
            name, request = copies[-1 - which % len(copies)]
            self.expect(name, request, self.run(self.send(worker, name, request)))

    @rule(name=STREAMS, worker=WORKERS, copies=st.lists(WORKERS, max_size=2), step=ENDS)
    def end_stream(self, name: str, worker: int, copies: list[int], step: Template) -> None:
        """End a stream at its current step, with retries."""
        request = self.make_concrete(name, {**step, "place": 1, "history": None})
        for each in (worker, *copies):
            self.expect(name, request, self.run(self.send(each, name, request)))

    @rule(name=STREAMS, step=REQUESTS, copies=st.lists(WORKERS, min_size=2, max_size=4))
    def send_concurrent_copies(self, name: str, step: Template, copies: list[int]) -> None:
        request = self.make_concrete(name, step)
        if not request.is_named:
            request = replace(request, key=KEYS[0])
        self.expect_in_some_order(
            name, [request] * len(copies), self.run(self.send_all(name, [request] * len(copies), copies))
        )

    @rule(name=STREAMS, steps=st.one_of(st.lists(REQUESTS, min_size=2, max_size=2), THREE_STEPS), first=WORKERS)
    def send_concurrent_requests(self, name: str, steps: list[Template], first: int) -> None:
        requests = [self.make_concrete(name, step) for step in steps]
        workers = [(first + n) % 2 for n in range(len(requests))]
        self.expect_in_some_order(name, requests, self.run(self.send_all(name, requests, workers)))

    @rule(name=STREAMS, worker=WORKERS)
    def delete_stream(self, name: str, worker: int) -> None:
        self.run(self.workers[worker].streams.delete(self.key(name)))
        self.streams[name] = replace(self.streams[name], life=None, snapshot=None)
        self.check(name)

    @rule(name=STREAMS, worker=WORKERS, history=st.sampled_from([None, "now", "now", "before", "foreign"]))
    def take_snapshot(self, name: str, worker: int, history: str | None) -> None:
        after = self.make_concrete(name, {"xs": (), "history": history}).after
        response = self.run(self._position_response(StreamCopies(self.workers[worker]).create_snapshot(
            self.key(name), "s", after=after, idempotency_key=None
        )))  # fmt: skip
        expected, stream = self.streams[name].take_snapshot(after, self.ids)
        self.expect_response(name, response, expected, stream)

    @rule(
        name=STREAMS, copies=st.lists(WORKERS, min_size=1, max_size=3), of_snapshot=st.booleans(),
        history=st.sampled_from([None, "now", "now", "before", "foreign"]), key=st.sampled_from([None, *KEYS]),
    )  # fmt: skip
    def fork_stream(
        self, name: str, copies: list[int], of_snapshot: bool, history: str | None, key: str | None
    ) -> None:
        """Fork onto the other stream, with retries."""
        [other] = set(NAMES) - {name}
        fork = ForkRequest(
            name, other, of_snapshot, self.make_concrete(name, {"xs": (), "history": history}).after, key
        )
        for worker in copies:
            response = self.run(self._position_response(StreamCopies(self.workers[worker]).fork(
                self.key(name), self.key(other), snapshot="s" if of_snapshot else None, version=None,
                after=fork.after, idempotency_key=key,
            )))  # fmt: skip
            self.expect_response(other, response, *fork.expected(self.streams, self.ids))

    @rule(name=STREAMS, worker=WORKERS, xs=INPUTS)
    def peek(self, name: str, worker: int, xs: tuple[int, ...]) -> None:
        """A peek ignores a stale cache and changes nothing."""
        life = self.streams[name].life or LiveStream()
        found = self.run(self.workers[worker].steps.peek(msgspec.structs.replace(chunk(name, xs), key=self.key(name))))

        assert (tuple(ys(found)), found.step) == (tuple(fold_reference(xs, start=life.value)), life.step + len(xs))
        self.check(name)

    # ---------------------------------------------------------------- rules: faults

    @rule()
    def flush_scripts(self) -> None:
        self.raw.script_flush()

    @rule(name=STREAMS, worker=WORKERS, step=REQUESTS, ticks=TICKS)
    def kill_connections_during_a_request(self, name: str, worker: int, step: Template, ticks: int) -> None:
        request = self.make_concrete(name, step)
        if request.life == "whole" and request.key is None:  # leaves nothing that identifies a retry
            request = replace(request, key=KEYS[0])

        async def disturbed() -> StreamResponse:
            sending = asyncio.create_task(self.send(worker, name, request))
            await yield_to_loop(ticks)
            self.raw.client_kill_filter(_type="normal", skipme=True)
            return await sending

        self.expect(name, request, self.run(disturbed()), disturbed=True)

    @rule(name=STREAMS, worker=WORKERS, step=REQUESTS, ticks=TICKS)
    def kill_worker_during_a_request(self, name: str, worker: int, step: Template, ticks: int) -> None:
        """Stop the worker during a request, and retry on the other worker."""
        request = self.make_concrete(name, step)
        response = self.run(self._send_and_stop_worker(worker, name, request, ticks))
        if response is not None:
            self.expect(name, request, response)
            return
        expected, after = self.streams[name].apply(request, self.state_id(name))
        remembers = any(self.raw.exists(key) for key in self.new_entries(name, request))
        if remembers or self.stored_id(name) != self.state_id(name):  # it was applied, so it must be applied completely
            assert expected.outcome == "applied", expected
            self.streams[name] = after
            if after.life is not None:
                self.check_state_id(expected.history, self.stored_id(name))
        self.check(name)
        if request.is_named:
            self.expect(name, request, self.run(self.send(1 - worker, name, request)))

    @rule(name=STREAMS)
    def expire_stream(self, name: str) -> None:
        self.raw.pexpire(self.record(name), 1)
        while self.raw.exists(self.record(name)):
            pass
        self.streams[name] = replace(self.streams[name], life=None)

    @rule(name=STREAMS, key=st.sampled_from(KEYS))
    def expire_key(self, name: str, key: str) -> None:
        self.raw.delete(idempotency_key_of(self.record(name), key))
        stream = self.streams[name]
        entries = {k: v for k, v in stream.entries.items() if k != key}
        self.streams[name] = replace(stream, entries=entries)

    @rule(name=STREAMS)
    def expire_end_entry(self, name: str) -> None:
        self.raw.delete(end_entry_key(self.record(name)))
        self.streams[name] = replace(self.streams[name], end_entry=None)

    @rule(name=STREAMS)
    def save_store(self, name: str) -> None:
        self.saved[name] = self.streams[name], {key: self.stored(key) for key in self.all_keys(name)}

    @rule(name=STREAMS)
    def restore_store(self, name: str) -> None:
        """Restore the saved records, as a failover to a stale replica does."""
        if name in self.saved:
            snapshot = self.streams[name].snapshot  # snapshots are not saved by this machine
            saved, values = self.saved[name]
            self.streams[name] = replace(saved, snapshot=snapshot)
            for key, value in values.items():
                if value is None:
                    self.raw.delete(key)
                else:
                    self.raw.set(key, value, px=10**8)
            self.check(name)

    # ---------------------------------------------------------------- sending

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work)

    def key(self, name: str) -> StreamKey:
        return StreamKey(self.tenant, FOLD, name)

    def record(self, name: str) -> str:
        return record_key(*self.key(name))

    def all_keys(self, name: str) -> list[str]:
        record = self.record(name)
        return [record, end_entry_key(record), *(idempotency_key_of(record, key) for key in KEYS)]

    def new_entries(self, name: str, request: StreamRequest) -> list[str]:
        """Return the key of the idempotency entry that a request creates, if it creates one."""
        is_new = request.key is not None and request.key not in self.streams[name].entries
        return [idempotency_key_of(self.record(name), str(request.key))] if is_new else []

    def make_concrete(self, name: str, step: Template) -> StreamRequest:
        """Return the request that a template means in the current state of its stream."""
        life = self.streams[name].life
        seq = None if step.get("place") is None else max(1, (life.step if life else 0) + step["place"])
        seq = step.get("seq", seq)
        histories = {
            None: None,
            "foreign": FOREIGN,
            "now": self.state_id(name) or FOREIGN,
            "before": self.ids.get(life.history[:-1], FOREIGN) if life else FOREIGN,
        }
        return StreamRequest(
            step["xs"], seq, histories[step.get("history")], step.get("key"), step.get("create", "auto"),
            step.get("keep", "all"), step.get("life", "on"), step.get("to", "initial"),
            step["given"] if step.get("to") == "state" else (0, 0),
        )  # fmt: skip

    async def send(self, worker: int, name: str, request: StreamRequest) -> StreamResponse:
        """Send a request to a worker and return its response."""
        self.sent.append((name, request))
        engine, key = self.workers[worker], self.key(name)
        try:
            if not request.xs:
                return position_response(await self._reset(engine, key, request))
            timestep = chunk(
                name, request.xs, seq=request.seq, after=request.after, idempotency_key=request.key,
                create=request.create, keep=request.keep, lifecycle=request.life,
            )  # fmt: skip
            found = await engine.steps.advance(msgspec.structs.replace(timestep, key=key))
        except ServiceError as exc:
            return error_response(exc)
        outcome = "replayed" if found.replayed else "applied"
        values = tuple(ys(found)) if found.outputs else ()
        return StreamResponse(outcome, values, found.step, state_id=found.state_id, created=found.created)

    @staticmethod
    async def _reset(engine: Engine, key: StreamKey, request: StreamRequest) -> StreamPosition:
        if request.to == "state":
            value, step = request.given
            given = ImportedState({"h": np.array([value], np.int64)}, step)
            served = Shared.shelf.get(FOLD)
            copies = StreamCopies(engine)
            return await copies.put_state(key, served, given, after=request.after, idempotency_key=request.key)
        snapshot = "s" if request.to == "snapshot" else None
        return await engine.streams.reset(key, snapshot=snapshot, after=request.after, idempotency_key=request.key)

    async def send_all(self, name: str, requests: list[StreamRequest], workers: list[int]) -> list[StreamResponse]:
        answers = [self.send(worker, name, request) for worker, request in zip(workers, requests, strict=True)]
        return await asyncio.gather(*answers)

    async def _send_and_stop_worker(
        self, worker: int, name: str, request: StreamRequest, ticks: int
    ) -> StreamResponse | None:
        """Send a request and stop the worker some event loop iterations later; return None if it had not answered."""
        sending = asyncio.create_task(self.send(worker, name, request))
        await yield_to_loop(ticks)
        response = sending.result() if sending.done() else None
        [other] = await self.workers[1 - worker].store.transport.call(("CLIENT", "ID"))
        own_connections = {int(c["id"]) for c in self.raw.client_list()} - {other, self.raw.client_id()}
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await self.workers[worker].close()
        while own_connections & {int(c["id"]) for c in self.raw.client_list()}:  # noqa: ASYNC110 - the server publishes no event
            await asyncio.sleep(0)  # until the server has processed or dropped its commands
        await asyncio.gather(sending, return_exceptions=True)
        self.workers[worker] = await self._worker()
        return response

    async def _worker(self) -> Engine:
        engine = Engine(StateStore(Shared.server.url), Shared.shelf)
        engine.streams.state_of_snapshot = StreamCopies(engine).state_of_snapshot
        await engine.store.ping(timeout=5)
        return engine

    # ---------------------------------------------------------------- checking

    def state_id(self, name: str) -> bytes | None:
        life = self.streams[name].life
        return None if life is None else self.ids[life.history]

    def stored(self, key: str) -> bytes | None:
        value = self.raw.get(key)
        assert not isinstance(value, str)
        return value

    def stored_id(self, name: str) -> bytes | None:
        raw = self.stored(self.record(name))
        return None if raw is None else decode(raw).history_hash

    def check_state_id(self, history: tuple[Hashable, ...] | None, state_id: bytes | None) -> None:
        """Check that equal histories have equal state ids, and different histories different ones."""
        assert (history is None) == (state_id is None)
        if history is not None and state_id is not None:
            assert self.ids.setdefault(history, state_id) == state_id, "one history, two state ids"

    def expect(self, name: str, request: StreamRequest, response: StreamResponse, *, disturbed: bool = False) -> None:
        expected, after = self.streams[name].apply(request, self.state_id(name))
        assert matches(response, expected, disturbed=disturbed), f"{request}: expected {expected}, got {response}"
        self.streams[name] = after
        self.check_state_id(expected.history, response.state_id)
        self.check(name)

    def expect_response(
        self, name: str, response: StreamResponse, expected: StreamResponse, after: StreamModel
    ) -> None:
        assert matches(response, expected), f"{name}: expected {expected}, got {response}"
        self.streams[name] = after
        self.check_state_id(expected.history, response.state_id)
        self.check(name)

    @staticmethod
    async def _position_response(pending: Awaitable[StreamPosition]) -> StreamResponse:
        try:
            return position_response(await pending)
        except ServiceError as exc:
            return error_response(exc)

    def expect_in_some_order(self, name: str, requests: list[StreamRequest], responses: list[StreamResponse]) -> None:
        """Check that some order of concurrent requests explains their responses."""
        orders = itertools.permutations(range(len(requests)))
        if not any(self._order_explains(name, requests, responses, order) for order in orders):
            raise AssertionError(f"{requests} on {self.streams[name]}: no order explains {responses}")
        self.check(name)

    def _order_explains(
        self, name: str, requests: list[StreamRequest], responses: list[StreamResponse], order: Sequence[int]
    ) -> bool:
        stream, ids = self.streams[name], dict(self.ids)
        for at in order:
            expected, stream = stream.apply(requests[at], None if stream.life is None else ids[stream.life.history])
            if not matches(responses[at], expected):
                return False
            if (
                expected.history is not None
                and ids.setdefault(expected.history, responses[at].state_id) != responses[at].state_id
            ):
                return False
        if self.stored_id(name) != (None if stream.life is None else ids[stream.life.history]):
            return False
        self.streams[name], self.ids = stream, ids
        return True

    def check(self, name: str) -> None:
        """Compare the stored record with the reference model."""
        raw, life = self.stored(self.record(name)), self.streams[name].life
        assert (raw is None) == (life is None), (raw, life)
        if raw is not None and life is not None:
            record = decode(raw)
            assert (record.step, record.length, record.history_hash) == (life.step, life.length, self.ids[life.history])
            assert int.from_bytes(record.state, "little", signed=True) == life.value
        assert len(set(self.ids.values())) == len(self.ids), "two histories, one state id"
        for key in KEYS:
            exists = self.raw.exists(idempotency_key_of(self.record(name), key)) == 1
            assert exists == (key in self.streams[name].entries), key
        has_snapshot = self.raw.exists(snapshots_key(self.record(name))) == 1
        assert has_snapshot == (self.streams[name].snapshot is not None)
        assert (self.raw.exists(end_entry_key(self.record(name))) == 1) == (self.streams[name].end_entry is not None)


def position_response(at: StreamPosition) -> StreamResponse:
    return StreamResponse("replayed" if at.replayed else "applied", (), at.step, state_id=at.state_id)


def error_response(exc: ServiceError) -> StreamResponse:
    is_right = exc.applied == ("yes" if exc.code == "seq_passed" else "no")
    outcome = exc.code if is_right else f"{exc.code}, applied: {exc.applied}"
    return StreamResponse(outcome, (), exc.step, None, exc.expected, state_id=exc.state_id)


def matches(response: StreamResponse, expected: StreamResponse, *, disturbed: bool = False) -> bool:
    """Return whether a response is the expected one; with `disturbed`, the first response may have been lost."""
    if disturbed and (response.outcome, expected.outcome) == ("replayed", "applied"):
        response = replace(response, outcome="applied", created=expected.created)
    has_id = (response.state_id is None) == (expected.history is None)
    return has_id and replace(response, state_id=None) == replace(expected, history=None)


async def yield_to_loop(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
@pytest.mark.timeout(0)
def test_two_workers_answer_as_the_reference_model_expects() -> None:
    run_machine(ExactlyOnceMachine, RUNS, OPERATIONS)
