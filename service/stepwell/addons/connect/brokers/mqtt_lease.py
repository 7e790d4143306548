"""`MqttLease`: which connector of a client name reads; the others stand by.

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
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.background import happens

_TOPIC: Final = "stepwell/connect/{}"
_RENEW_EVERY_S: Final = 5.0
_LEASE_S: Final = 20.0
"""Seconds without a renewal after which a connector counts as gone, if the broker has not removed its message."""

_WAIT_S: Final = 0.5


class MqttLease:
    """The lease of one client name."""

    def __init__(self, url: BrokerUrl, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create it; nothing is connected yet.

        Args:
            url: The broker.
            name: The client name.
            clock: Returns the time in seconds.
        """
        self.topic = _TOPIC.format(name)
        self._token = secrets.token_hex(8).encode()
        self._clock = clock
        self._holder = b""
        self._renewed_at = 0.0
        self._changed = asyncio.Event()
        self._observer = MqttSession(url, f"stepwell-{secrets.token_hex(6)}", on_message=self._on_message)
        self._renewing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and learn which connector reads; raises as `MqttSession.subscribe` does."""
        await self._observer.connect()
        await self._observer.subscribe(self.topic, 1)
        await self._wait()

    async def is_free(self) -> bool:
        """Return whether no other connector reads; if one does, after waiting a moment."""
        self._observer.check()
        if self._is_held():
            await self._wait()
        return not self._is_held()

    def hold(self, session: MqttSession) -> None:
        """Announce that this connector reads, as long as its session lasts."""
        self._renewing = asyncio.create_task(self._renew(session), name="connect-lease")

    async def close(self, session: MqttSession | None) -> None:
        """Give the lease back, if this connector has it, and disconnect."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            if session is not None and not session.lost.done():
                session.client.publish(self.topic, b"", qos=1, retain=True)
        await self._observer.close()

    def _is_held(self) -> bool:
        return self._holder not in (b"", self._token) and self._clock() - self._renewed_at < _LEASE_S

    async def _renew(self, session: MqttSession) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = int(_LEASE_S)
        while not session.lost.done():
            session.client.publish(self.topic, self._token, qos=1, retain=True, properties=properties)
            await asyncio.wait({session.lost}, timeout=_RENEW_EVERY_S)

    async def _wait(self) -> None:
        """Wait for a message about the lease, at most half a second."""
        self._changed.clear()
        await happens(self._changed, _WAIT_S)

    def _on_message(self, message: mqtt.MQTTMessage) -> None:
        self._holder, self._renewed_at = message.payload, self._clock()
        self._changed.set()
