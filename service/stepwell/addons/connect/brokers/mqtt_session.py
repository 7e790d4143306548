"""`MqttSession`: one connection to an MQTT broker, whose events arrive in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stepwell.addons.connect.messages import AccessRefusedError, BrokerUnavailableError, ConnectError
from stepwell.addons.connect.urls import BrokerUrl

TIMEOUT_S: Final = 10.0
"""Seconds within which the broker has to respond."""

_PORTS: Final = {False: 1883, True: 8883}
_KEEP_ALIVE_S: Final = 20
IN_FLIGHT: Final = 4096
_FOREVER: Final = 0xFFFFFFFF
_NO_TOPIC: Final = "stepwell/nothing"  # nobody subscribes to it
_TAKEN_OVER: Final = 142  # a reason code of MQTT 5
_LAST_ANSWER_S: Final = 5.0
_REFUSED: Final = range(128, 163)
_LOGIN_REFUSED: Final = (134, 135, 138, 140)  # bad user or password, not authorized, banned, bad method
_BUSY: Final = (136, 137, 151, 156, 157, 159)  # the server is away or busy, a quota or a rate is reached


class MqttSession:
    """One connection to a broker; paho's thread runs it, and its events arrive in the event loop."""

    def __init__(
        self,
        url: BrokerUrl,
        client_id: str,
        *,
        keep: bool = False,
        on_message: Callable[[mqtt.MQTTMessage], None] = lambda _message: None,
        cleared_at_end: str | None = None,
    ) -> None:
        """Create a session, which is not connected yet.

        Args:
            url: The broker.
            client_id: The client's name.
            keep: The broker keeps subscriptions and messages while the client is away.
            on_message: Called in the event loop with each message.
            cleared_at_end: A topic whose retained message the broker removes when the connection is lost; None: none.

        Attributes:
            lost: Done once the connection has ended, with the reason's code.
        """
        self._url = url
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[int] = self._loop.create_future()
        self._is_resumed = False
        self._subscribed: asyncio.Future[Any] = self._loop.create_future()
        self._unsubscribed: asyncio.Future[Any] = self._loop.create_future()
        self.lost: asyncio.Future[int] = self._loop.create_future()
        self.client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,  # a new connection gets what was not acknowledged, so it is a new start
            manual_ack=True,
        )
        client.max_inflight_messages_set(IN_FLIGHT)
        client.max_queued_messages_set(0)
        if cleared_at_end is not None:
            client.will_set(cleared_at_end, b"", qos=1, retain=True)
        client.on_connect = lambda _c, _u, flags, code, _p: self._call(self._on_connect, (flags, code))
        client.on_subscribe = lambda _c, _u, _m, codes, _p: self._post(self._subscribed, codes)
        client.on_unsubscribe = lambda _c, _u, _m, codes, _p: self._post(self._unsubscribed, codes)
        client.on_disconnect = lambda _c, _u, _f, code, _p: self._post(self.lost, code.value)
        client.on_message = lambda _c, _u, message: self._call(on_message, message)

    async def connect(self) -> None:
        """Connect and wait for the broker's consent."""
        properties = Properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum = IN_FLIGHT
        if self._keep:
            properties.SessionExpiryInterval = _FOREVER
        login = await self._url.login.credentials()
        if login.user is not None:
            self.client.username_pw_set(login.user, login.password)
        if login.ssl_context is not None:
            self.client.tls_set_context(login.ssl_context)
        address = host, port = self._url.address(_PORTS[self._url.login.is_encrypted])
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.to_thread(
                    self.client.connect, host, port, _KEEP_ALIVE_S, clean_start=not self._keep, properties=properties
                )
                self.client.loop_start()
                await asyncio.wait({self._connected, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, TimeoutError, ValueError) as exc:
            raise await self._url.login.failure(self._url.text, address, exc) from exc
        if not self._connected.done():
            lost = ConnectionError("it has ended the connection")
            raise await self._url.login.failure(self._url.text, address, lost) from lost
        value = self._connected.result()
        if value in _REFUSED:
            code = mqtt.ReasonCode(PacketTypes.CONNACK, identifier=value)
            if value in _LOGIN_REFUSED:
                raise self._url.login.refused(self._url.text, code)
            if value in _BUSY:
                raise BrokerUnavailableError(f"{self._url.text} cannot do it now: {code}")
            raise ConnectError(f"{self._url.text} refuses the connection: {code}.", fix="Check the client's name.")
        self.check()

    async def subscribe(self, topic: str, qos: int) -> None:
        """Subscribe to a filter.

        If the broker has kept the session, its confirmation is not waited for: the broker first sends the messages that
        it has kept, and would have to send them again after a new connection.
        """
        self.client.subscribe(topic, qos)
        if not self._is_resumed:
            await asyncio.wait({self._subscribed, self.lost}, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        self.check()
        if not self._subscribed.done() and not self._is_resumed:
            raise BrokerUnavailableError(f"{self._url.text} does not confirm the subscription")

    def check(self) -> None:
        """Check that the connection is there, and that the broker has not refused the subscription.

        Raises:
            BrokerUnavailableError: It was lost, or another client has connected with the same name.
            ConnectError: The broker refuses the subscription.
        """
        if self._subscribed.done() and (code := self._subscribed.result()[0]).value in _REFUSED:
            raise AccessRefusedError(
                f"{self._url.text} refuses the subscription to the login {self._url.login}: {code}.",
                fix="Check the user's permissions.",
            )
        if not self.lost.done():
            return
        if self.lost.result() == _TAKEN_OVER:
            raise BrokerUnavailableError(f"another client has connected to {self._url.text} with the same client name")
        raise BrokerUnavailableError(f"the connection to {self._url.text} was lost")

    async def close(self) -> None:
        """Disconnect, once the broker has read what was sent.

        Where messages arrive that are not read any more, the end of a connection resets it, and the broker loses what
        it has not read yet: acknowledgements. Its answer to any request shows that it has read them.
        """
        if self._connected.done() and not self.lost.done():
            with contextlib.suppress(OSError, ValueError):
                self.client.unsubscribe(_NO_TOPIC)
                ended = {self._unsubscribed, self.lost}
                await asyncio.wait(ended, timeout=_LAST_ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(OSError, ValueError):
            self.client.disconnect()
        with contextlib.suppress(AttributeError):  # paho's thread may end while it is waited for, and is gone then
            await asyncio.to_thread(self.client.loop_stop)

    def _on_connect(self, reply: tuple[mqtt.ConnectFlags, mqtt.ReasonCode]) -> None:
        flags, code = reply
        self._is_resumed = flags.session_present
        if not self._connected.done():
            self._connected.set_result(code.value)

    def _post(self, future: asyncio.Future[Any], value: Any) -> None:
        self._call(lambda one: None if future.done() else future.set_result(one), value)

    def _call(self, function: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(function, value)
