"""MQTT: a filter is subscribed with QoS 1 and acknowledged by hand, and messages are published with QoS 1."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from paho.mqtt import client as mqtt

from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.connect.brokers.interface import MarksEach, ReaderOptions
from stepwell.addons.connect.brokers.mqtt_lease import LEASE_S, MqttLease
from stepwell.addons.connect.brokers.mqtt_session import IN_FLIGHT, TIMEOUT_S, MqttSession
from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BrokerMessage,
    BrokerUnavailableError,
    ConnectUsageError,
    OutMessage,
    Undeliverable,
    encoder_of,
)
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.waiting import happens

_WAIT_S: Final = 0.5
_QUIET_S: Final = 2.0
"""Seconds without a message after which `once` ends: MQTT has no end to compare with."""

_REFUSED_S: Final = 30.0
"""Seconds for which a topic that the broker has refused is not tried again."""

_MAX_WAITING: Final = 65536
"""Messages with QoS 0 that wait for the service; newer ones are dropped. Those with QoS 1 wait in the broker."""


def open_reader(url: BrokerUrl, options: ReaderOptions) -> MqttReader:
    """Return the reader of a filter.

    Raises:
        ConnectUsageError: It is a shared subscription.
    """
    if url.path.startswith("$share/"):
        raise ConnectUsageError(
            f"{url.text!r} is a shared subscription, whose messages of one stream go to several connectors.",
            fix="Give the filter itself and ?client=NAME: one connector of a name reads, and the others stand by.",
        )
    return MqttReader(url, options)


def open_writer(url: BrokerUrl, body_format: str) -> MqttWriter:
    """Return the writer of a topic."""
    return MqttWriter(url, body_format)


class MqttReader(MarksEach):
    """Subscribes to a filter; `{stream}` in it is one segment.

    With `?client=NAME` the broker keeps what was not acknowledged while the connector is away, and of several
    connectors with the name one reads. MQTT has no positions: a message that is delivered twice is found only by a
    field that grows.
    """

    def __init__(self, url: BrokerUrl, options: ReaderOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `open_reader`."""
        self._url = url
        self._options = options
        self._filter = url.wildcard("+")
        self._name = None if options.preview else url.options.get("client")
        self._clock = clock
        self._entry: MqttLease | None = None
        self._lease: Lease | None = None  # None: nobody shares the client name
        self._session: MqttSession | None = None  # None: it stands by
        self._waiting: deque[mqtt.MQTTMessage] = deque()
        self._arrived = asyncio.Event()
        self._n_open = 0
        self.generation = 0
        self._last_at = 0.0

    async def open(self) -> None:
        """Connect; without a client name, or if no other connector has it, also subscribe."""
        self._waiting.clear()
        self._last_at = self._clock()
        if self._name is not None:
            self._entry = MqttLease(self._url, self._name)
            await self._entry.open()
            self._lease = Lease(self._entry, secrets.token_hex(8), lease_s=LEASE_S)
        await self._begin()

    async def _begin(self) -> bool:
        """Subscribe unless another connector reads; return whether this one does now."""
        if self._entry is not None and self._lease is not None and not await self._lease.acquire():
            await self._entry.wait()
            return False
        self._session = MqttSession(
            self._url,
            self._name or f"stepwell-{secrets.token_hex(6)}",
            keep=self._name is not None,
            on_message=self._on_message,
            cleared_at_end=None if self._entry is None else self._entry.topic,
        )
        await self._session.connect()
        if self._lease is not None:
            await self._lease.acquire()  # the end of another connection with this name may have removed it
            self._lease.hold()
        await self._session.subscribe(self._filter, 0 if self._options.preview else 1)
        self._last_at = self._clock()
        self._n_open = 0
        self.generation += 1
        return True

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the messages that have arrived; none while another connector with the client name reads."""
        if self._session is None and not await self._begin():
            return []
        assert self._session is not None
        self._session.check()  # what waits is delivered again after a new connection, behind what is open now
        if not self._waiting:
            self._arrived.clear()
            await happens(self._arrived, _WAIT_S)
        source = f"mqtt:{self._filter}"
        messages: list[BrokerMessage] = []
        while self._waiting and len(messages) < limit:
            one = self._waiting.popleft()
            self._n_open += one.qos > 0
            messages.append(BrokerMessage(one.payload, source, None, source, topic=one.topic, handle=one))
        return messages

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge the messages with QoS 1."""
        assert self._session is not None
        self._session.check()
        for message in messages:
            if message.handle.qos:
                self._session.client.ack(message.handle.mid, message.handle.qos)
        self._last_at = self._clock()  # only now the broker sends more than it may send ahead

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge messages of any polls."""
        await self.acknowledge(messages)
        self._n_open -= sum(one.handle.qos > 0 for one in messages)

    @property
    def window(self) -> int:
        """Messages that may be open at a time."""
        return IN_FLIGHT

    @property
    def is_full(self) -> bool:
        """Whether as many messages are open as the broker may send; it may send fewer, and does not say how many."""
        return self._n_open >= IN_FLIGHT

    async def is_current(self) -> bool:
        """Return whether this connector reads: one that takes over ends its connection."""
        if self._session is not None:
            self._session.check()
        return self._session is not None

    @property
    def is_done(self) -> bool:
        """Whether this connector reads, and no message has arrived for two seconds; only with `once`."""
        is_quiet = not self._waiting and self._clock() - self._last_at > _QUIET_S
        return self._options.once and self._session is not None and is_quiet

    def lag(self) -> int | None:
        """Return the number of messages that have arrived and wait."""
        return len(self._waiting)

    async def close(self) -> None:
        """Give the lease back and disconnect."""
        if self._lease is not None:
            await self._lease.release()
            self._lease = None
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._entry is not None:
            await self._entry.close()
            self._entry = None

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
        self._encode = encoder_of(body_format)
        self._session: MqttSession | None = None
        self._refused: dict[int, str] = {}  # why the broker refuses a message, by its id
        # By topic, with the time until which it is not tried again. Mosquitto 2.0.21 ends the connection after it has
        # refused a message: without this it would do so for ever, and the other topics would get nothing
        self._refused_topics: dict[str, tuple[float, str]] = {}

    async def open(self) -> None:
        """Connect."""
        self._session = MqttSession(self._url, f"stepwell-{secrets.token_hex(6)}")
        self._session.client.on_publish = self._on_confirmed
        await self._session.connect()

    def _on_confirmed(self, _client: object, _data: object, mid: int, code: mqtt.ReasonCode, _more: object) -> None:
        """Keep a refusal, in paho's thread; it is called before the message counts as published."""
        if code.is_failure:
            self._refused[mid] = str(code)

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Publish the messages, and wait until the broker has confirmed all of them."""
        assert self._session is not None
        self._session.check()
        now = time.monotonic()
        self._refused_topics = {topic: one for topic, one in self._refused_topics.items() if one[0] > now}
        topics = [self._url.target(one.key) for one in messages]
        await self._publish(
            [(topic, one) for topic, one in zip(topics, messages, strict=True) if topic not in self._refused_topics]
        )
        return [
            Undeliverable(message, f"the broker refuses the topic {topic!r}: {self._refused_topics[topic][1]}")
            for topic, message in zip(topics, messages, strict=True)
            if topic in self._refused_topics
        ]

    async def _publish(self, messages: Sequence[tuple[str, OutMessage]]) -> None:
        """Publish messages to their topics, and keep those topics that the broker refuses."""
        assert self._session is not None
        client = self._session.client
        self._refused.clear()
        sent = [client.publish(topic, self._encode(one), qos=1) for topic, one in messages]
        try:
            await asyncio.to_thread(_wait_for_all, sent)
        except (ValueError, RuntimeError) as exc:
            raise BrokerUnavailableError(f"{self._url.text} did not confirm: {exc}") from exc
        finally:
            until = time.monotonic() + _REFUSED_S
            for (topic, _), one in zip(messages, sent, strict=True):
                if one.mid in self._refused and self._url.is_per_stream:
                    self._refused_topics[topic] = until, self._refused[one.mid]
        if self._refused and not self._url.is_per_stream:
            reason = next(iter(self._refused.values()))
            raise AccessRefusedError(
                f"{self._url.text} refuses messages: {reason}; the login is one {self._url.login}.",
                fix="Check the user's permissions.",
            )
        self._session.check()
        if not all(one.is_published() for one in sent):
            raise BrokerUnavailableError(f"{self._url.text} did not confirm all messages")

    async def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _wait_for_all(sent: Sequence[mqtt.MQTTMessageInfo]) -> None:
    """Wait until all are confirmed, or one is not within ten seconds after the one before it."""
    for one in sent:
        one.wait_for_publish(TIMEOUT_S)
        if not one.is_published():
            return
