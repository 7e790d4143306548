"""What becomes of alarms that a receiver refuses, and of those that wait for others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.alert import deliveries
from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.alert.deliveries import Delivery, DeliveryOptions, target_ids
from stepwell.addons.alert.rules import AlarmTarget
from stepwell.addons.alert.store import AlertStore, AlertWrites
from stepwell.addons.alert.stream_state import Alarm
from stepwell.addons.between_workers.lease import Lease
from stepwell.store.state_store import StateStore
from stepwell_client.wire.backoff import Backoff
from tests.addons.alert.alerts import WebhookReceiver
from tests.addons.connect.brokers import nats
from tests.addons.connect.connectors import wait_for
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.test_nats import NatsSubjects
from tests.servers import Server


class PickyReceiver(WebhookReceiver):
    """Refuses the alarms of streams whose ids begin with `bad`, while `status` is set."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def receive(self, body: bytes, signature: str) -> int:
        if self.status and json.loads(body)["stream"].startswith("bad"):
            self.n_refused += 1
            return self.status
        return super().receive(body, signature)


class Outbox:
    """The outbox of one target in a real store, and what delivers it."""

    def __init__(self, store: AlertStore, target: AlarmTarget) -> None:
        [self.id] = target_ids([target])
        self.store = store
        self.counters = AlertCounters()
        self.reports: list[str] = []
        options = DeliveryOptions(store, lambda: True, self.counters, self.reports.append, "group")
        self._delivery = Delivery(target, self.id, options)
        self._n_added = 0

    async def add(self, streams: Sequence[str]) -> None:
        """Add an alarm for each of the streams, in order."""
        sent = []
        for stream in streams:
            self._n_added += 1
            alarm = Alarm(
                id=str(self._n_added), rule="r", state="raised", model="m", stream=stream, step=self._n_added, at=0,
                outputs={}, kind="when",
            )  # fmt: skip
            sent.append(alarm.encode())
        await Lease(self.store.lease, "test", lease_s=60).acquire()
        assert await self.store.commit("test", str(self._n_added), AlertWrites("m", {}, {}, sent), [self.id])
        self._delivery.wake()

    @contextlib.asynccontextmanager
    async def delivering(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self._delivery.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def n_waiting(self) -> int:
        return len(await self.store.unsent(self.id, "", 1000))


@pytest.fixture
async def store(redis_server: Server) -> AsyncIterator[AlertStore]:
    one = StateStore(redis_server.url)
    yield AlertStore(one, "default", "group")
    await one.close()


@contextlib.contextmanager
def picky(status: int) -> Iterator[PickyReceiver]:
    one = PickyReceiver(status)
    one.start()
    try:
        yield one
    finally:
        one.stop()


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_for, condition)


def set_aside(server: Server, outbox: Outbox) -> list[tuple[str, str]]:
    """Return the streams and the reasons of the alarms that were set aside."""
    entries: Any = server.client().xrange(outbox.store.refused_key(outbox.id))
    return [(json.loads(fields[b"alarm"])["stream"], fields[b"reason"].decode()) for _, fields in entries]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between attempts short."""
    monkeypatch.setattr(deliveries, "_BACKOFF", Backoff(0.001, 0.001))


@pytest.mark.parametrize("status", [301, 422])
async def test_an_alarm_that_is_refused_ten_times_is_set_aside_with_the_status(
    redis_server: Server, store: AlertStore, quick: None, status: int
) -> None:
    """And reported: for ever is too long for an address with a mistake."""
    with picky(status) as receiver:
        outbox = Outbox(store, AlarmTarget(receiver.url, True, b"s"))
        await outbox.add(["bad1", "good"])
        async with outbox.delivering():
            await until(lambda: outbox.counters.report()["refused"] == 1)
            await until(lambda: len(receiver.alarms()) == 1)

    [(stream, reason)] = set_aside(redis_server, outbox)
    assert (stream, reason.startswith(f"status {status}"), receiver.n_refused) == ("bad1", True, 10)
    assert await outbox.n_waiting() == 0
    assert any(f"refuses an alarm, which is sent again: status {status}" in one for one in outbox.reports)
    assert any("set aside in the store as swl:alerts:{default}:group:refused:" in one for one in outbox.reports)


async def test_later_alarms_of_a_refused_stream_are_tried_once_each_until_one_is_accepted(
    redis_server: Server, store: AlertStore, quick: None
) -> None:
    """A thousand of them do not take a thousand times as long."""
    with picky(404) as receiver:
        outbox = Outbox(store, AlarmTarget(receiver.url, True, None))
        await outbox.add(["bad"] * 5)
        async with outbox.delivering():
            await until(lambda: outbox.counters.report()["refused"] == 5)
            n_refused = receiver.n_refused
            receiver.status = 0
            await outbox.add(["bad", "bad"])
            await until(lambda: len(receiver.alarms()) == 2)

    assert n_refused == 10 + 4
    assert [one["id"] for one in receiver.alarms()] == ["6", "7"]


async def test_refused_alarms_do_not_keep_those_of_other_streams_from_being_read(
    store: AlertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 of them did, without a sentence; here it takes 20."""
    monkeypatch.setattr(deliveries, "_MOST_PENDING", 20)
    monkeypatch.setattr(deliveries, "_AT_ONCE", 10)
    with picky(422) as receiver:
        outbox = Outbox(store, AlarmTarget(receiver.url, True, None))
        await outbox.add([f"bad{n}" for n in range(60)] + [f"good{n}" for n in range(30)])
        async with outbox.delivering():
            await until(lambda: len(receiver.alarms()) == 30)

            assert outbox.counters.report()["refused"] == 0


async def test_an_alarm_that_a_broker_cannot_take_is_set_aside_and_the_others_are_written(
    redis_server: Server, store: AlertStore, tmp_path: Path
) -> None:
    with or_skip(nats, tmp_path) as broker:
        subjects = NatsSubjects(broker)
        await asyncio.to_thread(subjects.run, subjects.create)
        outbox = Outbox(store, AlarmTarget(subjects.url("out.{stream}"), False, None))
        await outbox.add(["ok", "a..b", "ok"])
        async with outbox.delivering():
            await until(lambda: outbox.counters.report()["delivered"] == 2)
        written = await asyncio.to_thread(subjects.read, "OUT")

    assert [alarm["id"] for _, alarm in written] == ["1", "3"]
    assert [stream for stream, _ in set_aside(redis_server, outbox)] == ["a..b"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("redis://alice:old@h/0?stream=s", "redis://alice:new@h/0?stream=s"),
        ("https://h/hook?token=old&room=a", "https://h/hook?token=new&room=a"),
        ("https://u:old@h/hook", "https://u:new@h/hook"),
    ],
)
async def test_what_waits_for_a_target_stays_when_its_password_is_replaced(
    store: AlertStore, before: str, after: str
) -> None:
    outbox = Outbox(store, AlarmTarget(before, before.startswith("http"), None))
    await store.set_targets([outbox.id])
    await outbox.add(["p1"])

    await store.set_targets(target_ids([AlarmTarget(after, before.startswith("http"), None)]))

    assert await outbox.n_waiting() == 1


def test_targets_that_differ_in_a_secret_only_have_outboxes_of_their_own() -> None:
    urls = ["https://h/?token=a", "https://h/?token=b", "https://h/?room=a", "https://h/?room=b", "https://h/?token=a"]

    ids = target_ids([AlarmTarget(url, True, None) for url in urls])

    assert len(set(ids)) == 4
    assert ids[0] == ids[4]
