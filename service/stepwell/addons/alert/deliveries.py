"""`Delivery`: sends the alarms that wait for one target, a webhook or a broker, until the target has them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.alert.rules import AlarmTarget
from stepwell.addons.alert.store import AlertStore
from stepwell.addons.alert.webhook import Webhook
from stepwell.addons.connect.brokers.interface import MessageWriter
from stepwell.addons.connect.messages import ConnectError, OutMessage
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.waiting import happens
from stepwell.background import cancel
from stepwell.errors import ServiceError
from stepwell_client.wire.backoff import Backoff
from stepwell_client.wire.texts import counted

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_AT_ONCE: Final = 500
_MOST_PENDING: Final = 5000
_CONCURRENT: Final = 16
_POLL_S: Final = 1.0  # another process of the group may have added alarms before it ended
_BACKOFF: Final = Backoff(0.25, 30.0)
_STORE_BACKOFF: Final = Backoff(0.1, 1.0)
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
        message: The alarm as a message.
    """

    entry: str
    body: bytes
    message: OutMessage

    @classmethod
    def of(cls, entry: str, body: bytes, group: str) -> WaitingAlarm:
        """Return an entry of an outbox of a group."""
        document: dict[str, Any] = msgspec.json.decode(body)
        milliseconds, _, number = entry.partition("-")
        # The position in the outbox: a writer that compares positions, as that of Redis, writes each alarm once
        at = int(milliseconds) << _POSITION_BITS | int(number)
        return cls(entry, body, OutMessage(document["stream"], f"alerts:{group}:{document['model']}", at, document))


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
        self._resume_at = now + _BACKOFF.after(self._failures)

    def refused(self, reason: object) -> None:
        """Report that an alarm is refused; the others do not wait for it."""
        now = time.monotonic()
        if now >= self._refused_at + _REPORT_EVERY_S:
            self._refused_at = now
            self._report(f"{self._name} refuses an alarm, which is sent again: {reason}")

    def set_aside(self, reason: object, place: str) -> None:
        """Report an alarm that is not sent again, some at a time."""
        self._n_set_aside += 1
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


class Delivery:
    """Delivers the alarms of one outbox, in its order.

    A webhook gets the alarms of one stream one after the other, those of some streams at the same time. One that it
    refuses ten times in a row is set aside; those of its stream that follow it are tried once each, until one is
    accepted. Meanwhile those of other streams are delivered. A broker gets many alarms at a time; those that it can
    never take are set aside at once.

    Attributes:
        id: The id of the outbox.
    """

    def __init__(self, target: AlarmTarget, target_id: str, options: DeliveryOptions) -> None:
        """Create it; nothing is opened yet.

        Args:
            target: The target.
            target_id: The id of its outbox.
            options: What every delivery needs.

        Raises:
            MissingExtraError: The broker's client library is not installed.
            ConnectUsageError: The broker's URL is wrong.
        """
        self.id = target_id
        self._writer: MessageWriter
        if target.is_webhook:
            self._writer = webhook = Webhook(target)
            self._name = webhook.name
        else:
            url = BrokerUrl.parse(target.url)
            self._writer, self._name = url.writer("json"), url.text
        self._is_webhook = target.is_webhook
        self._is_open = False
        self._options = options
        self._pauses = _Pauses(self._name, options.report)
        self._woken = asyncio.Event()
        self._pending: dict[str, deque[WaitingAlarm]] = {}
        self._refused: set[str] = set()  # the keys of those whose first alarm was refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_CONCURRENT)

    def __len__(self) -> int:
        """Return the number of alarms that are being delivered."""
        return sum(map(len, self._pending.values()))

    def wake(self) -> None:
        """Check the outbox now."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until it is cancelled."""
        last = ""
        try:
            await self._attempt([])  # reports a broker that cannot be reached before there are alarms
            while True:
                self._woken.clear()
                entries = await self._unsent(last) if self._has_room() else []
                for entry, body in entries:
                    self._start(WaitingAlarm.of(entry, body, self._options.group))
                    last = entry
                if len(entries) < _AT_ONCE:
                    await happens(self._woken, _POLL_S)
        finally:
            await cancel(self._tasks)
            await self._writer.close()

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
        """Add an alarm to those that are delivered in the same order: of a webhook those of its stream, else all."""
        key = f"{alarm.message.source}:{alarm.message.key}" if self._is_webhook else ""
        if key in self._pending:
            self._pending[key].append(alarm)
            return
        self._pending[key] = deque([alarm])
        task = asyncio.create_task(self._deliver(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, key: str) -> None:
        """Deliver the alarms of one key."""
        waiting, failures, refusals = self._pending[key], 0, 0
        while waiting:
            alarms = list(islice(waiting, 1 if self._is_webhook else _AT_ONCE))
            reasons = await self._attempt(alarms)
            if reasons:
                refusals += 1
                self._refused.add(key)
            if reasons is None or (reasons and self._is_webhook and refusals < _FINAL_REFUSALS):
                if reasons:
                    self._pauses.refused(*reasons.values())
                failures += 1
                await asyncio.sleep(_BACKOFF.after(failures))
                continue
            if not reasons:
                failures = refusals = 0
                self._refused.discard(key)
            for alarm in alarms:
                if alarm.entry in reasons:
                    await self._set_aside(alarm, reasons[alarm.entry])
            await until_stored(partial(self._options.store.mark_sent, self.id, [alarm.entry for alarm in alarms]))
            for _ in alarms:
                waiting.popleft()
        self._refused.discard(key)
        del self._pending[key]

    async def _attempt(self, alarms: Sequence[WaitingAlarm]) -> dict[str, str] | None:
        """Send alarms once; returns the reasons of those that are refused, by their entries; None: none was sent."""
        counters = self._options.counters
        async with self._slots:
            await self._pauses.wait()
            if not self._options.may_send():
                return None
            try:
                if not self._is_open:
                    await self._writer.open()
                    self._is_open = True
                undeliverable = await self._writer.write([alarm.message for alarm in alarms])
            except ConnectError as exc:  # also what waiting does not repair: other targets get theirs
                counters.add_delivery(self._name, failed=max(len(alarms), 1))
                self._pauses.failed(exc)
                if not self._is_webhook:
                    self._is_open = False
                    await self._writer.close()
                return None
            self._pauses.worked()
            counters.add_delivery(self._name, delivered=len(alarms) - len(undeliverable), failed=len(undeliverable))
        reasons = {id(one.message): one.reason for one in undeliverable}
        return {alarm.entry: reasons[id(alarm.message)] for alarm in alarms if id(alarm.message) in reasons}

    async def _set_aside(self, alarm: WaitingAlarm, reason: str) -> None:
        """Keep an alarm that the target refuses in another place than the outbox, once the store replies."""
        store = self._options.store
        await until_stored(partial(store.set_aside, self.id, alarm.entry, alarm.body, reason))
        self._options.counters.add_delivery(self._name, refused=1)
        self._pauses.set_aside(reason, store.refused_key(self.id))


async def until_stored(work: Callable[[], Awaitable[_T]]) -> _T:
    """Return the result of work on the store, which is repeated while the store does not reply."""
    failures, logged = 0, ""
    while True:
        try:
            return await work()
        except ServiceError as exc:
            if exc.problem != logged:
                logged = exc.problem
                _log.warning("Waiting for the store: %s", logged)
            failures += 1
            await asyncio.sleep(_STORE_BACKOFF.after(failures))
