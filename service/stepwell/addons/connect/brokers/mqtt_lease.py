"""`MqttLease`: where the lease of a client name is kept, by which one connector reads and the others stand by.

The broker admits one connection for each client name, so two connectors never read at the same time. The lease only
keeps a second connector from ending the first one: a retained message that the reading connector renews, and that the
broker removes when its connection is lost.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Final

from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stepwell.addons.connect.brokers.mqtt_session import MqttSession
from stepwell.addons.connect.messages import ConnectError
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.waiting import happens

LEASE_S: Final = 20.0
_TOPIC: Final = "stepwell/connect/{}"
_WAIT_S: Final = 0.5


class MqttLease:
    """A retained message with the name of its holder."""

    errors: tuple[type[Exception], ...] = (ConnectError,)

    def __init__(self, url: BrokerUrl, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create it; nothing is connected yet.

        Args:
            url: The broker.
            name: The client name.
            clock: Returns the time in seconds.
        """
        self.topic = _TOPIC.format(name)
        self._clock = clock
        self._holder = ""
        self._seen_at = 0.0
        self._has_put = False
        self._changed = asyncio.Event()
        self._observer = MqttSession(url, f"stepwell-{secrets.token_hex(6)}", on_message=self._on_message)

    async def open(self) -> None:
        """Connect, and learn which connector reads; raises as `MqttSession.subscribe` does."""
        await self._observer.connect()
        await self._observer.subscribe(self.topic, 1)
        await self.wait()

    async def put(self, holder: str, lease_ms: int, *, only_renew: bool, timeout_s: float) -> str:
        """Implement `LeaseEntry`. Of two that put it at once, the one whose message is the broker's last one has it."""
        self._observer.check()
        if self._clock() - self._seen_at > LEASE_S:
            self._holder = ""  # the broker removes an expired message without a word
        if self._holder not in ("", holder) or (only_renew and not self._has_put):
            return self._holder
        self._has_put = lease_ms > 0
        properties = Properties(PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = max(1, lease_ms // 1000)
        body = holder.encode() if lease_ms else b""
        self._changed.clear()
        self._observer.client.publish(self.topic, body, qos=1, retain=True, properties=properties)
        if lease_ms:
            await happens(self._changed, min(timeout_s, _WAIT_S))
        return self._holder or (holder if lease_ms else "")

    async def wait(self) -> None:
        """Wait for a message about the lease, at most half a second."""
        self._changed.clear()
        await happens(self._changed, _WAIT_S)

    async def close(self) -> None:
        """Disconnect."""
        await self._observer.close()

    def _on_message(self, message: mqtt.MQTTMessage) -> None:
        self._holder, self._seen_at = message.payload.decode(errors="replace"), self._clock()
        self._changed.set()
