"""AMQP (RabbitMQ): a queue is read by one connector at a time, and messages are published to a queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)

from stepwell.addons.connect.brokers.confirmations import all_confirmed
from stepwell.addons.connect.brokers.interface import MarksEach, ReaderOptions
from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BrokerMessage,
    BrokerUnavailableError,
    ConnectError,
    ConnectUsageError,
    OutMessage,
    Undeliverable,
    encoder_of,
)
from stepwell.addons.connect.urls import BrokerUrl

_PORTS: Final = {False: 5672, True: 5671}
_WAIT_S: Final = 0.5
_STAND_BY_S: Final = 0.2
_QUIET_S: Final = 2.0
_CHECK_S: Final = 2.0
"""Seconds without a message after which it is checked that the broker has not ended the consumer."""

_TIMEOUT_S: Final = 10.0
_PREFETCH: Final = 4096
_MOST_PREFETCH: Final = 65_535  # the field has 16 bits
_CONTENT_TYPES = {"json": "application/json", "msgpack": "application/msgpack"}


def open_reader(url: BrokerUrl, options: ReaderOptions) -> AmqpReader:
    """Return the reader of a queue.

    Raises:
        ConnectUsageError: AMQP has no such SASL mechanism.
    """
    _check_login(url)
    return AmqpReader(url, options)


def open_writer(url: BrokerUrl, body_format: str) -> AmqpWriter:
    """Return the writer of a queue; raises as `open_reader` does."""
    _check_login(url)
    return AmqpWriter(url, body_format)


class AmqpReader(MarksEach):
    """Reads a queue as its exclusive consumer: a second connector is refused by the broker, and stands by.

    What a lost connector has not acknowledged is at the head of the queue again. AMQP has no positions: a message that
    is delivered twice is found only by a field that grows.
    """

    def __init__(self, url: BrokerUrl, options: ReaderOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `open_reader`."""
        self._url = url
        self._options = options
        self._queue = url.path
        self._clock = clock
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._consuming = False
        self._arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self._left: int | None = None  # messages that `once` still returns
        self._prefetch = _PREFETCH if options.most_open is None else min(options.most_open, _MOST_PREFETCH)
        self._n_open = 0
        self.generation = 0
        self._last_at = 0.0
        self._checked_at = 0.0
        self._done = False

    async def open(self) -> None:
        """Connect, and find the queue."""
        self._connection = await _connect(self._url)
        self._consuming, self._done, self._arrived = False, False, asyncio.Queue()
        self._n_open = 0
        self.generation += 1
        with _amqp_errors(self._url):
            self._channel = await self._connection.channel()
            await self._channel.set_qos(prefetch_count=self._prefetch)
            queue = await self._channel.declare_queue(self._queue, passive=True)
        if self._options.once:
            self._left = queue.declaration_result.message_count or 0
        self._last_at = self._clock()

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the messages that have arrived; none while another connector consumes the queue."""
        if self._done:
            return []
        with _amqp_errors(self._url):
            if self._options.preview:
                return await self._get(limit)
            if not await self._consume():
                await asyncio.sleep(_STAND_BY_S)
                return []
        found: list[AbstractIncomingMessage] = []
        with contextlib.suppress(TimeoutError):
            found.append(await asyncio.wait_for(self._arrived.get(), _WAIT_S))
        limit = limit if self._left is None else min(limit, self._left)
        while len(found) < limit and not self._arrived.empty():
            found.append(self._arrived.get_nowait())
        await self.is_current()  # else what has arrived is delivered again, behind what is open now
        if not found and self._clock() - max(self._last_at, self._checked_at) > _CHECK_S:
            await self._check_consumer()
        self._check_end(found)
        self._n_open += len(found)
        return [self._message(one) for one in found]

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge the messages, and with them all that arrived before."""
        with _amqp_errors(self._url):
            await messages[-1].handle.ack(multiple=True)
        self._last_at = self._clock()  # only now the broker sends more than it may send ahead

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge messages of any polls."""
        with _amqp_errors(self._url):
            for one in messages:
                await one.handle.ack()
        self._n_open -= len(messages)
        self._last_at = self._clock()  # only now the broker sends more than it may send ahead

    @property
    def window(self) -> int:
        """Messages that may be open at a time."""
        return self._prefetch

    @property
    def is_full(self) -> bool:
        """Whether as many messages are open as the broker sends ahead."""
        return self._n_open >= self._prefetch

    async def is_current(self) -> bool:
        """Return True: the broker gives the queue to another connector only when the connection is lost."""
        if self._channel is None or self._channel.is_closed:
            raise BrokerUnavailableError(f"the connection to {self._url.text} was lost")
        return True

    @property
    def is_done(self) -> bool:
        """Whether everything was returned that was there at the start."""
        return self._done

    def lag(self) -> int | None:
        """Return the number of messages that have arrived and wait."""
        return self._arrived.qsize()

    async def close(self) -> None:
        """Disconnect; the broker puts back what was not acknowledged."""
        if self._connection is not None:
            with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                await asyncio.wait_for(self._connection.close(), _TIMEOUT_S)
            self._connection = None

    async def _consume(self) -> bool:
        """Return whether this connector is the consumer of the queue."""
        if self._consuming:
            return True
        assert self._connection is not None
        if self._channel is None or self._channel.is_closed:  # the broker closes the channel that it refuses
            self._channel = await self._connection.channel()
            await self._channel.set_qos(prefetch_count=self._prefetch)
        queue = await self._channel.get_queue(self._queue, ensure=False)
        try:
            await queue.consume(self._on_message, exclusive=True)
        except (ChannelAccessRefused, ChannelLockedResource) as exc:
            if "exclusive" not in str(exc):
                raise
            return False
        self._consuming, self._last_at = True, self._clock()
        return True

    async def _check_consumer(self) -> None:
        """Check that the queue still has a consumer: the broker ends it with the queue, and sends no notice of it."""
        assert self._channel is not None
        self._checked_at = self._clock()
        with _amqp_errors(self._url):
            queue = await self._channel.declare_queue(self._queue, passive=True)
        if not queue.declaration_result.consumer_count:
            raise BrokerUnavailableError(f"{self._url.text} has ended the consumer")

    async def _on_message(self, message: AbstractIncomingMessage) -> None:
        self._last_at = self._clock()
        self._arrived.put_nowait(message)

    async def _get(self, limit: int) -> list[BrokerMessage]:
        """Return messages that the broker puts back when the connection is closed."""
        assert self._channel is not None
        queue = await self._channel.get_queue(self._queue, ensure=False)
        found: list[BrokerMessage] = []
        while len(found) < limit and (message := await queue.get(fail=False)) is not None:
            found.append(self._message(message))
        self._done = True
        return found

    def _check_end(self, found: Sequence[AbstractIncomingMessage]) -> None:
        if self._left is not None:
            self._left -= len(found)
            # What others had not acknowledged when this one started may be counted, and never arrive
            self._done = self._left <= 0 or (not found and self._clock() - self._last_at > _QUIET_S)

    def _message(self, message: AbstractIncomingMessage) -> BrokerMessage:
        source = f"amqp:{self._queue}"
        headers = {
            name: value if isinstance(value, bytes) else str(value).encode() for name, value in message.headers.items()
        }
        return BrokerMessage(
            message.body, source, None, source, topic=message.routing_key or "", headers=headers, handle=message
        )


class AmqpWriter:
    """Publishes persistent messages to a queue; `{stream}` in its name is replaced by the stream's id.

    A message is there twice if the connector was killed, or a confirmation was lost, after it was published. Its
    `message_id` is the same then.
    """

    def __init__(self, url: BrokerUrl, body_format: str) -> None:
        """Use `open_writer`."""
        self._url = url
        self._format = body_format
        self._encode = encoder_of(body_format)
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None

    async def open(self) -> None:
        """Connect."""
        self._connection = await _connect(self._url)
        with _amqp_errors(self._url):
            self._channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Publish the messages, and wait until the broker has confirmed all of them."""
        assert self._channel is not None
        exchange = self._channel.default_exchange
        queues = [self._url.target(one.key) for one in messages]
        with _amqp_errors(self._url):
            sent = [
                asyncio.ensure_future(exchange.publish(self._body(one), queue))
                for one, queue in zip(messages, queues, strict=True)
            ]
            await all_confirmed(sent, _TIMEOUT_S, but=(PublishError,) if self._url.is_per_stream else ())
        return [
            Undeliverable(message, f"there is no queue {queue!r}")
            for message, queue, confirmed in zip(messages, queues, sent, strict=True)
            if confirmed.exception() is not None
        ]

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                await asyncio.wait_for(self._connection.close(), _TIMEOUT_S)
            self._connection = None

    def _body(self, message: OutMessage) -> aio_pika.Message:
        return aio_pika.Message(
            self._encode(message),
            content_type=_CONTENT_TYPES.get(self._format, "application/octet-stream"),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=None if message.at is None else f"{message.key}|{message.source}|{message.at}",
        )


