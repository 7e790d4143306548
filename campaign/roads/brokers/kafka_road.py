"""A broker of the Kafka protocol as a road: the key of a message is its stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from campaign.roads.road import Sent
from tests.addons.connect.brokers import kafka

_PARTITIONS: Final = {"in": 4, "out": 2, "dead": 1}
_WAIT_MS: Final = 500
_AT_ONCE: Final = 5000


class KafkaRoad:
    """Topics `in`, `out` and `dead`."""

    name = "kafka"
    may_double = True
    needs_reader_first = False
    shares_work = True
    accepts_large = True

    def __init__(self, address: str) -> None:
        """Use `kafka_road`.

        Args:
            address: `HOST:PORT` of the broker.
        """
        self._address = address
        self._producer: Any = None
        self._consumers: dict[str, Any] = {}

    def flags(self, *, alone: bool) -> list[str]:
        """Return the connector's words; one that is alone is a static member, so a new start waits for no session."""
        base = f"kafka://{self._address}"
        return [
            *(f"{base}/in?group=g{'&member=m' if alone else ''}", "--stream", "key"),
            *("--to", f"{base}/out", "--dead-letter", f"{base}/dead"),
        ]

    async def open(self) -> None:
        """Create the topics, and connect."""
        from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self._address)
        await admin.start()
        for topic, n in _PARTITIONS.items():  # one call each: some brokers respond for the first one only
            await admin.create_topics([NewTopic(topic, n, 1)])
        await admin.close()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._address,
            acks="all",
            linger_ms=5,
            max_request_size=16 << 20,
            request_timeout_ms=300_000,  # a request that is sent again after a timeout would publish messages twice
        )
        await self._producer.start()
        for topic in ("out", "dead"):
            one = AIOKafkaConsumer(topic, bootstrap_servers=self._address, auto_offset_reset="earliest")
            await one.start()
            self._consumers[topic] = one

    async def close(self) -> None:
        """Disconnect."""
        for one in (self._producer, *self._consumers.values()):
            with contextlib.suppress(Exception):  # the broker is stopped anyway
                await one.stop()

    def partition_of(self, stream: str) -> int:
        """Return the partition of a stream, as Kafka's clients choose it by the key."""
        from aiokafka.partitioner import murmur2

        return int(murmur2(stream.encode()) & 0x7FFFFFFF) % _PARTITIONS["in"]

    async def publish(self, messages: Sequence[Sent]) -> None:
        """Publish messages."""
        for start in range(0, len(messages), _AT_ONCE):
            part = messages[start : start + _AT_ONCE]
            sent = [await self._producer.send("in", one.body, key=one.stream.encode()) for one in part]
            await asyncio.gather(*sent)

    async def read(self, place: str) -> list[bytes]:
        """Return the messages that are new in a place."""
        found = await self._consumers[place].getmany(timeout_ms=_WAIT_MS)
        return [one.value for records in found.values() for one in records]


@contextlib.asynccontextmanager
async def kafka_road(folder: Path) -> AsyncIterator[KafkaRoad]:
    """Run a broker of the Kafka protocol."""
    with kafka(folder) as broker:
        road = KafkaRoad(f"127.0.0.1:{broker.port}")
        await road.open()
        try:
            yield road
        finally:
            await road.close()
