"""`InterestGossip`: workers tell each other what is followed through them, so that each knows what to publish."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from service.background import cancel, run_forever
from service.engine.watch.interests import TOPIC, InterestTable, Subscription

_log = logging.getLogger(__name__)

_RENEW_INTERVAL_S: Final = 5.0
_INTEREST_TTL_S: Final = 15.0  # that what a worker wants is remembered, once it says no more
_ACK_TIMEOUT_S: Final = 1.0


class PubSub(Protocol):
    """What is needed of the store's channel."""

    async def start(self, listener: Any) -> None:
        """Begin to hear: `listener` is told of messages, and where they are missed."""

    async def close(self) -> None:
        """Hear no more."""

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Listen to more topics; when this returns, what is published on them is heard."""

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Listen to topics no more."""

    async def publish(self, topic: str, message: bytes) -> int | None:
        """Send a message and return how many workers took it; 0 also where the store is away, None: nobody knows."""
        ...


class _GossipMessage(msgspec.Struct, omit_defaults=True):
    """What a worker tells.

    Attributes:
        sender: The topic on which it hears answers.
        wants: What is followed through it.
        ask: To be answered with this, once `subscriptions` is noted.
        hello: It has just come, so the answer is to say what is followed elsewhere.
        answer: What was asked with.
    """

    sender: str
    subscriptions: list[Subscription] = []
    wants_ack: bytes = b""
    request_all: bool = False
    ack: bytes = b""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_GossipMessage).decode


class InterestGossip:
    """What is followed through this worker, told to the others; and theirs, told to the `InterestTable`.

    Attributes:
        own_topic: Where this worker hears answers.
    """

    def __init__(self, audience: InterestTable, messages: PubSub, own: Callable[[], list[Subscription]]) -> None:
        """Prepare.

        Args:
            audience: Takes note of what is followed anywhere.
            messages: To the other workers.
            own: Gives what is followed through this worker.
        """
        self.own_topic = f"{TOPIC}:{secrets.token_hex(8)}"
        self._interests = audience
        self._pubsub = messages
        self._own_subscriptions = own
        self._pending_acks: dict[bytes, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._complete_at = float("inf")

    async def start(self) -> None:
        """Begin to listen and to renew what is wanted; at first, what others want is still to be heard."""
        self.mark_stale()
        await self._pubsub.subscribe([TOPIC, self.own_topic])
        await self._request_all()
        self._spawn(run_forever(self._renew, every_s=_RENEW_INTERVAL_S, name="Renewing what is watched"))

    async def close(self) -> None:
        """Stop."""
        await cancel(self._tasks)

    async def announce(self, wants: Sequence[Subscription]) -> None:
        """Tell every worker what is wanted more; when this returns, they know it, or are too slow to say so."""
        self._interests.add(wants, self._until())
        if not await self._broadcast_and_wait(_GossipMessage(self.own_topic, subscriptions=list(wants))):
            _log.warning("Not every worker has confirmed within %g s that it tells what is watched", _ACK_TIMEOUT_S)

    def mark_stale(self) -> None:
        """Say that this worker does not hear the others, so that it tells everything."""
        self._interests.publish_all = True
        self._complete_at = float("inf")

    def resync(self) -> None:
        """Say that this worker hears the others again."""
        self._spawn(self._request_all())

    def on_message(self, topic: str, message: bytes) -> bool:
        """Take a message; False: it is not about wants."""
        if topic not in (TOPIC, self.own_topic):
            return False
        word = _decode(message)
        self._interests.add(word.subscriptions, self._until())
        if word.wants_ack:
            known = self._own_subscriptions() if word.request_all else []
            answer = _encode(_GossipMessage(self.own_topic, subscriptions=known, ack=word.wants_ack))
            self._spawn(self._pubsub.publish(word.sender, answer))
        if (answers := self._pending_acks.get(word.ack)) is not None:
            answers.release()
        return True

    # ---------------------------------------------------------------- helpers

    async def _request_all(self) -> None:
        """Ask every worker what is followed through it."""
        self._complete_at = self._until()  # by then each has said it by itself
        if await self._broadcast_and_wait(_GossipMessage(self.own_topic, request_all=True)):
            self._interests.publish_all = False

    async def _broadcast_and_wait(self, word: _GossipMessage) -> bool:
        """Send a word and wait for an answer from each worker that took it; False: not all came in time."""
        word.wants_ack = secrets.token_bytes(8)
        answers = self._pending_acks[word.wants_ack] = asyncio.Semaphore(0)
        workers: int | None = 0
        try:
            async with asyncio.timeout(_ACK_TIMEOUT_S):
                workers = await self._pubsub.publish(TOPIC, _encode(word))
                if workers is None:
                    await asyncio.sleep(_ACK_TIMEOUT_S)  # each has its time
                for _ in range(workers or 0):
                    await answers.acquire()
        except TimeoutError:
            return workers is None
        finally:
            del self._pending_acks[word.wants_ack]
        return workers != 0

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._interests.publish_all and now >= self._complete_at:
            self._interests.publish_all = False
        self._interests.expire(now)
        if wants := self._own_subscriptions():
            self._interests.add(wants, self._until())
            await self._pubsub.publish(TOPIC, _encode(_GossipMessage(self.own_topic, subscriptions=wants)))

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + _INTEREST_TTL_S

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