async def _connect(url: BrokerUrl) -> AbstractConnection:
    login, sasl = await url.login.credentials(), url.login.section.sasl
    host, port = url.address(_PORTS[url.login.is_encrypted])
    options: dict[str, Any] = {} if login.ssl_context is None else {"ssl": True, "ssl_context": login.ssl_context}
    if sasl is not None:
        options["auth"] = sasl
    try:
        with _amqp_errors(url):
            return await aio_pika.connect(
                host=host,
                port=port,
                login=login.user or "guest",
                password=login.password or "guest",
                virtualhost=url.options.get("vhost", "/"),
                timeout=_TIMEOUT_S,
                **options,
            )
    except BrokerUnavailableError as exc:
        raise await url.login.failure(url.text, (host, port), exc) from exc


def _check_login(url: BrokerUrl) -> None:
    sasl = url.login.section.sasl
    if sasl not in (None, "PLAIN", "EXTERNAL"):
        raise ConnectUsageError(f"{url.text!r} has the sasl {sasl!r}; AMQP has PLAIN and EXTERNAL.")


@contextlib.contextmanager
def _amqp_errors(url: BrokerUrl) -> Iterator[None]:
    try:
        yield
    except (ProbableAuthenticationError, AuthenticationError) as exc:
        raise url.login.refused(url.text, exc) from exc
    except (ConnectionClosed, InvalidFrameError) as exc:
        # aiormq keeps no words of a broker that closes the connection where it should open the virtual host
        is_closed_at_opening = "OpenOk" in str(exc) and "Connection.Close" in str(exc)
        if "NOT_ALLOWED" not in str(exc) and not is_closed_at_opening:
            raise BrokerUnavailableError(f"{url.text} does not respond: {exc}") from exc
        words = "" if is_closed_at_opening else f": {exc}"
        raise AccessRefusedError(
            f"{url.text} refuses the virtual host {url.options.get('vhost', '/')!r} to the login {url.login}{words}.",
            fix="Check vhost, and the user's permissions.",
        ) from exc
    except (ChannelNotFoundEntity, PublishError) as exc:  # not a queue that is full: that one is waited for
        raise ConnectError(f"{url.text}: there is no such queue: {exc}.", fix="Create the queue.") from exc
    except ChannelAccessRefused as exc:
        raise AccessRefusedError(
            f"{url.text} refuses it to the login {url.login}: {exc}.", fix="Check the user's permissions."
        ) from exc
    except (AMQPError, OSError, TimeoutError, RuntimeError) as exc:
        raise BrokerUnavailableError(f"{url.text} does not respond: {exc or type(exc).__name__}") from exc
