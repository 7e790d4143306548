"""`WebhookDelivery`, `BrokerDelivery`: send the alarms that wait for one target, until the target has them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from service.alert.counters import AlertCounters
from service.alert.errors import AlarmRefusedError, TargetUnavailableError
from service.alert.rules import AlarmTarget
from service.alert.webhook import Webhook
from service.background import cancel
from service.connect.messages import ConnectError, OutMessage
from service.connect.urls import BrokerUrl
from service.errors import ServiceError, counted
from service.store.alerts import AlertStore

_AT_ONCE: Final = 500
_MOST_PENDING: Final = 5000
_CONCURRENT: Final = 16
_POLL_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 30.0
_POSITION_BITS: Final = 20
_FINAL_REFUSALS: Final = 10
"""Refusals in a row of a stream's alarms after which an alarm is set aside: with the pauses, within two minutes."""

_MOST_REFUSED: Final = 100_000
_REPORT_EVERY_S: Final = 30.0
_SECRET_OPTIONS: Final = frozenset(
    ("access_token", "api_key", "apikey", "auth", "code", "key", "password", "secret", "sig", "signature", "token")
)


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


def make_delivery(target: AlarmTarget, target_id: str, options: DeliveryOptions) -> WebhookDelivery | BrokerDelivery:
    """Return the delivery to a target.

    Args:
        target: The target.
        target_id: The id of its outbox.
        options: What every delivery needs.

    Raises:
        MissingExtraError: The broker's client library is not installed.
        ConnectUsageError: The broker's URL is wrong.
    """
    return (WebhookDelivery if target.is_webhook else BrokerDelivery)(target, target_id, options)


def target_ids(targets: Sequence[AlarmTarget]) -> list[str]:
    """Return the id of each target's outbox.

    It is made of the URL without passwords, tokens and other secrets: what waits for a target stays when one of them is
    replaced. Targets whose URLs differ in nothing else are numbered in their order.
    """
    places = [_place_of(target.url) for target in targets]
    ids = []
    for target, place in zip(targets, places, strict=True):
        alike = dict.fromkeys(one.url for one, other in zip(targets, places, strict=True) if other == place)
        number = list(alike).index(target.url)
        text = place if number == 0 else f"{place} {number}"
        ids.append(hashlib.blake2b(text.encode(), digest_size=8).hexdigest())
    return ids


def _place_of(url: str) -> str:
    """Return a URL without what is secret in it."""
    parts = urlsplit(url, allow_fragments=False)
    login, at, host = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    options = [one for one in parts.query.split("&") if one.partition("=")[0].lower() not in _SECRET_OPTIONS]
    return f"{parts.scheme}://{user}{at}{host}{parts.path}?{'&'.join(options)}"


