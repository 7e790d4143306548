"""MQTT: a filter is subscribed with QoS 1 and acknowledged by hand, and messages are published with QoS 1."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from service.connect.brokers.protocol import ReaderOptions
from service.connect.messages import BrokerMessage, BrokerUnavailableError, ConnectError, OutMessage
from service.connect.urls import BrokerUrl

_PORTS: Final = {False: 1883, True: 8883}
_WAIT_S: Final = 0.5
_QUIET_S: Final = 2.0
"""Seconds without a message after which `once` ends: MQTT has no end to compare with."""

_TIMEOUT_S: Final = 10.0
_IN_FLIGHT: Final = 4096
_MAX_WAITING: Final = 65536
"""Messages with QoS 0 that wait for the service; newer ones are dropped. Those with QoS 1 wait in the broker."""

_FOREVER: Final = 0xFFFFFFFF
_TAKEN_OVER: Final = 142  # a reason code of MQTT 5
_REFUSED: Final = range(128, 163)
_ENCODE = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}


def open_reader(url: BrokerUrl, options: ReaderOptions) -> MqttReader:
    """Return the reader of a filter."""
    return MqttReader(url, options)


def open_writer(url: BrokerUrl, body_format: str) -> MqttWriter:
    """Return the writer of a topic."""
    return MqttWriter(url, body_format)


class _Session:
    """One connection to a broker; paho's thread runs it, and its events arrive in the event loop."""

    def __init__(self, url: BrokerUrl, client_id: str, *, keep: bool, on_message: Callable[[Any], None]) -> None:
        """Create a session, which is not connected yet.

        Args:
            url: The broker.
            client_id: The client's name.
            keep: The broker keeps subscriptions and messages while the client is away.
            on_message: Called in the event loop with each message.
        """
        self._url = url
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[int] = self._loop.create_future()
        self._subscribed: asyncio.Future[Any] = self._loop.create_future()
        self.lost: asyncio.Future[int] = self._loop.create_future()
        self.client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,  # a new connection gets what was not acknowledged, so it is a new start
            manual_ack=True,
        )
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.max_queued_messages_set(0)
        if url.user is not None:
            client.username_pw_set(url.user, url.password)
        if url.is_encrypted:
            client.tls_set()
        client.on_connect = lambda _c, _u, _f, code, _p: self._post(self._connected, code.value)
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self._post(self._subscribed, codes)
        client.on_disconnect = lambda _c, _u, _f, code, _p: self._post(self.lost, code.value)
        client.on_message = lambda _c, _u, message: self._call(on_message, message)

    async def connect(self) -> None:
        """Connect and wait for the broker's consent."""
        properties = Properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum = _IN_FLIGHT
        if self._keep:
            properties.SessionExpiryInterval = _FOREVER
        host, port = self._url.address(_PORTS[self._url.is_encrypted])
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await asyncio.to_thread(
                    self.client.connect, host, port, clean_start=not self._keep, properties=properties
                )
                self.client.loop_start()
                await asyncio.wait({self._connected, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, TimeoutError, ValueError) as exc:
            raise BrokerUnavailableError(f"{self._url.text} does not respond: {exc or 'timeout'}") from exc
        self.check()
        if self._connected.result() in _REFUSED:
            code = mqtt.ReasonCode(PacketTypes.CONNACK, identifier=self._connected.result())
            raise ConnectError(f"{self._url.text} refuses the connection: {code}.", fix="Check user and password.")

    async def subscribe(self, topic: str, qos: int) -> None:
        """Subscribe to a filter."""
        self.client.subscribe(topic, qos)
        await asyncio.wait({self._subscribed, self.lost}, timeout=_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        self.check()
        if not self._subscribed.done():
            raise BrokerUnavailableError(f"{self._url.text} does not confirm the subscription")
        code = self._subscribed.result()[0]
        if code.value in _REFUSED:
            raise ConnectError(f"{self._url.text} refuses to subscribe to {topic!r}: {code}.")

    def check(self) -> None:
        """Check that the connection is there.

        Raises:
            BrokerUnavailableError: It was lost.
            ConnectError: Another client has the same name.
        """
        if not self.lost.done():
            return
        if self.lost.result() == _TAKEN_OVER:
            raise ConnectError(
                f"Another client has connected to {self._url.text} with the same client name.",
                fix="Run one connector for each ?client=NAME.",
            )
        raise BrokerUnavailableError(f"the connection to {self._url.text} was lost")

    async def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(OSError, ValueError):
            self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)

    def _post(self, future: asyncio.Future[Any], value: Any) -> None:
        self._call(lambda one: None if future.done() else future.set_result(one), value)

    def _call(self, function: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(function, value)


class MqttReader:
    """Subscribes to a filter; `{stream}` in it is one segment.

    With `?client=NAME` the broker keeps what was not acknowledged while the connector is away. MQTT has no positions:
    a message that is delivered twice is found only by a field that grows.
    """

    def __init__(self, url: BrokerUrl, options: ReaderOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `open_reader`."""
        self._url = url
        self._options = options
        self._filter = url.wildcard("+")
        self._clock = clock
        self._session: _Session | None = None
        self._waiting: deque[mqtt.MQTTMessage] = deque()
        self._arrived = asyncio.Event()
        self._last_at = 0.0

    async def open(self) -> None:
        """Connect and subscribe."""
        name = None if self._options.preview else self._url.options.get("client")
        self._waiting.clear()
        self._session = _Session(
            self._url,
            name or f"stepwell-{secrets.token_hex(6)}",
            keep=name is not None,
            on_message=self._on_message,
        )
        await self._session.connect()
        await self._session.subscribe(self._filter, 0 if self._options.preview else 1)
        self._last_at = self._clock()

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the messages that have arrived."""
        assert self._session is not None
        if not self._waiting:
            self._session.check()
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), _WAIT_S)
        source = f"mqtt:{self._filter}"
        messages: list[BrokerMessage] = []
        while self._waiting and len(messages) < limit:
            one = self._waiting.popleft()
            messages.append(BrokerMessage(one.payload, source, None, source, topic=one.topic, handle=one))
        return messages

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge the messages with QoS 1."""
        assert self._session is not None
        self._session.check()
        for message in messages:
            if message.handle.qos:
                self._session.client.ack(message.handle.mid, message.handle.qos)

    async def is_current(self) -> bool:
        """Return True: a connector with the same client name ends the connection of this one."""
        return True

    @property
    def is_done(self) -> bool:
        """Whether no message has arrived for two seconds; only with `once`."""
        is_quiet = not self._waiting and self._clock() - self._last_at > _QUIET_S
        return self._options.once and is_quiet

    def lag(self) -> int | None:
        """Return the number of messages that have arrived and wait."""
        return len(self._waiting)

    async def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _on_message(self, message: mqtt.MQTTMessage) -> None:
        self._last_at = self._clock()
        if message.qos or len(self._waiting) < _MAX_WAITING:
            self._waiting.append(message)
        self._arrived.set()


class MqttWriter:
    """Publishes messages with QoS 1; `{stream}` in the topic is replaced by the stream's id.

    A message is published twice if the connector was killed, or a confirmation was lost, after it was published.
    """

    def __init__(self, url: BrokerUrl, body_format: str) -> None:
        """Use `open_writer`."""
        self._url = url
        self._encode = _ENCODE[body_format]
        self._session: _Session | None = None

    async def open(self) -> None:
        """Connect."""
        self._session = _Session(
            self._url, f"stepwell-{secrets.token_hex(6)}", keep=False, on_message=lambda _message: None
        )
        await self._session.connect()

    async def write(self, messages: Sequence[OutMessage]) -> None:
        """Publish the messages, and wait until the broker has confirmed all of them."""
        assert self._session is not None
        self._session.check()
        client = self._session.client
        sent = [client.publish(self._url.target(one.key), self._encode(one.document), qos=1) for one in messages]
        try:
            await asyncio.to_thread(_wait_for_all, sent)
        except (ValueError, RuntimeError) as exc:
            raise BrokerUnavailableError(f"{self._url.text} did not confirm: {exc}") from exc
        self._session.check()
        if not all(one.is_published() for one in sent):
            raise BrokerUnavailableError(f"{self._url.text} did not confirm all messages")

    async def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _wait_for_all(sent: Sequence[mqtt.MQTTMessageInfo]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    for one in sent:
        one.wait_for_publish(max(0.0, deadline - time.monotonic()))
