"""Kafka: a topic is read as a consumer group, and messages are written with the stream's id as key."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.structs import OffsetAndMetadata

from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.brokers.offsets_in_metadata import MOST_CHARACTERS, DoneOffsets, is_marked
from stepwell.addons.connect.brokers.offsets_of_second_group import DecidedOffsets
from stepwell.addons.connect.login import Login
from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BrokerMessage,
    BrokerUnavailableError,
    ConnectError,
    ConnectUsageError,
    LoginRefusedError,
    MessageColumns,
    OutMessage,
    Undeliverable,
    encoder_of,
)
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.waiting import happens

_PORT: Final = 9092
_GROUP: Final = "stepwell"
_WAIT_MS: Final = 500
_FETCH_BYTES: Final = 8 << 20
_SESSION_MS: Final = 10_000
_HEARTBEAT_MS: Final = 250
"""The response to a heartbeat has the request to rejoin, and a rebalance ends once all members have rejoined."""

_HAND_OVER_S: Final = 10.0
_MAX_REQUEST_BYTES: Final = 4 << 20
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TOPIC_S: Final = 5.0
"""Seconds within which a broker that creates topics by itself has created one."""

_METADATA_S: Final = 0.1
_MISSING_S: Final = 30.0
"""Seconds for which a topic that was missing is not looked for again: its predictions must not delay the others."""

_LOGIN_MS: Final = 5000
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_LOGIN_REFUSED: Final = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)
_ACCESS_REFUSED: Final = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)
_QUIET_S: Final = 5.0
"""Seconds without a message after which it is checked that the broker still admits the login."""

_VALUE, _OFFSET, _KEY = map(attrgetter, ("value", "offset", "key"))

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it logs as errors is waited for, and reported once


def open_reader(url: BrokerUrl, options: ReaderOptions) -> KafkaReader:
    """Return the reader of a topic.

    Raises:
        ConnectUsageError: The login lacks something.
    """
    _check_login(url)
    return KafkaReader(url, options)


def open_writer(url: BrokerUrl, body_format: str) -> KafkaWriter:
    """Return the writer of a topic.

    Raises:
        ConnectUsageError: The topic's name is illegal, or the login lacks something.
    """
    _check_login(url)
    if not url.is_per_stream and not _is_topic(url.path):
        raise ConnectUsageError(f"{url.text!r}: {_illegal(url.path)}.", fix="Give a legal topic.")
    return KafkaWriter(url, body_format)


def _is_topic(name: str) -> bool:
    return _TOPIC.fullmatch(name) is not None and name not in (".", "..")


def _illegal(topic: str) -> str:
    return f"the topic {topic!r} is illegal: Kafka takes 1 to 249 of A-Z a-z 0-9 . _ -"


class KafkaReader(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Reads a topic from the committed offsets of its group on; the broker divides the partitions among a group.

    Partitions are given up only when the open poll was handed over and committed, so the connector that gets them
    begins behind it. The source of a message is its topic and partition, its position the offset. `?member=NAME` makes
    the connector a static member (KIP-345).
    """

    def __init__(self, url: BrokerUrl, options: ReaderOptions) -> None:
        """Use `open_reader`."""
        self._url = url
        self._options = options
        self._topic = url.path
        self._log = f"kafka:{self._topic}"
        self._consumer: Any = None
        self._generation = 0  # counts the times at which partitions were given up
        self._poll_generation = 0
        self._idle = asyncio.Event()
        self._ends: dict[TopicPartition, int] = {}  # with `once`
        self._next: dict[TopicPartition, int] = {}  # offsets behind what was read
        self._open: dict[TopicPartition, int] = {}  # offsets behind the messages of the last poll
        self._done = False
        self._decided: DecidedOffsets | None = None  # of partitions whose commits have no text
        self._too_long: set[TopicPartition] = set()
        self._tracked: dict[TopicPartition, DoneOffsets] = {}  # with `most_open`
        self._heard_at = 0.0

    async def open(self) -> None:
        """Connect, and join the group."""
        preview = self._options.preview
        connection, group = await _connection(self._url), self._url.options.get("group") or _GROUP
        self._decided = DecidedOffsets(group, connection)
        self._consumer = AIOKafkaConsumer(
            **connection,
            group_id=None if preview else group,
            # A member with a name takes its partitions back at once after a kill; without one, the broker gives them to
            # nobody until the session of the killed connector has expired
            group_instance_id=None if preview else self._url.options.get("member") or None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",  # what a producer has aborted and sent again is there twice
            fetch_max_bytes=_FETCH_BYTES,
            session_timeout_ms=_SESSION_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
        )
        self._idle.set()
        self._ends.clear()
        self._next.clear()
        self._tracked.clear()
        self._too_long.clear()
        self._done = False
        with _kafka_errors(self._url):
            await self._consumer.start()
            if self._topic not in await self._consumer.topics():
                if self._topic in self._consumer._client.cluster.unauthorized_topics:
                    raise TopicAuthorizationFailedError(self._topic)
                raise BrokerUnavailableError(f"{self._url.text}: the broker has no topic {self._topic!r}")
        self._consumer.subscribe([self._topic], listener=self)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let the open poll be handed over before another connector gets its partitions."""
        if not revoked:
            return
        await happens(self._idle, _HAND_OVER_S)
        self._generation += 1
        self._next.clear()
        self._tracked.clear()
        if self._decided is not None:
            self._decided.forget()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Do nothing: reading begins at the committed offsets."""

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the next messages of all partitions that this connector has."""
        with _kafka_errors(self._url):
            found = await self._fetched(limit) or await self._consumer.getmany(timeout_ms=_WAIT_MS, max_records=limit)
            if found:
                self._heard_at = time.monotonic()
            elif self._url.login.secrets and time.monotonic() - self._heard_at > _QUIET_S:
                await self._consumer._client.fetch_all_metadata()  # fails if a new connection is refused
                self._heard_at = time.monotonic()
            # Not before: a wait that outlives a rebalance returns records of the new assignment
            generation = self._generation
            if self._options.once or self._options.preview:
                await self._find_ends()
        if generation != self._generation:
            return []  # the partitions were given up meanwhile; whoever has them now reads these messages
        self._poll_generation = generation
        parts = []
        for partition, records in found.items():
            end = self._end(partition)
            self._next[partition] = records[-1].offset + 1
            if end is not None and records[-1].offset >= end:
                records = [one for one in records if one.offset < end]  # noqa: PLW2901 - those behind it are not read
            if self._options.most_open is not None and not self._options.preview and records:
                with _kafka_errors(self._url):
                    tracked = await self._tracker(partition, records[0].offset)
                parts.append((partition, [one for one in records if tracked.deliver(one.offset)]))
                continue
            parts.append((partition, records))
        self._open = {partition: records[-1].offset + 1 for partition, records in parts if records}
        if self._open:
            self._idle.clear()
        else:
            self._done = await self._has_all()
        return self._columns(parts)

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Commit the offsets behind the last poll."""
        try:
            if not self._options.preview:
                with _kafka_errors(self._url):
                    await self._consumer.commit(self._open)
        finally:
            self._idle.set()

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Commit the offsets before which all is done, and beside each the offsets above it that are done."""
        done: defaultdict[TopicPartition, list[int]] = defaultdict(list)
        for one in messages:
            done[self._partition_of(one)].append(one.at or 0)
        commits = {}
        for partition, offsets in done.items():
            tracked = self._tracked.get(partition)
            if tracked is None:  # given up meanwhile
                continue
            tracked.finish(offsets)
            text = "" if self._decided is not None and partition in self._decided else tracked.text()
            self._too_long = (
                {*self._too_long, partition} if len(text) > MOST_CHARACTERS else self._too_long - {partition}
            )
            if partition not in self._too_long:
                commits[partition] = OffsetAndMetadata(tracked.floor, text)
        if commits:
            with _kafka_errors(self._url):
                await self._consumer.commit(commits)

    @property
    def generation(self) -> int:
        """A number that grows when partitions were given up: all that is open is read again."""
        return self._generation

    @property
    def is_full(self) -> bool:
        """Whether the offsets that are done do not fit beside those that are committed."""
        return bool(self._too_long)

    async def settle(self, messages: Sequence[BrokerMessage]) -> None:
        """Commit how far all is decided, where the commits of `acknowledge_some` have no text."""
        ends = {self._partition_of(one): (one.at or 0) + 1 for one in messages}
        try:
            if self._decided is not None:
                with _kafka_errors(self._url):
                    await self._decided.commit({one: end for one, end in ends.items() if one in self._decided})
        finally:
            self._idle.set()

    def was_settled(self, message: BrokerMessage) -> bool:
        """Whether a message was decided before: some brokers of Kafka's protocol keep no text beside an offset."""
        return self._decided is not None and (message.at or 0) < self._decided.before(self._partition_of(message))

    def _partition_of(self, message: BrokerMessage) -> TopicPartition:
        return TopicPartition(self._topic, int(message.source.rpartition("/")[2]))

    async def _tracker(self, partition: TopicPartition, first: int) -> DoneOffsets:
        """Return what is done of a partition whose first message that is read has the offset `first`."""
        if partition not in self._tracked:
            coordinator = self._consumer._coordinator
            found = (await coordinator.fetch_committed_offsets([partition])).get(partition)
            is_new = found is None or found.offset < 0
            tracked = DoneOffsets(first) if is_new else DoneOffsets(found.offset, found.metadata or "")
            if is_new or not is_marked(found.metadata or ""):
                await self._consumer.commit({partition: OffsetAndMetadata(tracked.floor, tracked.text())})
                kept = (await coordinator.fetch_committed_offsets([partition])).get(partition)
                if self._decided is not None and (kept is None or not is_marked(kept.metadata or "")):
                    await self._decided.read(partition, tracked.floor, self._consumer.highwater(partition))
            self._tracked[partition] = tracked
        return self._tracked[partition]

    async def is_current(self) -> bool:
        """Return whether this connector still has the partitions of the last poll."""
        if self._poll_generation == self._generation:
            return True
        self._idle.set()
        return False

    @property
    def is_done(self) -> bool:
        """Whether everything was returned that was there at the start."""
        return self._done

    def lag(self) -> int | None:
        """Return the number of messages behind what is done, in the partitions that were read.

        That is the last poll, or with `most_open` the offset before which all is done.
        """
        done = self._next | {partition: one.floor for partition, one in self._tracked.items()}
        return sum(max(0, (self._consumer.highwater(partition) or 0) - at) for partition, at in done.items())

    async def close(self) -> None:
        """Leave the group and disconnect."""
        self._idle.set()
        self._generation += 1
        if self._consumer is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(self._consumer.stop(), _HAND_OVER_S)
            self._consumer = None
        if self._decided is not None:
            await self._decided.close()
            self._decided = None

    async def _fetched(self, limit: int) -> dict[TopicPartition, list[Any]]:
        """Return what was fetched already, equally much of each partition: chunks then have few different lengths."""
        partitions = self._consumer.assignment()
        found: dict[TopicPartition, list[Any]] = {}
        for partition in partitions:
            share = max(1, limit // len(partitions))
            found |= await self._consumer.getmany(partition, timeout_ms=0, max_records=share)
        return found

    async def _find_ends(self) -> None:
        new = [partition for partition in self._consumer.assignment() if partition not in self._ends]
        if new:
            self._ends |= await self._consumer.end_offsets(new)

    def _end(self, partition: TopicPartition) -> int | None:
        """Return the offset at which `once` ends; None: nowhere."""
        if partition not in self._ends:
            return None
        # Some brokers report the start of the last batch as the end of a partition; the high watermark is exact
        if partition not in self._next:
            self._ends[partition] = max(self._ends[partition], self._consumer.highwater(partition) or 0)
        return self._ends[partition]

    async def _has_all(self) -> bool:
        assigned = self._consumer.assignment()
        if not assigned or assigned - self._ends.keys():
            return False
        return all([await self._consumer.position(one) >= self._ends[one] for one in assigned])

    def _columns(self, parts: Sequence[tuple[TopicPartition, Sequence[Any]]]) -> MessageColumns:
        records, sources = list[Any](), list[str]()
        for partition, own in parts:
            records += own
            sources += [f"{self._log}/{partition.partition}"] * len(own)

        def make(row: int) -> BrokerMessage:
            record = records[row]
            headers = {name: value for name, value in record.headers if value is not None}
            return BrokerMessage(
                record.value or b"", sources[row], record.offset, self._log, record.key, self._topic, headers
            )

        return MessageColumns(
            make,
            bodies=[body or b"" for body in map(_VALUE, records)],
            at=list(map(_OFFSET, records)),
            sources=sources,
            logs=[self._log] * len(records),
            keys=list(map(_KEY, records)),
            topics=[self._topic] * len(records),
        )


class KafkaWriter:
    """Writes messages to a topic; `{stream}` in its name is replaced by the stream's id.

    Of such topics, one that is illegal, that the broker does not have and does not create, or that the login may not
    write, concerns its stream alone. A message is there twice if the connector was killed, or a confirmation was lost,
    after it was written.
    """

    def __init__(self, url: BrokerUrl, body_format: str) -> None:
        """Use `open_writer`."""
        self._url = url
        self._encode = encoder_of(body_format)
        self._producer: Any = None
        self._missing: dict[str, float] = {}  # topics, with the time at which each is looked for again

    async def open(self) -> None:
        """Connect."""
        self._producer = AIOKafkaProducer(
            **await _connection(self._url), acks="all", linger_ms=5, max_request_size=_MAX_REQUEST_BYTES
        )
        with _kafka_errors(self._url):
            await self._producer.start()

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Write the messages; those of one stream go to one partition, in their order."""
        topics = {key: self._url.target(key) for key in {message.key for message in messages}}
        refused: list[Undeliverable] = []
        with _kafka_errors(self._url):
            unusable = await self._unusable(set(topics.values())) if self._url.is_per_stream else {}
            written = [
                (message, await self._sent(topics[message.key], message))
                for message in messages
                if topics[message.key] not in unusable
            ]
            await asyncio.gather(*(future for _, future in written), return_exceptions=True)
            for message, future in written:
                try:
                    future.result()
                except MessageSizeTooLargeError as exc:
                    refused.append(Undeliverable(message, f"the message is too large for Kafka: {exc}"))
        refused += [Undeliverable(one, unusable[topics[one.key]]) for one in messages if topics[one.key] in unusable]
        return refused

    async def _sent(self, topic: str, message: OutMessage) -> asyncio.Future[Any]:
        """Return the confirmation of a message, which is to be waited for."""
        key = message.key.encode() if message.key else None
        try:
            future: asyncio.Future[Any] = await self._producer.send(topic, self._encode(message), key=key)
        except MessageSizeTooLargeError as exc:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(exc)
        return future

    async def _unusable(self, topics: set[str]) -> dict[str, str]:
        """Return the topics that cannot be written, each with the reason.

        Raises:
            BrokerUnavailableError: The broker does not respond, so nothing is known.
        """
        found = {topic: _illegal(topic) for topic in topics if not _is_topic(topic)}
        client, now = self._producer.client, time.monotonic()
        waited_for = [one for one in topics - found.keys() if self._missing.get(one, now) <= now]
        for topic in waited_for:
            client.add_topic(topic)
        deadline = now + _TOPIC_S
        while (absent := [one for one in waited_for if not self._is_there(one)]) and time.monotonic() < deadline:
            await client.force_metadata_update()
            await asyncio.sleep(_METADATA_S)
        if absent:
            await self._check_responds()
            self._missing |= dict.fromkeys(absent, time.monotonic() + _MISSING_S)
        for topic in topics - found.keys():
            if topic in client.cluster.unauthorized_topics:
                found[topic] = f"the login may not write to the topic {topic!r}"
            elif not self._is_there(topic):
                found[topic] = f"the broker has no topic {topic!r}, and does not create it"
        return found

    def _is_there(self, topic: str) -> bool:
        return self._producer.client.cluster.partitions_for_topic(topic) is not None

    async def _check_responds(self) -> None:
        try:
            await self._producer.client.fetch_all_metadata()
        except KafkaError as exc:
            raise BrokerUnavailableError(f"{self._url.text} does not respond: {exc}") from exc

    async def close(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(self._producer.stop(), _HAND_OVER_S)
            self._producer = None


def _check_login(url: BrokerUrl) -> None:
    """Check that a mechanism has what it needs.

    Raises:
        ConnectUsageError: It is unknown, or has no user or no secret.
    """
    section, secrets = url.login.section, url.login.secrets
    sasl = _sasl(url)
    if section.sasl is not None and sasl not in _MECHANISMS:
        raise ConnectUsageError(
            f"{url.login.where} has the sasl {section.sasl!r}; expected one of {', '.join(_MECHANISMS)}."
        )
    needed = {None: (), "OAUTHBEARER": ("token",)}.get(sasl, ("user", "password"))
    missing = [name for name in needed if name not in secrets and not (name == "user" and section.user)]
    if missing:
        raise ConnectUsageError(
            f"{url.login.where} has no {' and no '.join(missing)}, which {sasl} needs.",
            fix="Give user with password_env or password_file; for OAUTHBEARER token_env, token_file or token_command.",
        )


def _sasl(url: BrokerUrl) -> str | None:
    """Return the mechanism: that which is named, or the usual one for what is given."""
    login = url.login
    usual = "OAUTHBEARER" if "token" in login.secrets else "PLAIN" if login.section.user or login.secrets else None
    return login.section.sasl or usual


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Reads the token again for each connection to a broker."""

    def __init__(self, login: Login) -> None:
        self._login = login

    async def token(self) -> str:
        return (await self._login.credentials()).token or ""


async def _connection(url: BrokerUrl) -> dict[str, Any]:
    """Return the options of a consumer or a producer, once one of the brokers was seen to admit the login.

    Raises:
        ConnectError: No broker responds, or one rejects the login.
    """
    hosts = [one if ":" in one else f"{one}:{_PORT}" for one in url.hosts.split(",")]
    login, sasl = await url.login.credentials(), _sasl(url)
    options: dict[str, Any] = {
        "security_protocol": ("SASL_" if sasl else "") + ("SSL" if login.ssl_context else "PLAINTEXT"),
        "ssl_context": login.ssl_context,
    }
    if sasl is not None:
        options |= {"sasl_mechanism": sasl}
        if sasl == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = _Token(url.login)
        else:
            options |= {"sasl_plain_username": login.user, "sasl_plain_password": login.password}
    if sasl is not None or login.ssl_context is not None:
        await _check_admits(url, hosts, options)
    return {"bootstrap_servers": hosts, **options}


async def _check_admits(url: BrokerUrl, hosts: Sequence[str], options: dict[str, Any]) -> None:
    """Connect once: a consumer that is refused says only that it cannot connect."""
    error: BaseException = OSError("no host")
    for host in hosts:
        name, _, port = host.rpartition(":")
        address = (name.strip("[]"), int(port))
        try:
            connection = await create_conn(*address, request_timeout_ms=_LOGIN_MS, **options)
        except _LOGIN_REFUSED as exc:
            raise url.login.refused(url.text, exc) from exc
        except (KafkaError, OSError, TimeoutError) as exc:
            error = await url.login.failure(url.text, address, exc)
            if isinstance(error, LoginRefusedError):
                raise error from exc
            continue
        except (KeyError, ValueError) as exc:  # of aiokafka: there is no proof of the server in the last part of SCRAM
            raise url.login.refused(url.text, "the user or the password is wrong") from exc
        connection.close()
        return
    raise error


@contextlib.contextmanager
def _kafka_errors(url: BrokerUrl) -> Iterator[None]:
    try:
        yield
    except (KafkaConnectionError, CommitFailedError, IllegalStateError, OSError, TimeoutError) as exc:
        raise BrokerUnavailableError(f"{url.text} does not respond: {url.login.masked(exc)}") from exc
    except _LOGIN_REFUSED as exc:
        raise url.login.refused(url.text, exc) from exc
    except _ACCESS_REFUSED as exc:
        raise AccessRefusedError(
            f"{url.text} refuses it to the login {url.login}: {exc}.", fix="Check the permissions (ACLs)."
        ) from exc
    except KafkaError as exc:
        if exc.retriable:
            raise BrokerUnavailableError(f"{url.text} cannot do it now: {exc}") from exc
        raise ConnectError(f"{url.text}: {exc}.", fix="Check the URL and the permissions.") from exc
