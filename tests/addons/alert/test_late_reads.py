"""What an alert process concludes from responses, commits and refusals that it reads too late or in another order."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.alert.evaluation import RuleEvaluation
from stepwell.addons.alert.event_logs import EventLogs, StreamTail
from stepwell.addons.alert.follower import StreamFollower
from stepwell.addons.alert.rules import AlarmRule, FollowedModel
from stepwell.addons.alert.store import AlertStore
from stepwell.addons.alert.stream_state import StreamUpdate
from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.watch.refusals import RefusalLog, RefusalReader
from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument
from tests.addons.connect.connectors import wait_for
from tests.addons.watch.engines import watched_worker
from tests.engine.harness import FOLD, step
from tests.graphs import fold, write_models
from tests.servers import Server

STREAM = "one"


class StallingLogs(EventLogs):
    """Event logs; the process stalls after it has received the ends of them.

    Attributes:
        offset_ms: What the follower's clock differs from the store's.
        stall_ms: How long the process stalls after each read of the ends.
    """

    offset_ms = 0
    stall_ms = 0

    async def tails(self, streams: Sequence[str]) -> list[StreamTail]:
        found = await super().tails(streams)
        self.offset_ms += self.stall_ms
        return found

    def now_ms(self) -> int:
        return int(time.time() * 1000) + self.offset_ms


@pytest.fixture
async def engine(redis_server: Server, tmp_path: Path) -> AsyncIterator[Engine]:
    async with watched_worker(redis_server.url, write_models(tmp_path, fold), history={FOLD: 16}) as one:
        yield one


@pytest.fixture
async def store(redis_server: Server) -> AsyncIterator[StateStore]:
    one = StateStore(redis_server.url)
    yield one
    await one.close()


@pytest.fixture
def logs(store: StateStore) -> StallingLogs:
    return StallingLogs(store, "default", FOLD)


def follower_of(
    store: StateStore,
    logs: StallingLogs,
    *,
    silent_s: float | None = None,
    expired: bool = False,
    refused: int | None = None,
) -> StreamFollower:
    rules = [AlarmRule("rule", FOLD, "", None, 1, None, 1, silent_s, expired, refused)]
    ids = itertools.count(1)
    one = StreamFollower(
        FollowedModel(FOLD, rules, {"x": 1}, int(store.stream_ttl_s * 1000), 10.0),
        logs,
        RefusalReader(store, "default", FOLD),
        RuleEvaluation(FOLD, rules, lambda: str(next(ids))),
        logs.now_ms,
        AlertCounters(),
        "group",
    )
    one.load({})
    return one


def passed(*, microseconds: int) -> Callable[[], bool]:
    """Return a condition: so much time has passed by the clock of refusals."""
    until = time.time_ns() + microseconds * 1000
    return lambda: time.time_ns() >= until


def states_of(follower: StreamFollower) -> list[str]:
    return [msgspec.json.decode(one)["state"] for one in follower.take_writes().sent]


async def test_a_response_that_waited_longer_than_the_silence_raises_no_alarm(
    engine: Engine, store: StateStore, logs: StallingLogs
) -> None:
    follower = follower_of(store, logs, silent_s=60.0)
    await engine.steps.advance(step(STREAM, 1))
    await follower.catch_up()
    logs.stall_ms = 61_000  # the stream may have been stepped meanwhile
    await follower.catch_up()

    assert states_of(follower) == []


async def test_the_time_of_a_commit_that_was_taken_as_too_early_is_corrected(
    engine: Engine, store: StateStore, logs: StallingLogs
) -> None:
    follower = follower_of(store, logs, silent_s=4.8)
    await engine.steps.advance(step(STREAM, 1))
    logs.offset_ms = -4900
    await follower.catch_up()
    logs.offset_ms = 0
    await follower.check_due()

    assert states_of(follower) == []


async def test_a_refusal_after_a_commit_that_is_evaluated_late_stays_raised(
    engine: Engine, store: StateStore, logs: StallingLogs
) -> None:
    follower, refusals = follower_of(store, logs, refused=1), RefusalLog(store, {FOLD: 16})
    first = await engine.steps.advance(step(STREAM, 1))
    await follower.catch_up()
    await follower.follow_refusals()
    await follower.follow([(STREAM, StreamUpdate(1, 1, first.state_id, {}, {}))])
    second = await engine.steps.advance(step(STREAM, 2))
    refusals.refused("default", FOLD, STREAM, ServiceError("non_finite", "NaN"))
    await refusals.flush()
    logs.offset_ms = 4000  # the message of the watch is read so late
    await follower.follow([(STREAM, StreamUpdate(2, 1, second.state_id, {}, {}))])
    logs.offset_ms = 0
    await follower.follow_refusals()

    assert states_of(follower) == ["raised"]


async def test_refused_timesteps_are_counted_between_the_commits_whenever_they_are_read(
    engine: Engine, store: StateStore, logs: StallingLogs
) -> None:
    follower = follower_of(store, logs, refused=2)
    one, other = RefusalLog(store, {FOLD: 16}), RefusalLog(store, {FOLD: 16})

    async def refuse(*, by: RefusalLog = one) -> None:
        await asyncio.to_thread(wait_for, passed(microseconds=200))
        by.refused("default", FOLD, STREAM, ServiceError("non_finite", "NaN"))

    await engine.steps.advance(step(STREAM, 1))
    await follower.catch_up()
    await follower.follow_refusals()
    for number in (2, 3):  # one refused timestep before each, all in one write
        await refuse()
        await engine.steps.advance(step(STREAM, number))
    await one.flush()
    await follower.follow_refusals()
    alone = states_of(follower)

    await refuse()
    await refuse(by=other)  # a second one of the same row, which is written after a commit and by another worker
    await one.flush()
    await engine.steps.advance(step(STREAM, 4))
    await follower.catch_up()
    await follower.follow_refusals()
    before = states_of(follower)
    await refuse()
    await one.flush()
    await follower.follow_refusals()
    await other.flush()
    await follower.follow_refusals()
    passed_row = states_of(follower)

    await refuse()
    await one.flush()
    await follower.follow_refusals()

    assert (alone, before, passed_row) == ([], [], ["raised", "cleared"])
    assert states_of(follower) == ["raised"]


async def test_a_stream_that_expires_while_the_process_stalls_is_not_taken_as_deleted(
    redis_server: Server, tmp_path: Path
) -> None:
    store = StateStore(redis_server.url, stream_ttl_s=1.0)
    logs = StallingLogs(store, "default", FOLD)
    models = write_models(tmp_path, fold)
    async with watched_worker(redis_server.url, models, history={FOLD: 16}, stream_ttl_s=1.0) as engine:
        follower = follower_of(store, logs, expired=True)
        await engine.steps.advance(step(STREAM, 1))
        logs.stall_ms = 4000
        await follower.catch_up()
        logs.stall_ms = logs.offset_ms = 0
        await asyncio.to_thread(wait_for, lambda: not redis_server.client().exists(record_key("default", FOLD, STREAM)))
        await follower.catch_up()
    await store.close()

    assert states_of(follower) == ["raised"]


class StallingStore(StateStore):
    """A store; the process stalls when it has received a reply."""

    stall_s = 0.0

    async def execute(self, deadline: float, *command: Argument) -> Any:
        reply = await super().execute(deadline, *command)
        threading.Event().wait(self.stall_s)
        return reply


async def test_a_stalled_renewal_of_the_lease_does_not_set_the_clock_back(redis_server: Server) -> None:
    store = StallingStore(redis_server.url)
    entry = AlertStore(store, "default", "group").lease
    lease = Lease(entry, "process", lease_s=1.0)
    assert await lease.acquire()
    before = entry.now_ms()
    store.stall_s = 0.5
    await lease.acquire()
    await store.close()

    assert entry.now_ms() - before >= 499
