"""`InterestTable`: the known interests of all workers, which decide the events to publish.

`CommitsUnderWay`: the commits that were sent and have no reply yet, so that a new watch can wait for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, NamedTuple

from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.engine.publisher import PendingCommits, Publisher
from stepwell.store import keys
from stepwell.store.commits import Notification
from stepwell.types import StreamKey

TOPIC: Final = "swl:watch"


class CommitsUnderWay:
    """The commits of this worker that are under way, in groups: one for the time between two calls of `wait`.

    Attributes:
        newest: A context for one commit: enter it when its events are decided, leave it when the store has replied.
            Enter it at once: a context that is entered after a later `wait` has begun is not waited for.
    """

    def __init__(self) -> None:
        self.newest = CommitGroup()
        self._groups = {self.newest}

    async def wait(self) -> None:
        """Wait until all commits that have begun so far have ended."""
        earlier = [*self._groups]
        self.newest = CommitGroup()
        self._groups.add(self.newest)
        for group in earlier:
            await group.ended()
            self._groups.discard(group)


class CommitGroup:
    """The commits that began between two calls of `CommitsUnderWay.wait`."""

    __slots__ = ("_ended", "_n")

    def __init__(self) -> None:
        self._n = 0
        self._ended: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._n += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._n -= 1
        if not self._n and self._ended is not None:
            self._ended.set()

    async def ended(self) -> None:
        """Wait until all of its commits have ended; none may begin any more."""
        if self._n:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()


class Subscription(NamedTuple):
    """What a watcher gets: one stream, the streams whose id starts with `prefix`, or all of a tenant's model."""

    tenant: str
    model: str
    stream: str | None = None
    prefix: str = ""

    @property
    def key(self) -> StreamKey | None:
        """The stream's key, None if it is not for one stream."""
        return None if self.stream is None else StreamKey(self.tenant, self.model, self.stream)

    @property
    def topic(self) -> str:
        """The topic of the model's events."""
        return topic_for(self.tenant, self.model)


class _ModelInterest:
    """The interests in one model, each with the time at which it expires."""

    __slots__ = ("prefixes", "streams")

    def __init__(self) -> None:
        self.streams: dict[StreamKey, dict[str, float]] = {}  # by worker
        self.prefixes: dict[tuple[str, str], float] = {}

    def covers(self, key: StreamKey) -> bool:
        """Whether a worker has interest in a stream."""
        if key in self.streams:
            return True
        return any(key.tenant == tenant and key.stream.startswith(prefix) for tenant, prefix in self.prefixes)

    def shard_workers(self, key: StreamKey) -> int:
        """Return how many workers have interest in exactly this stream; 0 if one has interest in a prefix of it."""
        if any(key.tenant == tenant and key.stream.startswith(prefix) for tenant, prefix in self.prefixes):
            return 0
        return len(self.streams.get(key, ()))

    def expire(self, now: float) -> bool:
        """Remove the interests that have expired; returns whether none is left."""
        for key, workers in list(self.streams.items()):
            self.streams[key] = {worker: expiry for worker, expiry in workers.items() if expiry >= now}
            if not self.streams[key]:
                del self.streams[key]
        self.prefixes = {key: expiry for key, expiry in self.prefixes.items() if expiry >= now}
        return not self.streams and not self.prefixes


class InterestTable(Publisher):
    """The interests of all workers. A model without watchers and event log costs one lookup per batch.

    Attributes:
        publish_all: The table may be incomplete, so the events of all streams are published.
        commits: The commits under way. Between a look-up in the table and the start of the commit there must be no
            `await`; else a watcher that is added meanwhile misses the commit.
    """

    def __init__(self, log_lengths: Mapping[str, int]) -> None:
        """Create an empty table.

        Args:
            log_lengths: Number of events in the event log of each stream, by model; `*` is for all other models.
        """
        self.publish_all = False
        self.commits = CommitsUnderWay()
        self._log_lengths = dict(log_lengths)
        self._default_log_length = self._log_lengths.pop("*", 0)
        self._interests: dict[str, _ModelInterest] = {}

    def add(self, subscriptions: Iterable[Subscription], expiry: float, *, worker: str) -> None:
        """Add the interests of a worker, or renew them, until a time on the loop's clock."""
        for subscription in subscriptions:
            interest = self._interests.setdefault(subscription.model, _ModelInterest())
            if subscription.key is not None:
                interest.streams.setdefault(subscription.key, {})[worker] = expiry
            else:
                interest.prefixes[subscription.tenant, subscription.prefix] = expiry

    def expire(self, now: float) -> None:
        """Remove the interests that have expired."""
        self._interests = {model: interest for model, interest in self._interests.items() if not interest.expire(now)}

    def has_interest(self, model: str) -> bool:
        """Whether any commit of a model may need a notification."""
        return (
            self.publish_all or model in self._interests or self._log_lengths.get(model, self._default_log_length) > 0
        )

    def commit_under_way(self) -> CommitGroup:
        """Return a context for one commit, so that a new watch can wait for it."""
        return self.commits.newest

    def notifications(self, batch: PendingCommits) -> list[Notification]:
        """Return the events of the commits that are watched or logged."""
        model = batch.timesteps[0].key.model
        interest = self._interests.get(model)
        log_length = self._log_lengths.get(model, self._default_log_length)
        notifications, at_us = [], time.time_ns() // 1000
        for row, timestep in enumerate(batch.timesteps):
            key = timestep.key
            is_wanted = self.publish_all or (interest is not None and interest.covers(key))
            if is_wanted or log_length:
                own = {name: array[row] for name, array in batch.outputs.items()}
                event = CommitEvent.of(
                    timestep, batch.inputs, own, batch.steps[row], batch.state_ids[row], batch.versions[row],
                    batch.candidates[row] if batch.candidates else None, at_us,
                ).encode()  # fmt: skip
                topic = topic_for(key.tenant, model) if is_wanted else ""
                log = keys.event_log_key(keys.record_key(*key)) if log_length else None
                workers = 0 if self.publish_all or interest is None else interest.shard_workers(key)
                notifications.append(Notification(row, event, topic, log, log_length, workers))
        return notifications


def topic_for(tenant: str, model: str) -> str:
    """Return the topic of the events of a tenant's model."""
    return f"{TOPIC}:{tenant}/{model}"
