"""`Watchers`: committed predictions for those who follow them, from whichever worker committed them.

Each worker hears on one control topic which models somebody watches anywhere, and publishes its commits of those
models; a model that nobody watches costs nothing. A watcher that reads too slowly loses the oldest events and is
told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from model_export.manifest import Array
from service.engine.models import ServedModel
from service.engine.types import Prediction, Timestep

CONTROL_TOPIC = "swl:watch"
_WANT_EVERY_S = 5.0
_WANT_LASTS_S = 15.0
_ACK_WITHIN_S = 1.0
_QUEUE = 256
_PUBLISH_QUEUE = 1024


class Messages(Protocol):
    """What the watchers need of the store's channel."""

    async def listen(self, topic: str) -> None:
        """Listen to one more topic."""

    async def leave(self, topic: str) -> None:
        """Listen to a topic no more."""

    async def publish(self, topic: str, message: bytes) -> int:
        """Send a message and return how many listeners took it."""
        ...


class Announcer(Protocol):
    """What the watchers need of the engine: it tells what it commits."""

    def announce_to(self, announce: Any) -> None:
        """Tell committed predictions to a function, or to nobody."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a watcher follows: one stream, those whose id begins with `prefix`, or all of a model."""

    tenant: str
    model: str
    stream: str | None = None
    prefix: str = ""

    @property
    def topic(self) -> str:
        """Where the workers publish this model's commits."""
        return _topic(self.tenant, self.model)

    def covers(self, model: str, stream: str) -> bool:
        """Whether an event of a stream is wanted."""
        if model != self.model:
            return False
        return stream == self.stream if self.stream is not None else stream.startswith(self.prefix)


@dataclass(slots=True, eq=False)
class Watcher:
    """One who follows: events wait here until they are read; the oldest are lost when too many wait."""

    wants: Sequence[Want]
    inputs: bool
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_QUEUE))
    lost: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, event: dict[str, Any]) -> None:
        """Add an event as `Watchers` made it."""
        if len(self.events) == _QUEUE:
            self.lost += 1
        self.events.append(event)
        self.arrived.set()

    def lose(self) -> None:
        """Note that at least one event was missed."""
        self.lost += 1
        self.arrived.set()

    async def take(self) -> tuple[int, list[dict[str, Any]]]:
        """Wait for events; return how many were lost before them, and all that wait."""
        await self.arrived.wait()
        self.arrived.clear()
        lost, self.lost = self.lost, 0
        events = list(self.events)
        self.events.clear()
        return lost, events


