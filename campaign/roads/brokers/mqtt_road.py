"""Mosquitto as a road: a segment of the topic is the stream, and a field of the messages the position."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from campaign.roads.brokers.rabbitmq_road import all_that_arrived
from campaign.roads.road import Sent
from tests.addons.connect.brokers import mosquitto

_WAIT_S: Final = 0.5
_AT_ONCE: Final = 1000
_POLL_S: Final = 0.005


class MqttRoad:
    """Topics `in/STREAM`, `out/STREAM` and `dead`."""

    name = "mqtt"
    may_double = True
    needs_reader_first = True
    shares_work = False
    accepts_large = True

    def __init__(self, port: int) -> None:
        """Use `mqtt_road`.

        Args:
            port: The broker's port.
        """
        self._port = port
        self._client: Any = None
        self._arrived: dict[str, asyncio.Queue[bytes]] = {"out": asyncio.Queue(), "dead": asyncio.Queue()}

    def flags(self, *, alone: bool) -> list[str]:
        """Return the connector's words."""
        base = f"mqtt://127.0.0.1:{self._port}"
        return [
            *(f"{base}/in/{{stream}}?client=c", "--stream", "topic", "--position", "n"),
            *("--to", f"{base}/out/{{stream}}", "--dead-letter", f"{base}/dead"),
        ]

    async def open(self) -> None:
        """Connect, and subscribe to what is written."""
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        loop = asyncio.get_running_loop()
        subscribed = asyncio.Event()
        self._client = client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.max_inflight_messages_set(_AT_ONCE)

        def on_message(_client: object, _data: object, message: Any) -> None:
            queue = self._arrived[message.topic.partition("/")[0]]
            loop.call_soon_threadsafe(queue.put_nowait, message.payload)

        client.on_message = on_message
        client.on_subscribe = lambda *_: loop.call_soon_threadsafe(subscribed.set)
        client.connect("127.0.0.1", self._port)
        client.loop_start()
        client.subscribe([("out/#", 1), ("dead", 1)])
        await subscribed.wait()

    async def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        with contextlib.suppress(AttributeError):  # paho's thread may end while it is waited for, and is gone then
            await asyncio.to_thread(self._client.loop_stop)

    def partition_of(self, _stream: str) -> int:
        """Return 0: there are no partitions."""
        return 0

    async def publish(self, messages: Sequence[Sent]) -> None:
        """Publish messages with QoS 1."""
        for start in range(0, len(messages), _AT_ONCE):
            part = messages[start : start + _AT_ONCE]
            sent = [self._client.publish(f"in/{one.stream}", one.body, qos=1) for one in part]
            for one in sent:  # not in a thread: it would wait forever once the broker has ended
                while not one.is_published():  # noqa: ASYNC110 - paho calls back in its thread, for each message
                    await asyncio.sleep(_POLL_S)

    async def read(self, place: str) -> list[bytes]:
        """Return the messages that are new in a place."""
        return await all_that_arrived(self._arrived[place], _WAIT_S)


@contextlib.asynccontextmanager
async def mqtt_road(folder: Path) -> AsyncIterator[MqttRoad]:
    """Run Mosquitto."""
    with mosquitto(folder) as broker:
        road = MqttRoad(broker.port)
        await road.open()
        try:
            yield road
        finally:
            await road.close()
