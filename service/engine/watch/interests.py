"""`InterestTable`: who follows commits, in whichever worker, as far as this worker has heard; it says what is to be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from model_export.manifest import Array, TensorSpec
from service.engine.watch.commit_events import CommitEvent
from service.store import keys
from service.store.commits import Notification
from service.types import StreamKey, Timestep

TOPIC: Final = "swl:watch"


class Subscription(NamedTuple):
    """What somebody follows: one stream, those whose id begins with `prefix`, or all that a tenant has of a model."""

    tenant: str
    model: str
    stream: str | None = None
    prefix: str = ""

    @property
    def key(self) -> StreamKey | None:
        """The one stream, if it is one."""
        return None if self.stream is None else StreamKey(self.tenant, self.model, self.stream)

    @property
    def topic(self) -> str:
        """Where commits that are wanted of this model are published."""
        return topic_for(self.tenant, self.model)


class _ModelInterest:
    """What is wanted of one model, each until a moment."""

    __slots__ = ("prefixes", "streams")

    def __init__(self) -> None:
        self.streams: dict[StreamKey, float] = {}
        self.prefixes: dict[tuple[str, str], float] = {}

    def covers(self, key: StreamKey) -> bool:
        """Whether a commit of a stream is wanted."""
        if key in self.streams:
            return True
        return any(key.tenant == tenant and key.stream.startswith(prefix) for tenant, prefix in self.prefixes)

    def expire(self, now: float) -> bool:
        """Forget what was wanted until before now; True when nothing is left."""
        self.streams = {key: until for key, until in self.streams.items() if until >= now}
        self.prefixes = {key: until for key, until in self.prefixes.items() if until >= now}
        return not self.streams and not self.prefixes


class InterestTable:
    """Who follows commits anywhere. A model that nobody follows, and whose history is not kept, costs one look a batch.

    Attributes:
        unsure: This worker may not have heard of all who follow, so everything is told.
    """

    def __init__(self, history: Mapping[str, int]) -> None:
        """Begin with nobody.

        Args:
            history: How many events are kept of each stream of a model; `*`: of every other model.
        """
        self.publish_all = False
        self._history_lengths = dict(history)
        self._default_history = self._history_lengths.pop("*", 0)
        self._interests: dict[str, _ModelInterest] = {}

    def add(self, wants: Iterable[Subscription], until: float) -> None:
        """Take note of what somebody follows, until a moment."""
        for want in wants:
            followed = self._interests.setdefault(want.model, _ModelInterest())
            if want.key is not None:
                followed.streams[want.key] = until
            else:
                followed.prefixes[want.tenant, want.prefix] = until

    def expire(self, now: float) -> None:
        """Forget what was wanted until before now."""
        self._interests = {model: followed for model, followed in self._interests.items() if not followed.expire(now)}

    def has_interest(self, model: str) -> bool:
        """Whether anything is to be told of a model's commits."""
        return (
            self.publish_all or model in self._interests or self._history_lengths.get(model, self._default_history) > 0
        )

    def notifications_for(
        self,
        timesteps: Sequence[Timestep],
        inputs: Sequence[TensorSpec],
        outputs: Mapping[str, Array],
        steps: Sequence[int],
        state_ids: Sequence[bytes],
    ) -> list[Notification]:
        """Return what is to be told of the commits of a batch, should they be applied.

        Args:
            timesteps: What was asked, all of one model.
            inputs: The model's inputs, in the order in which a timestep brings them.
            outputs: The kept predictions, `(rows, T', *row)` per output.
            steps: Each stream's step after it.
            state_ids: Each stream's state id after it.
        """
        model = timesteps[0].key.model
        followed = self._interests.get(model)
        most = self._history_lengths.get(model, self._default_history)
        tellings = []
        for at, timestep in enumerate(timesteps):
            key = timestep.key
            is_wanted = self.publish_all or (followed is not None and followed.covers(key))
            if is_wanted or most:
                own = {name: array[at] for name, array in outputs.items()}
                event = CommitEvent.of(timestep, inputs, own, steps[at], state_ids[at]).encode()
                topic = topic_for(key.tenant, model) if is_wanted else ""
                log = keys.event_log_key(keys.record_key(*key)) if most else None
                tellings.append(Notification(at, event, topic, log, most))
        return tellings


def topic_for(tenant: str, model: str) -> str:
    """Return where commits of a model are published for those who follow them."""
    return f"{TOPIC}:{tenant}/{model}"