class Watchers:
    """All who watch through this worker, and what is watched anywhere."""

    def __init__(self, engine: Announcer) -> None:
        """Begin with nobody.

        Args:
            engine: Whose commits are published.
        """
        self._engine = engine
        self._messages: Messages | None = None
        self._watchers: set[Watcher] = set()
        self._wanted: dict[str, float] = {}  # topic: until when, on the loop's clock
        self._acks: dict[bytes, tuple[int, asyncio.Event]] = {}
        self._self = secrets.token_hex(8)
        self._outbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(_PUBLISH_QUEUE)
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        """Watchers of this worker."""
        return len(self._watchers)

    @property
    def own_topic(self) -> str:
        """Where other workers acknowledge to this one."""
        return f"{CONTROL_TOPIC}:{self._self}"

    def start(self, messages: Messages) -> None:
        """Begin to publish and to renew what is wanted."""
        self._messages = messages
        self._tasks = [asyncio.create_task(self._publish()), asyncio.create_task(self._renew())]

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def add(self, watcher: Watcher) -> None:
        """Register a watcher; when this returns, commits of every worker reach it."""
        self._watchers.add(watcher)
        if self._messages is not None:
            for topic in {want.topic for want in watcher.wants}:
                await self._messages.listen(topic)
                await self._ask(topic)

    async def remove(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        self._watchers.discard(watcher)
        if self._messages is not None:
            for topic in {want.topic for want in watcher.wants} - self._followed():
                await self._messages.leave(topic)

    # ---------------------------------------------------------------- between workers

    async def hear(self, topic: str, message: bytes) -> None:
        """Take a message of the channel."""
        if topic == CONTROL_TOPIC:
            want = msgspec.msgpack.decode(message)
            self._wanted[want["topic"]] = asyncio.get_running_loop().time() + _WANT_LASTS_S
            self._engine.announce_to(self.announce)
            if self._messages is not None and want.get("ack"):
                await self._messages.publish(f"{CONTROL_TOPIC}:{want['from']}", want["ack"])
        elif topic == self.own_topic:
            if message in self._acks:
                missing, done = self._acks[message]
                self._acks[message] = (missing - 1, done)
                if missing <= 1:
                    done.set()
        else:
            for event in msgspec.msgpack.decode(message):
                self._deliver(event)

    def gap(self) -> None:
        """Tell every watcher that events may have been missed."""
        for watcher in self._watchers:
            watcher.lose()

    def announce(self, served: ServedModel, applied: Sequence[tuple[Timestep, Prediction]]) -> None:
        """Publish commits of models that somebody watches; the engine calls it after it answered."""
        now = asyncio.get_running_loop().time()
        by_topic: dict[str, list[dict[str, Any]]] = {}
        for timestep, prediction in applied:
            topic = _topic(timestep.key.tenant, served.name)
            if self._wanted.get(topic, 0.0) > now:
                by_topic.setdefault(topic, []).append(_event(timestep, prediction))
        for topic, events in by_topic.items():
            with contextlib.suppress(asyncio.QueueFull):
                self._outbox.put_nowait((topic, msgspec.msgpack.encode(events)))

    async def _ask(self, topic: str) -> None:
        """Tell every worker that a topic is wanted, and wait until they all know."""
        assert self._messages is not None
        ack, done = secrets.token_bytes(8), asyncio.Event()
        self._acks[ack] = (1 << 30, done)
        want = msgspec.msgpack.encode({"topic": topic, "from": self._self, "ack": ack})
        workers = await self._messages.publish(CONTROL_TOPIC, want)
        counted = (1 << 30) - self._acks[ack][0]
        self._acks[ack] = (workers - counted, done)
        if workers > counted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ACK_WITHIN_S):
                    await done.wait()
        del self._acks[ack]

    async def _publish(self) -> None:
        assert self._messages is not None
        while True:
            topic, message = await self._outbox.get()
            await self._messages.publish(topic, message)

    async def _renew(self) -> None:
        assert self._messages is not None
        while True:
            await asyncio.sleep(_WANT_EVERY_S)
            now = asyncio.get_running_loop().time()
            self._wanted = {topic: until for topic, until in self._wanted.items() if until > now}
            if not self._wanted:
                self._engine.announce_to(None)
            for topic in self._followed():
                want = msgspec.msgpack.encode({"topic": topic, "from": self._self})
                await self._messages.publish(CONTROL_TOPIC, want)

    def _followed(self) -> set[str]:
        return {want.topic for watcher in self._watchers for want in watcher.wants}

    def _deliver(self, event: dict[str, Any]) -> None:
        for watcher in self._watchers:
            if any(
                want.tenant == event["tenant"] and want.covers(event["model"], event["stream"])
                for want in watcher.wants
            ):
                watcher.offer(event)


def _topic(tenant: str, model: str) -> str:
    return f"{CONTROL_TOPIC}:{tenant}/{model}"


def _event(timestep: Timestep, prediction: Prediction) -> dict[str, Any]:
    single = timestep.length == 1
    return {
        "tenant": timestep.key.tenant,
        "model": timestep.key.model,
        "stream": timestep.key.stream,
        "step": prediction.step,
        "state_id": prediction.state_id,
        "outputs": _packed(prediction.outputs, single=single),
        "inputs": _packed(timestep.inputs, single=single),
    }


def _packed(arrays: Mapping[str, Array], *, single: bool) -> dict[str, dict[str, Any]]:
    return {name: _tensor(array[0] if single and len(array) else array) for name, array in arrays.items()}


def _tensor(array: Array) -> dict[str, Any]:
    return {"d": array.dtype.name, "s": list(array.shape), "b": array.tobytes()}
