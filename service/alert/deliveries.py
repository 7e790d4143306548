"""`WebhookDelivery`, `BrokerDelivery`: send the alarms that wait for one target, until the target has them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from service.alert.counters import AlertCounters
from service.alert.errors import TargetUnavailableError
from service.alert.rules import AlarmTarget
from service.alert.webhook import Webhook
from service.background import cancel
from service.connect.brokers import make_writer
from service.connect.messages import ConnectError, OutMessage
from service.connect.urls import BrokerUrl
from service.errors import ServiceError
from service.store.alerts import AlertStore

_AT_ONCE: Final = 500
_MOST_PENDING: Final = 5000
_CONCURRENT: Final = 16
_POLL_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 30.0
_POSITION_BITS: Final = 20


class WaitingAlarm(NamedTuple):
    """An alarm that waits for a target.

    Attributes:
        entry: Its id in the target's outbox.
        body: The alarm as JSON.
        stream: The stream's id.
        key: Model and stream: alarms of one key are delivered in order.
    """

    entry: str
    body: bytes
    stream: str
    key: tuple[str, str]

    @classmethod
    def of(cls, entry: str, body: bytes) -> WaitingAlarm:
        """Return an entry of an outbox."""
        alarm = msgspec.json.decode(body)
        return cls(entry, body, alarm["stream"], (alarm["model"], alarm["stream"]))


class DeliveryOptions(NamedTuple):
    """What every delivery needs.

    Attributes:
        store: Has the outboxes.
        may_send: Whether this process has the lease.
        counters: Counts what is done.
        report: Called with a sentence when a target does not accept alarms, and when it does again.
        group: The name of the group of processes.
    """

    store: AlertStore
    may_send: Callable[[], bool]
    counters: AlertCounters
    report: Callable[[str], None]
    group: str


def make_delivery(target: AlarmTarget, options: DeliveryOptions) -> WebhookDelivery | BrokerDelivery:
    """Return the delivery to a target.

    Raises:
        MissingExtraError: The broker's client library is not installed.
        ConnectUsageError: The broker's URL is wrong.
    """
    return (WebhookDelivery if target.is_webhook else BrokerDelivery)(target, options)


def target_id(target: AlarmTarget) -> str:
    """Return the id of a target's outbox; a URL may have a password, so it is not the URL."""
    return hashlib.blake2b(target.url.encode(), digest_size=8).hexdigest()


class _Pauses:
    """Pauses that grow with each failure in a row, and the sentences about them."""

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name = name
        self._report = report
        self._failures = 0
        self._resume_at = 0.0

    def failed(self, reason: object) -> None:
        now = time.monotonic()
        if now < self._resume_at:
            return  # another request has failed at the same time
        if not self._failures:
            self._report(f"{self._name} does not accept alarms, which are sent again: {reason}")
        self._failures += 1
        self._resume_at = now + pause_after(self._failures)

    def worked(self) -> None:
        if self._failures:
            self._report(f"{self._name} accepts alarms again")
        self._failures, self._resume_at = 0, 0.0

    async def wait(self) -> None:
        while (left := self._resume_at - time.monotonic()) > 0:  # noqa: ASYNC110 - others move the time meanwhile
            await asyncio.sleep(left)


