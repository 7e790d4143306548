"""`InterestGossip`: workers announce their subscriptions to each other, so that each publishes the right events."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from stepwell.addons.watch.interests import TOPIC, InterestTable, Subscription
from stepwell.background import cancel, run_forever

if TYPE_CHECKING:
    from stepwell.addons.between_workers.pubsub import StorePubSub
    from stepwell.store.commits_under_way import CommitsUnderWay

_log = logging.getLogger(__name__)

_RENEW_INTERVAL_S: Final = 5.0
_INTEREST_TTL_S: Final = 15.0  # after a worker's last announcement its interests expire
_ACK_TIMEOUT_S: Final = 3.0  # a worker acknowledges once the commits that it has begun have ended
_UNCOUNTED_ACKS_S: Final = 1.0  # the pause in a Cluster, which does not return how many workers have got a message


class _GossipMessage(msgspec.Struct, omit_defaults=True):
    """A message between workers.

    Attributes:
        sender: The topic on which the sender receives acknowledgements.
        subscriptions: Subscriptions of the sender.
        wants_ack: Id of the requested acknowledgement, sent once each commit publishes to `subscriptions`; empty: none.
        request_all: The acknowledgement is to contain all subscriptions of its sender.
        ack: The id in `wants_ack` of the message that this one acknowledges; empty: none.
    """

    sender: str
    subscriptions: list[Subscription] = []
    wants_ack: bytes = b""
    request_all: bool = False
    ack: bytes = b""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_GossipMessage).decode


class InterestGossip:
    """Announces the subscriptions of this worker to the others, and puts theirs into the `InterestTable`.

    Attributes:
        own_topic: The topic on which this worker receives acknowledgements.
    """

    def __init__(
        self,
        interests: InterestTable,
        commits: CommitsUnderWay,
        pubsub: StorePubSub,
        own_subscriptions: Callable[[], list[Subscription]],
    ) -> None:
        """Create it; `start` subscribes."""
        self.own_topic = f"{TOPIC}:{secrets.token_hex(8)}"
        self._interests = interests
        self._commits = commits
        self._pubsub = pubsub
        self._own_subscriptions = own_subscriptions
        self._pending_acks: dict[bytes, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._complete_at = float("inf")

    async def start(self) -> None:
        """Subscribe, and start to renew the interests; all events are published until those of others are known."""
        self.mark_stale()
        await self._pubsub.subscribe([TOPIC, self.own_topic])
        await self._request_all()
        self._spawn(run_forever(self._renew, every_s=_RENEW_INTERVAL_S, name="Renewing the watchers' interests"))

    async def close(self) -> None:
        """Cancel the renewal."""
        await cancel(self._tasks)

    async def announce(self, subscriptions: Sequence[Subscription]) -> bool:
        """Announce additional subscriptions; returns whether every worker publishes to them from now on.

        True once every worker, this one included, has acknowledged them; False if one has not within 3 s. A Cluster
        does not return the number of workers: there it is True after 1 s, although one may not have received them.
        """
        self._interests.add(subscriptions, self._expiry(), worker=self.own_topic)
        has_all = await self._broadcast_and_wait(_GossipMessage(self.own_topic, subscriptions=list(subscriptions)))
        if not has_all:
            _log.warning(
                "Not every worker has acknowledged new subscriptions within %g s; the watcher gets a gap",
                _ACK_TIMEOUT_S,
            )
        return has_all

    def mark_stale(self) -> None:
        """Note that messages of the other workers are missed, so that this worker publishes all events."""
        self._interests.publish_all = True
        self._complete_at = float("inf")

    def resync(self) -> None:
        """Request the interests of the other workers again, after a new connection."""
        self._spawn(self._request_all())

    def on_message(self, topic: str, message: bytes) -> bool:
        """Handle a message; returns False if it is not a gossip message."""
        if topic not in (TOPIC, self.own_topic):
            return False
        gossip = _decode(message)
        self._interests.add(gossip.subscriptions, self._expiry(), worker=gossip.sender)
        if gossip.wants_ack:
            self._spawn(self._acknowledge(gossip))
        if (acks := self._pending_acks.get(gossip.ack)) is not None:
            acks.release()
        return True

    # ---------------------------------------------------------------- helpers

    async def _acknowledge(self, gossip: _GossipMessage) -> None:
        """Acknowledge a message once the commits that were begun without its subscriptions have ended."""
        own = self._own_subscriptions() if gossip.request_all else []
        if gossip.subscriptions:
            await self._commits.wait()
        ack = _encode(_GossipMessage(self.own_topic, subscriptions=own, ack=gossip.wants_ack))
        await self._pubsub.publish(gossip.sender, ack)

    async def _request_all(self) -> None:
        self._complete_at = self._expiry()  # by then each worker has announced them in any case
        if await self._broadcast_and_wait(_GossipMessage(self.own_topic, request_all=True)):
            self._interests.publish_all = False

    async def _broadcast_and_wait(self, gossip: _GossipMessage) -> bool:
        """Publish a message and wait for an acknowledgement from each worker; returns whether all arrived in time.

        In a Cluster, which does not return the number of workers: wait for 1 s, and return True.
        """
        gossip.wants_ack = secrets.token_bytes(8)
        acks = self._pending_acks[gossip.wants_ack] = asyncio.Semaphore(0)
        workers: int | None = 0
        try:
            async with asyncio.timeout(_ACK_TIMEOUT_S):
                workers = await self._pubsub.publish(TOPIC, _encode(gossip))
                if workers is None:
                    await asyncio.sleep(_UNCOUNTED_ACKS_S)
                for _ in range(workers or 0):
                    await acks.acquire()
        except TimeoutError:
            return False
        finally:
            del self._pending_acks[gossip.wants_ack]
        return workers != 0

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._interests.publish_all and now >= self._complete_at:
            self._interests.publish_all = False
        self._interests.expire(now)
        if own := self._own_subscriptions():
            self._interests.add(own, self._expiry(), worker=self.own_topic)
            await self._pubsub.publish(TOPIC, _encode(_GossipMessage(self.own_topic, subscriptions=own)))

    def _expiry(self) -> float:
        return asyncio.get_running_loop().time() + _INTEREST_TTL_S

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
