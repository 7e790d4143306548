"""RabbitMQ as a road: queues, and a field of the messages as position."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from campaign.roads.road import Sent
from tests.addons.connect.brokers import rabbitmq

_WAIT_S: Final = 0.5
_AT_ONCE: Final = 2000


class RabbitRoad:
    """Queues `in`, `out` and `dead`."""

    name = "rabbitmq"
    may_double = True
    needs_reader_first = False
    shares_work = False
    accepts_large = True

    def __init__(self, port: int) -> None:
        """Use `rabbitmq_road`.

        Args:
            port: The broker's port.
        """
        self._port = port
        self._connection: Any = None
        self._channel: Any = None
        self._arrived: dict[str, asyncio.Queue[bytes]] = {}

    def flags(self, *, alone: bool) -> list[str]:
        """Return the connector's words."""
        base = f"amqp://127.0.0.1:{self._port}"
        return [
            *(f"{base}/in", "--stream", "stream", "--position", "n"),
            *("--to", f"{base}/out", "--dead-letter", f"{base}/dead"),
        ]

    async def open(self) -> None:
        """Connect, create the queues, and consume those that are written."""
        import aio_pika

        self._connection = await aio_pika.connect(host="127.0.0.1", port=self._port)
        self._channel = await self._connection.channel(publisher_confirms=True)
        for name in ("in", "out", "dead"):
            queue = await self._channel.declare_queue(name, durable=True)
            if name != "in":
                arrived: asyncio.Queue[bytes] = asyncio.Queue()
                self._arrived[name] = arrived
                await queue.consume(lambda message, to=arrived: to.put(message.body), no_ack=True)

    async def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(Exception):  # the broker is stopped anyway
            await self._connection.close()

    def partition_of(self, _stream: str) -> int:
        """Return 0: there are no partitions."""
        return 0

    async def publish(self, messages: Sequence[Sent]) -> None:
        """Publish messages."""
        import aio_pika

        exchange = self._channel.default_exchange
        for start in range(0, len(messages), _AT_ONCE):
            part = messages[start : start + _AT_ONCE]
            await asyncio.gather(*(exchange.publish(aio_pika.Message(one.body), "in") for one in part))

    async def read(self, place: str) -> list[bytes]:
        """Return the messages that are new in a place."""
        return await all_that_arrived(self._arrived[place], _WAIT_S)


async def all_that_arrived(arrived: asyncio.Queue[bytes], wait_s: float) -> list[bytes]:
    """Return what is in a queue, once something is, or after some seconds."""
    found = []
    with contextlib.suppress(TimeoutError):
        found.append(await asyncio.wait_for(arrived.get(), wait_s))
    while not arrived.empty():
        found.append(arrived.get_nowait())
    return found


@contextlib.asynccontextmanager
async def rabbitmq_road(folder: Path) -> AsyncIterator[RabbitRoad]:
    """Run RabbitMQ."""
    with rabbitmq(folder) as broker:
        road = RabbitRoad(broker.port)
        await road.open()
        try:
            yield road
        finally:
            await road.close()
