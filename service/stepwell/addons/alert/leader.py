"""`AlertLeader`: what the process with the lease does: watch, evaluate, write to the store, deliver."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import httpx2
from websockets.exceptions import WebSocketException

from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.alert.deliveries import Delivery, until_stored
from stepwell.addons.alert.errors import LeaseLostError
from stepwell.addons.alert.evaluation import RuleEvaluation
from stepwell.addons.alert.event_logs import EventLogs
from stepwell.addons.alert.follower import StreamFollower
from stepwell.addons.alert.rules import FollowedModel
from stepwell.addons.alert.store import AlertStore
from stepwell.addons.alert.stream_state import StreamUpdate
from stepwell.addons.alert.updates import update_of_message
from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.watch.refusals import RefusalReader
from stepwell.background import cancel
from stepwell.errors import ServiceError
from stepwell_client import http_transport
from stepwell_client.errors import ClientError
from stepwell_client.results import Event
from stepwell_client.watch import WatchCursor
from stepwell_client.websockets import open_async_socket

_QUEUED: Final = 10_000
_TICK_S: Final = 0.25
_WRITE_EVERY_S: Final = 0.5
_REJECTED_PAUSE_S: Final = 5.0
_LAST_WRITE_S: Final = 5.0
_SOON_S: Final = 1.0

_Item = tuple[str, StreamUpdate | None]
"""A stream and its commit, or "" and None: commits may have been missed."""


class AlertLeader:
    """Runs while the process has the lease."""

    def __init__(  # noqa: PLR0917 - the parts of a leader
        self,
        models: Sequence[FollowedModel],
        evaluations: Mapping[str, RuleEvaluation],
        logs: Mapping[str, tuple[EventLogs, RefusalReader]],
        lease: Lease,
        store: AlertStore,
        deliveries: Sequence[Delivery],
        counters: AlertCounters,
        group: str,
    ) -> None:
        """Create it.

        Args:
            models: What is followed.
            evaluations: The rules of each model.
            logs: The event logs and the log of refusals of each model.
            lease: The lease of the group.
            store: The store of the group.
            deliveries: What delivers to each target.
            counters: Counts what is done.
            group: The name of the group.
        """
        self._lease = lease
        self._store = store
        self._deliveries = deliveries
        self._targets = [delivery.id for delivery in deliveries]
        self._followers = [
            StreamFollower(model, *logs[model.name], evaluations[model.name], store.lease.now_ms, counters, group)
            for model in models
        ]
        counters.bind(
            streams=lambda: sum(map(len, self._followers)), undelivered=lambda: sum(map(len, self._deliveries))
        )

    async def run(self, url: str, key: str | None, stopped: asyncio.Event, report: Callable[[str], None]) -> None:
        """Lead until the process is to end or the lease is lost; at the end write what was evaluated.

        Args:
            url: The service's address.
            key: The API key, or None.
            stopped: Set when the process is to end.
            report: Called with a sentence about what has to wait.

        Raises:
            LeaseLostError: Another process has the lease.
        """
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._start()
            report("this process evaluates the rules")
            tasks += [asyncio.create_task(one.run()) for one in self._deliveries]
            for follower in self._followers:
                queue: asyncio.Queue[_Item] = asyncio.Queue(_QUEUED)
                tasks.append(asyncio.create_task(_Watch(url, key, follower.model, queue, report).run()))
                tasks.append(asyncio.create_task(self._evaluate(follower, queue)))
            ending = asyncio.create_task(stopped.wait())
            tasks.append(ending)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel(tasks)
            if stopped.is_set() and self._lease.is_held:
                await self._write_all()

    async def _write_all(self) -> None:
        """Write what was evaluated, for the process that leads next; it evaluates again what cannot be written."""
        with contextlib.suppress(TimeoutError, LeaseLostError):
            async with asyncio.timeout(_LAST_WRITE_S):
                for follower in self._followers:
                    await self._write(follower)

    async def _start(self) -> None:
        """Load the states of all streams, and evaluate what was committed since."""
        await until_stored(lambda: self._store.set_targets(self._targets))
        for follower in self._followers:
            follower.load(await until_stored(partial(self._store.load, follower.model.name)))
            await until_stored(follower.catch_up)
            await until_stored(follower.follow_refusals)
            await self._write(follower)

    async def _evaluate(self, follower: StreamFollower, queue: asyncio.Queue[_Item]) -> None:
        """Evaluate what arrives and what is due, and write the results."""
        written_at = refusals_at = time.monotonic()
        # Commits that were under way when a watch began are not sent to it: the event logs are read again after them
        catch_up_at: list[float] = []
        while True:
            if follower.has_alarms or time.monotonic() - written_at >= _WRITE_EVERY_S:
                await self._write(follower)
                written_at = time.monotonic()
            items = await _next_items(queue, self._wait_s(follower))
            try:
                now = time.monotonic()
                if begins := any(update is None for _, update in items):
                    catch_up_at = [now + seconds for seconds in (_SOON_S, follower.model.longest_request_s)]
                if begins or (catch_up_at and now >= catch_up_at[0]):
                    await follower.catch_up()
                    catch_up_at = [at for at in catch_up_at if at > now]
                await follower.follow([(stream, update) for stream, update in items if update is not None])
                if now >= refusals_at + _TICK_S:
                    refusals_at = now
                    await follower.follow_refusals()
                await follower.check_due()
            except ServiceError:
                await asyncio.sleep(_TICK_S)
                await until_stored(follower.catch_up)  # it evaluates whatever was not

    def _wait_s(self, follower: StreamFollower) -> float:
        due = follower.next_due_ms
        return _TICK_S if due is None else min(max(due - self._store.lease.now_ms(), 0) / 1000 + 0.001, _TICK_S)

    async def _write(self, follower: StreamFollower) -> None:
        writes = follower.take_writes()
        if not writes.states and not writes.raised:
            return
        call_id = secrets.token_hex(16)
        if not await until_stored(lambda: self._store.commit(self._lease.name, call_id, writes, self._targets)):
            raise LeaseLostError("another process has the lease now")
        if writes.sent:
            for delivery in self._deliveries:
                delivery.wake()


class _Watch:
    """Puts the messages of a watch of one model into a queue; it reconnects until it is cancelled."""

    def __init__(
        self,
        url: str,
        key: str | None,
        model: FollowedModel,
        queue: asyncio.Queue[_Item],
        report: Callable[[str], None],
    ) -> None:
        options = http_transport.options(url, key)
        with httpx2.Client(**options) as client:
            address = http_transport.feed_address(client, "/v1/watch")
        self._cursor = WatchCursor(address, model.name, None, model.prefix, None, inputs=True)
        self._ranks = model.row_ranks
        self._queue = queue
        self._report = report

    async def run(self) -> None:
        while True:
            try:
                await asyncio.sleep(await self._receive())
            except ClientError as exc:
                self._report(f"the service rejects the watch, which is repeated: {exc.problem}")
                await asyncio.sleep(_REJECTED_PAUSE_S)

    async def _receive(self) -> float:
        """Receive until the connection is lost; returns the seconds to wait before the next one."""
        try:
            async with open_async_socket(self._cursor.address, **self._cursor.options) as socket:
                await socket.send(self._cursor.subscribe_message())
                async for message in socket:
                    event = self._cursor.on_message(message)
                    if isinstance(event, Event):
                        await self._queue.put((event.stream, update_of_message(event, self._ranks)))
                    else:  # the watch has begun, or has a gap
                        await self._queue.put(("", None))
        except (OSError, TimeoutError, WebSocketException) as exc:
            return self._cursor.pause(exc)
        return self._cursor.pause()


async def _next_items(queue: asyncio.Queue[_Item], wait_s: float) -> list[_Item]:
    """Return everything in a queue; waits for so many seconds at most."""
    items: list[_Item] = []
    try:
        async with asyncio.timeout(wait_s):
            items.append(await queue.get())
    except TimeoutError:
        return items
    while not queue.empty():
        items.append(queue.get_nowait())
    return items
