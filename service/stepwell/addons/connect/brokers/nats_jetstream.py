"""NATS JetStream: a durable consumer is read by one connector at a time, in the order of the stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import nats
from nats.js import api
from nats.js import errors as js_errors

from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.connect.brokers.confirmations import all_confirmed
from stepwell.addons.connect.brokers.interface import MarksEach, ReaderOptions
from stepwell.addons.connect.brokers.nats_connection import TIMEOUT_S, NatsConnection, RefusedSubjectError
from stepwell.addons.connect.brokers.nats_lease import LEASE_S, DoneEntry, NatsLease
from stepwell.addons.connect.brokers.offsets_in_metadata import DoneOffsets
from stepwell.addons.connect.messages import (
    BrokerMessage,
    BrokerUnavailableError,
    ConnectError,
    OutMessage,
    Undeliverable,
    encoder_of,
)
from stepwell.addons.connect.urls import BrokerUrl

_DURABLE: Final = "stepwell"
_WAIT_S: Final = 0.5
_FIRST_S: Final = 4.0
_STAND_BY_S: Final = 0.2
_TOO_MANY_CONSUMERS: Final = 10026  # an error code of JetStream
_ACK_WAIT_S: Final = 3600.0
"""A message that is delivered again arrives behind newer ones: the server has to wait longer than a poll is open."""


def open_reader(url: BrokerUrl, options: ReaderOptions) -> NatsReader:
    """Return the reader of a subject."""
    return NatsReader(url, options)


def open_writer(url: BrokerUrl, body_format: str) -> NatsWriter:
    """Return the writer of a subject."""
    return NatsWriter(url, body_format)


class NatsReader(MarksEach):
    """Reads the messages of a subject from a JetStream stream; `{stream}` in the subject is one token.

    A consumer of JetStream delivers what was not acknowledged behind what is new. So if something was not acknowledged,
    the durable consumer is created again, and begins there. The connector that does this holds a lease, an entry of the
    key-value bucket `stepwell-connect`. The position of a message is its sequence number in the stream.
    """

    def __init__(self, url: BrokerUrl, options: ReaderOptions) -> None:
        """Use `open_reader`."""
        self._url = url
        self._options = options
        self._subject = url.wildcard("*")
        self._durable = url.options.get("durable") or _DURABLE
        self._connection = NatsConnection(url)
        self._client: Any = None
        self._js: Any = None
        self._stream = ""
        self._source = ""
        self._lease: Lease | None = None
        self._subscription: Any = None
        self._delivered = 0  # messages that the consumer has delivered
        self._ack_each = False
        self._tracked: DoneOffsets | None = None  # with `most_open`
        self._done_entry: Any = None
        self._open: dict[int, Any] = {}
        self._kept_alive_at = 0.0
        self.generation = 0
        self._end = 0
        self._done = False
        self._lag: int | None = None

    async def open(self) -> None:
        """Connect, and find the stream of the subject."""
        self._connection = NatsConnection(self._url)
        self._client = await self._connection.open()
        self._subscription, self._done = None, False
        with self._connection.errors():
            self._js = self._client.jetstream(timeout=TIMEOUT_S)
            try:
                first = self._client.jetstream(timeout=_FIRST_S)  # a login without permission gets no response
                self._stream = await first.find_stream_name_by_subject(self._subject)
            except js_errors.NotFoundError as exc:
                raise ConnectError(
                    f"{self._url.text}: no JetStream stream has the subject {self._subject!r}.",
                    fix="Create one; subjects without a stream keep no messages, so nothing could be exact.",
                ) from exc
            info = await self._js.stream_info(self._stream)
            # A stream that is deleted and created again has the same name, and its sequence begins again
            created = getattr(info, "created", None)  # older clients leave it out
            self._source = f"nats:{self._stream}" + (f"@{created:%Y%m%dT%H%M%S.%fZ}" if created else "")
            if self._options.once or self._options.preview:
                self._end, self._done = info.state.last_seq, info.state.messages == 0
            if self._options.preview:
                self._subscription = await self._js.subscribe(self._subject, ordered_consumer=True)
            else:
                entry = NatsLease(self._js, f"{self._stream}.{self._durable}")
                await entry.open()
                self._lease = Lease(entry, secrets.token_hex(8), lease_s=LEASE_S)

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the next messages; none while another connector has the lease."""
        if self._done:
            return []
        with self._connection.errors():
            if self._options.preview:
                found = await self._next_of_preview()
            else:
                assert self._lease is not None
                if not self._lease.is_held:
                    self._subscription = None  # with the lease, it begins again with what is not acknowledged
                    if not await self._lease.acquire():
                        await asyncio.sleep(_STAND_BY_S)
                        return []
                    self._lease.hold()
                if self._subscription is None:
                    await self._begin()
                found = await self._fetch(limit)
                if self._tracked is not None:
                    found = await self._undone(found, self._tracked)
                self._done = self._options.once and await self._has_all(found)
        return [self._message(one) for one in found if not self._end or one.metadata.sequence.stream <= self._end]

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge the messages, and wait for the server's consent to the last one."""
        with self._connection.errors():
            for message in messages[:-1] if self._ack_each else ():
                await message.handle.ack()
            await messages[-1].handle.ack_sync(timeout=TIMEOUT_S)

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge messages of any polls; those behind an open one are noted in a key-value bucket, too.

        JetStream does not tell which ones are acknowledged when the consumer is created again.
        """
        if not messages or self._tracked is None:
            return
        with self._connection.errors():
            self._tracked.finish([one.at or 0 for one in messages])
            await self._done_entry.put(f"{self._source}|{self._tracked.floor}|{self._tracked.text()}".encode())
            for one in messages:
                self._open.pop(one.at or 0, None)
            for one in messages[:-1]:
                await one.handle.ack()
            await messages[-1].handle.ack_sync(timeout=TIMEOUT_S)

    @property
    def window(self) -> int | None:
        """Messages that may be open at a time."""
        return self._options.most_open

    @property
    def is_full(self) -> bool:
        """Whether as many messages are open as the consumer may have."""
        most = self._options.most_open
        return most is not None and len(self._open) >= most

    async def _undone(self, found: Sequence[Any], tracked: DoneOffsets) -> list[Any]:
        """Return the messages that are not done yet; acknowledge the others, and keep alive those that are open."""
        kept = []
        for message in found:
            sequence = message.metadata.sequence.stream
            if tracked.deliver(sequence):
                self._open[sequence] = message
                kept.append(message)
            else:
                await message.ack()
        now = time.monotonic()
        if now - self._kept_alive_at > _ACK_WAIT_S / 4:
            self._kept_alive_at = now
            for message in self._open.values():
                await message.in_progress()
        return kept

    async def is_current(self) -> bool:
        """Return whether this connector still has the lease."""
        with self._connection.errors():
            if self._lease is None or await self._lease.renew():
                return True
        self._subscription = None
        return False

    @property
    def is_done(self) -> bool:
        """Whether everything was returned that was there at the start."""
        return self._done

    def lag(self) -> int | None:
        """Return the number of messages behind the last one."""
        return self._lag

    async def close(self) -> None:
        """Give the lease back and disconnect."""
        if self._lease is not None:
            await self._lease.release()
            self._lease = None
        if self._client is not None:
            await self._connection.close()
            self._client = None

    async def _begin(self) -> None:
        """Bind to the durable consumer; create it so that it begins with what was not acknowledged.

        While it is created again, a second consumer keeps where it begins, and the messages: without a consumer that
        has not acknowledged them, a stream with the retention `interest` deletes them. Others may admit one alone.
        """
        policy = api.AckPolicy.ALL if self._options.most_open is None else api.AckPolicy.EXPLICIT
        config = api.ConsumerConfig(
            durable_name=self._durable,
            filter_subject=self._subject,
            ack_policy=policy,
            ack_wait=_ACK_WAIT_S,
            max_ack_pending=-1 if self._options.most_open is None else self._options.most_open,
            deliver_policy=api.DeliverPolicy.ALL,
        )
        keeper = f"{self._durable}-keeper"
        info, kept = await self._consumer(self._durable), await self._consumer(keeper)
        if info is not None and kept is not None:  # of a connector that was killed
            await self._js.delete_consumer(self._stream, keeper)
            kept = None
        is_new = info is None and kept is None
        is_other = info is not None and self._options.most_open is not None and info.config.ack_policy != policy
        if info is not None and (info.num_ack_pending or is_other):
            retention = (await self._js.stream_info(self._stream)).config.retention
            if retention != api.RetentionPolicy.WORK_QUEUE:  # there, what was acknowledged is gone, and nothing else
                config = _beginning_at(info.ack_floor.stream_seq + 1, config, self._durable)
                try:
                    kept = await self._js.add_consumer(self._stream, replace(config, durable_name=keeper))
                except js_errors.APIError as exc:
                    if exc.err_code != _TOO_MANY_CONSUMERS or retention == api.RetentionPolicy.INTEREST:
                        raise
            await self._js.delete_consumer(self._stream, self._durable)
            info = None
        if info is None:
            if kept is not None:
                config = _beginning_at(kept.config.opt_start_seq, config, self._durable)
            info = await self._js.add_consumer(self._stream, config)
        if kept is not None:
            await self._js.delete_consumer(self._stream, keeper)
        self.generation += 1
        self._open.clear()
        self._tracked = None
        if self._options.most_open is not None:
            self._kept_alive_at = time.monotonic()
            self._done_entry = DoneEntry(self._js, f"{self._stream}.{self._durable}")
            source, _, rest = (await self._done_entry.get()).decode().partition("|")
            floor, _, text = rest.partition("|")
            is_of_this = source == self._source and not is_new  # not of a stream or consumer of the same name before
            self._tracked = DoneOffsets(int(floor), text) if is_of_this else DoneOffsets(0)
        self._ack_each = info.config.ack_policy == api.AckPolicy.EXPLICIT
        self._delivered = info.delivered.consumer_seq
        self._subscription = await self._js.pull_subscribe_bind(consumer=self._durable, stream=self._stream)

    async def _consumer(self, name: str) -> Any:
        """Return a consumer of the stream, or None."""
        try:
            return await self._js.consumer_info(self._stream, name)
        except js_errors.NotFoundError:
            return None

    async def _fetch(self, limit: int) -> list[Any]:
        try:
            found = await self._subscription.fetch(limit, timeout=_WAIT_S)
        except TimeoutError:  # nats-py's own, which is one of these, or asyncio's
            return []
        for message in found:
            sequence = message.metadata.sequence.consumer
            if sequence != self._delivered + 1:  # one was sent and did not arrive: begin again with it
                raise BrokerUnavailableError(
                    f"{self._url.text}: message {self._delivered + 1} of the consumer was lost"
                )
            self._delivered = sequence
        if found:
            self._lag = found[-1].metadata.num_pending
        return list(found)

    async def _next_of_preview(self) -> list[Any]:
        try:
            found = await self._subscription.next_msg(_WAIT_S)
        except TimeoutError:
            return []
        self._done = found.metadata.num_pending == 0
        return [found]

    async def _has_all(self, found: Sequence[Any]) -> bool:
        """Return whether nothing is left of what was there at the start; a request may also have been slow."""
        if not found:
            info = await self._js.consumer_info(self._stream, self._durable)
            return bool(info.num_pending == 0)
        last = found[-1].metadata
        return bool(last.num_pending == 0 or last.sequence.stream >= self._end)

    def _message(self, message: Any) -> BrokerMessage:
        headers = {name: str(value).encode() for name, value in (message.headers or {}).items()}
        at = message.metadata.sequence.stream
        return BrokerMessage(
            message.data,
            self._source,
            at,
            f"nats:{self._stream}",
            topic=message.subject,
            headers=headers,
            handle=message,
        )


class NatsWriter:
    """Publishes messages into JetStream; `{stream}` in the subject is replaced by the stream's id.

    The dots of an id divide the subject, so that a stream `a.b` needs a subject such as `predictions.>`.

    Each message has an id, so the server drops one that is there within its window for duplicates (two minutes if the
    stream has no other limit).
    """

    def __init__(self, url: BrokerUrl, body_format: str) -> None:
        """Use `open_writer`."""
        self._url = url
        self._encode = encoder_of(body_format)
        self._connection = NatsConnection(url)
        self._client: Any = None
        self._js: Any = None

    async def open(self) -> None:
        """Connect."""
        self._connection = NatsConnection(self._url)
        self._client = await self._connection.open()
        self._js = self._client.jetstream(timeout=TIMEOUT_S)

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Publish the messages, and wait until the server has confirmed all of them."""
        refused: list[Undeliverable] = []
        sent: list[tuple[OutMessage, asyncio.Future[Any]]] = []
        with self._connection.errors():
            for one in messages:
                if not all(self._url.target(one.key).split(".")):
                    reason = f"the subject {self._url.target(one.key)!r} is illegal: it has an empty part"
                    refused.append(Undeliverable(one, reason))
                    continue
                headers = None if one.at is None else {"Nats-Msg-Id": f"{one.key}|{one.source}|{one.at}"}
                try:
                    confirmed = await self._js.publish_async(
                        self._url.target(one.key), self._encode(one), wait_stall=TIMEOUT_S, headers=headers
                    )
                except nats.errors.MaxPayloadError as exc:
                    refused.append(Undeliverable(one, f"the message is too large for the server: {exc}"))
                    continue
                sent.append((one, confirmed))
                if self._url.is_per_stream:
                    self._connection.watch(self._url.target(one.key), confirmed)
            of_one_stream = (js_errors.NoStreamResponseError, RefusedSubjectError) if self._url.is_per_stream else ()
            await all_confirmed((one for _, one in sent), TIMEOUT_S, but=of_one_stream)
            for message, confirmed in sent:
                error, subject = confirmed.exception(), self._url.target(message.key)
                if isinstance(error, RefusedSubjectError):
                    refused.append(Undeliverable(message, f"the server refuses the subject {subject!r}: {error}"))
                elif error is not None:
                    refused.append(Undeliverable(message, f"no JetStream stream has the subject {subject!r}"))
        return refused

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            await self._connection.close()
            self._client = None


def _beginning_at(sequence: int, config: api.ConsumerConfig, name: str) -> api.ConsumerConfig:
    return replace(
        config, durable_name=name, deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=sequence
    )  # fmt: skip
