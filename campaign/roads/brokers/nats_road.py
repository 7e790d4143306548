"""NATS JetStream as a road: a token of the subject is the stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from campaign.roads.road import Sent
from tests.addons.connect.brokers import nats

_WAIT_S: Final = 0.5
_AT_ONCE: Final = 2000


class NatsRoad:
    """JetStream streams `IN`, `OUT` and `DEAD` with the subjects `in.*`, `out.*` and `dead.*`."""

    name = "nats"
    may_double = False  # within the window of duplicates
    needs_reader_first = False
    shares_work = False
    accepts_large = False  # 1 MB, unless it is configured

    def __init__(self, port: int) -> None:
        """Use `nats_road`.

        Args:
            port: The server's port.
        """
        self._base = f"nats://127.0.0.1:{port}"
        self._client: Any = None
        self._js: Any = None
        self._subscriptions: dict[str, Any] = {}

    def flags(self, *, alone: bool) -> list[str]:
        """Return the connector's words."""
        return [
            *(f"{self._base}/in.{{stream}}?durable=d", "--stream", "topic"),
            *("--to", f"{self._base}/out.{{stream}}", "--dead-letter", f"{self._base}/dead.all"),
        ]

    async def open(self) -> None:
        """Connect, and create the streams."""
        import nats as client
        from nats.js import api

        self._client = await client.connect(self._base)
        self._js = self._client.jetstream(timeout=30)
        for name in ("in", "out", "dead"):
            await self._js.add_stream(name=name.upper(), subjects=[f"{name}.>"])
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.ALL, max_ack_pending=-1)
        for name in ("out", "dead"):
            self._subscriptions[name] = await self._js.pull_subscribe(
                f"{name}.>", durable=f"campaign-{name}", config=config
            )

    async def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(Exception):  # the server is stopped anyway
            await self._client.close()

    def partition_of(self, _stream: str) -> int:
        """Return 0: there are no partitions."""
        return 0

    async def publish(self, messages: Sequence[Sent]) -> None:
        """Publish messages; the server's consent to the last one of a part shows that it has the others, too."""
        for start in range(0, len(messages), _AT_ONCE):
            *part, last = messages[start : start + _AT_ONCE]
            for one in part:
                await self._client.publish(f"in.{one.stream}", one.body)
            await self._js.publish(f"in.{last.stream}", last.body)

    async def read(self, place: str) -> list[bytes]:
        """Return the messages that are new in a place."""
        try:
            found = await self._subscriptions[place].fetch(_AT_ONCE, timeout=_WAIT_S)
        except TimeoutError:
            return []
        await found[-1].ack()  # and with it all before
        return [one.data for one in found]


@contextlib.asynccontextmanager
async def nats_road(folder: Path) -> AsyncIterator[NatsRoad]:
    """Run a NATS server."""
    with nats(folder) as broker:
        road = NatsRoad(broker.port)
        await road.open()
        try:
            yield road
        finally:
            await road.close()