class _Pauses:
    """Pauses that grow with each failure in a row, and the sentences about them."""

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name = name
        self._report = report
        self._failures = 0
        self._resume_at = 0.0
        self._refused_at = float("-inf")
        self._n_set_aside = 0
        self._set_aside_at = float("-inf")

    def failed(self, reason: object) -> None:
        now = time.monotonic()
        if now < self._resume_at:
            return  # another request has failed at the same time
        if not self._failures:
            self._report(f"{self._name} does not accept alarms, which are sent again: {reason}")
        self._failures += 1
        self._resume_at = now + pause_after(self._failures)

    def refused(self, reason: object) -> None:
        """Report that an alarm is refused; the others do not wait for it."""
        now = time.monotonic()
        if now >= self._refused_at + _REPORT_EVERY_S:
            self._refused_at = now
            self._report(f"{self._name} refuses an alarm, which is sent again: {reason}")

    def set_aside(self, n: int, reason: object, place: str) -> None:
        """Report alarms that are not sent again, some at a time."""
        self._n_set_aside += n
        now = time.monotonic()
        if now >= self._set_aside_at + _REPORT_EVERY_S:
            self._set_aside_at = now
            found = counted(self._n_set_aside, "alarm")
            self._report(f"{self._name} refuses {found} ({reason}), which are set aside in the store as {place}")
            self._n_set_aside = 0

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
    """What every delivery has: the outbox of its target, and its pauses.

    Attributes:
        id: The id of the outbox.
    """

    def __init__(self, target_id: str, name: str, options: DeliveryOptions) -> None:
        self.id = target_id
        self._name = name
        self._options = options
        self._pauses = _Pauses(name, options.report)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Check the outbox now."""
        self._woken.set()

    async def _set_aside(self, entry: str, body: bytes, reason: str) -> None:
        """Keep an alarm that the target refuses in another place than the outbox, once the store replies."""
        store = self._options.store
        await _until_stored(lambda: store.set_aside(self.id, entry, body, reason))
        self._options.counters.add_delivery(self._name, refused=1)
        self._pauses.set_aside(1, reason, store.refused_key(self.id))


class WebhookDelivery(_OutboxDelivery):
    """Posts alarms to a webhook: those of one stream one after the other, of some streams at the same time.

    An alarm that is refused ten times in a row is set aside; those of its stream that follow it are tried once each,
    until one is accepted. Meanwhile those of other streams are delivered.
    """

    def __init__(self, target: AlarmTarget, target_id: str, options: DeliveryOptions) -> None:
        """Use `make_delivery`."""
        self._webhook = Webhook(target)
        super().__init__(target_id, self._webhook.name, options)
        self._pending: dict[tuple[str, str], deque[WaitingAlarm]] = {}
        self._refused: set[tuple[str, str]] = set()  # the keys of those whose first alarm was refused
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
                entries = await self._unsent(last) if self._has_room() else []
                for entry, body in entries:
                    self._start(WaitingAlarm.of(entry, body))
                    last = entry
                if len(entries) < _AT_ONCE:
                    await _wait_for(self._woken)
        finally:
            await cancel(self._tasks)
            await self._webhook.close()

    def _has_room(self) -> bool:
        """Whether more alarms may be read: those that are refused take no room from the others."""
        n_refused = sum(len(self._pending[key]) for key in self._refused)
        return n_refused < _MOST_REFUSED and len(self) - n_refused < _MOST_PENDING

    async def _unsent(self, last: str) -> Sequence[tuple[str, bytes]]:
        try:
            return await self._options.store.unsent(self.id, last, _AT_ONCE)
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
        waiting, failures, refusals = self._pending[key], 0, 0
        while waiting:
            try:
                accepted = await self._attempt(waiting[0])
            except AlarmRefusedError as exc:
                accepted = False
                self._refused.add(key)
                refusals += 1
                if refusals >= _FINAL_REFUSALS:
                    alarm = waiting.popleft()
                    await self._set_aside(alarm.entry, alarm.body, exc.problem)
                    continue
            if accepted:
                waiting.popleft()
                self._refused.discard(key)
                failures = refusals = 0
            else:
                failures += 1
                await asyncio.sleep(pause_after(failures))
        self._refused.discard(key)
        del self._pending[key]

    async def _attempt(self, alarm: WaitingAlarm) -> bool:
        """Send an alarm once; returns whether the receiver has it now.

        Raises:
            AlarmRefusedError: The receiver refuses it.
        """
        counters = self._options.counters
        async with self._slots:
            await self._pauses.wait()
            if not self._options.may_send():
                return False
            try:
                await self._webhook.post(alarm.body)
            except (TargetUnavailableError, AlarmRefusedError) as exc:
                counters.add_delivery(self._name, failed=1)
                if isinstance(exc, AlarmRefusedError):
                    self._pauses.refused(exc)
                    raise
                self._pauses.failed(exc)
                return False
            self._pauses.worked()
            counters.add_delivery(self._name, delivered=1)
        await _until_stored(lambda: self._options.store.mark_sent(self.id, [alarm.entry]))
        return True


class BrokerDelivery(_OutboxDelivery):
    """Writes alarms to a topic, stream, queue or file, in the order of the outbox."""

    def __init__(self, target: AlarmTarget, target_id: str, options: DeliveryOptions) -> None:
        """Use `make_delivery`."""
        url = BrokerUrl.parse(target.url)
        super().__init__(target_id, url.text, options)
        self._writer = url.writer("json")
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
        entries = await self._options.store.unsent(self.id, "", _AT_ONCE) if self._options.may_send() else []
        self._n_pending = len(entries)
        if not entries:
            return False
        messages = [self._message(*one) for one in entries]
        refused = {id(one.message): one.reason for one in await self._writer.write(messages)}
        self._pauses.worked()
        self._options.counters.add_delivery(self._name, delivered=len(entries) - len(refused))
        for message, (entry, body) in zip(messages, entries, strict=True):
            if id(message) in refused:
                await self._set_aside(entry, body, refused[id(message)])
        await self._options.store.mark_sent(self.id, [entry for entry, _ in entries])
        self._n_pending = 0
        return True

    def _message(self, entry: str, body: bytes) -> OutMessage:
        document: dict[str, Any] = msgspec.json.decode(body)
        milliseconds, _, number = entry.partition("-")
        # The position in the outbox: a writer that compares positions, as that of Redis, writes each alarm once
        at = int(milliseconds) << _POSITION_BITS | int(number)
        return OutMessage(document["stream"], f"alerts:{self._options.group}:{document['model']}", at, document)


async def _until_stored(write: Callable[[], Awaitable[None]]) -> None:
    """Write to the store, once it replies."""
    failures = 0
    while True:
        try:
            return await write()
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
