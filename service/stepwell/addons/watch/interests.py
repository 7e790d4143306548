"""`InterestTable`: the known interests of all workers, which decide the events to publish."""

from __future__ import annotations

import time
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Final, NamedTuple

from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.engine.publisher import PendingCommits, Publisher
from stepwell.store import keys
from stepwell.store.commits import Notification
from stepwell.types import StreamKey

TOPIC: Final = "swl:watch"


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


class _AllBut(Container[str]):
    """All models, whatever their names, but some."""

    def __init__(self, others: Collection[str]) -> None:
        self._others = others

    def __contains__(self, model: object) -> bool:
        return model not in self._others


class InterestTable(Publisher):
    """The interests of all workers. A model without watchers and event log costs one lookup per batch."""

    def __init__(self, log_lengths: Mapping[str, int]) -> None:
        """Create an empty table.

        Args:
            log_lengths: Number of events in the event log of each stream, by model; `*` is for all other models.
        """
        self._publish_all = False
        self._log_lengths = dict(log_lengths)
        self._default_log_length = self._log_lengths.pop("*", 0)
        self._interests: dict[str, _ModelInterest] = {}
        self._set_watched()

    @property
    def publish_all(self) -> bool:
        """Whether the table may be incomplete, so that the events of all streams are published."""
        return self._publish_all

    @publish_all.setter
    def publish_all(self, value: bool) -> None:
        self._publish_all = value
        self._set_watched()

    def add(self, subscriptions: Iterable[Subscription], expiry: float, *, worker: str) -> None:
        """Add the interests of a worker, or renew them, until a time on the loop's clock."""
        for subscription in subscriptions:
            interest = self._interests.setdefault(subscription.model, _ModelInterest())
            if subscription.key is not None:
                interest.streams.setdefault(subscription.key, {})[worker] = expiry
            else:
                interest.prefixes[subscription.tenant, subscription.prefix] = expiry
        self._set_watched()

    def expire(self, now: float) -> None:
        """Remove the interests that have expired."""
        self._interests = {model: interest for model, interest in self._interests.items() if not interest.expire(now)}
        self._set_watched()

    def _set_watched(self) -> None:
        """Set the models with watchers or event logs."""
        logged = {model for model, length in self._log_lengths.items() if length > 0}
        if self._publish_all:
            self.watched = _AllBut(())
        elif self._default_log_length > 0:
            self.watched = _AllBut(self._log_lengths.keys() - logged - self._interests.keys())
        else:
            self.watched = logged | self._interests.keys()

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