def pause_after(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: growing, with jitter."""
    longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
    return longest * (0.75 + random.random() / 4)  # noqa: S311 - jitter


class _OutboxDelivery:
    """What every delivery has: the outbox of its target, and its pauses."""

    def __init__(self, target: AlarmTarget, name: str, options: DeliveryOptions) -> None:
        self._id = target_id(target)
        self._name = name
        self._options = options
        self._pauses = _Pauses(name, options.report)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Check the outbox now."""
        self._woken.set()


class WebhookDelivery(_OutboxDelivery):
    """Posts alarms to a webhook: those of one stream one after the other, of some streams at the same time."""

    def __init__(self, target: AlarmTarget, options: DeliveryOptions) -> None:
        """Use `make_delivery`."""
        self._webhook = Webhook(target)
        super().__init__(target, self._webhook.name, options)
        self._pending: dict[tuple[str, str], deque[WaitingAlarm]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_CONCURRENT)

    def __len__(self) -> int:
        """Return the number of alarms that are being delivered."""
        return sum(map(len, self._pending.values()))

    async def run(self) -> None:
        """Deliver until it is cancelled."""
        last = ""
        try:
            while True:
                self._woken.clear()
                entries = await self._unsent(last) if len(self) < _MOST_PENDING else []
                for entry, body in entries:
                    self._start(WaitingAlarm.of(entry, body))
                    last = entry
                if len(entries) < _AT_ONCE:
                    await _wait_for(self._woken)
        finally:
            await cancel(self._tasks)
            await self._webhook.close()

    async def _unsent(self, last: str) -> Sequence[tuple[str, bytes]]:
        try:
            return await self._options.store.unsent(self._id, last, _AT_ONCE)
        except ServiceError:
            return ()  # the store does not respond: the outbox is read again later

    def _start(self, alarm: WaitingAlarm) -> None:
        waiting = self._pending.get(alarm.key)
        if waiting is not None:
            waiting.append(alarm)
            return
        self._pending[alarm.key] = deque([alarm])
        task = asyncio.create_task(self._deliver(alarm.key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, key: tuple[str, str]) -> None:
        """Deliver the alarms of one stream."""
        waiting, failures = self._pending[key], 0
        while waiting:
            if await self._attempt(waiting[0]):
                waiting.popleft()
                failures = 0
            else:
                failures += 1
                await asyncio.sleep(pause_after(failures))
        del self._pending[key]

    async def _attempt(self, alarm: WaitingAlarm) -> bool:
        async with self._slots:
            await self._pauses.wait()
            if not self._options.may_send():
                return False
            try:
                accepted = await self._webhook.post(alarm.body)
            except TargetUnavailableError as exc:
                self._pauses.failed(exc)
                accepted = False
            else:
                if accepted:
                    self._pauses.worked()
            self._options.counters.add_delivery(self._name, delivered=accepted, failed=not accepted)
        if accepted:
            await _mark_sent(self._options.store, self._id, [alarm.entry])
        return accepted


class BrokerDelivery(_OutboxDelivery):
    """Writes alarms to a topic, stream, queue or file, in the order of the outbox."""

    def __init__(self, target: AlarmTarget, options: DeliveryOptions) -> None:
        """Use `make_delivery`."""
        url = BrokerUrl.parse(target.url)
        super().__init__(target, url.text, options)
        self._writer = make_writer(url, "json")
        self._n_pending = 0

    def __len__(self) -> int:
        """Return the number of alarms that are being delivered."""
        return self._n_pending

    async def run(self) -> None:
        """Deliver until it is cancelled."""
        while True:
            await self._pauses.wait()
            try:
                await self._writer.open()
                while True:
                    self._woken.clear()
                    if not await self._write_some():
                        await _wait_for(self._woken)
            except (ConnectError, ServiceError) as exc:  # also what waiting does not repair: the others go on
                self._options.counters.add_delivery(self._name, failed=max(self._n_pending, 1))
                self._pauses.failed(exc)
            finally:
                await self._writer.close()

    async def _write_some(self) -> bool:
        """Write the oldest alarms that wait; returns whether there were any."""
        entries = await self._options.store.unsent(self._id, "", _AT_ONCE) if self._options.may_send() else []
        self._n_pending = len(entries)
        if not entries:
            return False
        await self._writer.write([self._message(*one) for one in entries])
        self._pauses.worked()
        self._options.counters.add_delivery(self._name, delivered=len(entries))
        await self._options.store.mark_sent(self._id, [entry for entry, _ in entries])
        self._n_pending = 0
        return True

    def _message(self, entry: str, body: bytes) -> OutMessage:
        document: dict[str, Any] = msgspec.json.decode(body)
        milliseconds, _, number = entry.partition("-")
        # The position in the outbox: a writer that compares positions, as that of Redis, writes each alarm once
        at = int(milliseconds) << _POSITION_BITS | int(number)
        return OutMessage(document["stream"], f"alerts:{self._options.group}:{document['model']}", at, document)


async def _mark_sent(store: AlertStore, target: str, entries: Sequence[str]) -> None:
    """Delete alarms from an outbox, once the store replies."""
    failures = 0
    while True:
        try:
            return await store.mark_sent(target, entries)
        except ServiceError:
            failures += 1
            await asyncio.sleep(pause_after(failures))


async def _wait_for(event: asyncio.Event) -> None:
    """Wait for an event, for a second at most: another process of the group may have added alarms before it ended."""
    try:
        async with asyncio.timeout(_POLL_S):
            await event.wait()
    except TimeoutError:
        return
