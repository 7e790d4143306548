"""`stepwell connect` from and to a broker of the Kafka protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.connect.broker_laws import BrokerLaws
from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.messages import BrokerMessage, ConnectUsageError
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect.brokers import BrokerProcess, kafka
from tests.addons.connect.connectors import Readings, connector, ended, kill_in_turn, run_once, wait_for, written
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.writers import out_message, write
from tests.processes import ServiceProcess


class KafkaTopics:
    """The topics `in` and `out` of a broker."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.address = f"127.0.0.1:{broker.port}"
        asyncio.run(self._create())

    def url(self, topic: str, query: str = "") -> str:
        return f"kafka://{self.address}/{topic}{query}"

    async def _create(self) -> None:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        await admin.create_topics([NewTopic("in", 4, 1)])  # one call each: Tansu answers for the first one
        await admin.create_topics([NewTopic("out", 2, 1)])
        await admin.create_topics([NewTopic("dead", 1, 1)])
        await admin.close()

    def add(self, messages: list[tuple[str, Any]]) -> None:
        asyncio.run(self.add_now(messages))

    async def add_now(self, messages: list[tuple[str, Any]]) -> None:
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(bootstrap_servers=self.address, acks="all")
        await producer.start()
        for key, value in messages:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            await producer.send("in", body, key=key.encode())
        await producer.stop()

    def read(self, topic: str, n: int) -> list[tuple[bytes | None, dict[str, Any]]]:
        return asyncio.run(self._read(topic, n))

    async def _read(self, topic: str, n: int) -> list[tuple[bytes | None, dict[str, Any]]]:
        """Read until there are `n` messages and then no more for a moment."""
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(topic, bootstrap_servers=self.address, auto_offset_reset="earliest")
        await consumer.start()
        found: list[tuple[bytes | None, dict[str, Any]]] = []
        n_empty = 0
        try:
            async with asyncio.timeout(60):
                while True:
                    batch = await consumer.getmany(timeout_ms=500)
                    found += [(one.key, json.loads(one.value)) for records in batch.values() for one in records]
                    n_empty = 0 if batch else n_empty + 1
                    if len(found) >= n and n_empty >= 3:  # on a busy machine one may be empty in between
                        return found
        finally:
            await consumer.stop()

    def n_written(self) -> int:
        """Return the number of timesteps whose predictions are in `out`, each counted once."""
        return len({(document["stream"], document["step"]) for _, document in self.read("out", 0)})


@pytest.fixture
def topics(tmp_path: Path) -> Iterator[KafkaTopics]:
    with or_skip(kafka, tmp_path) as broker:
        yield KafkaTopics(broker)


class TestKafka(BrokerLaws):
    """The laws of every broker."""

    @pytest.fixture
    def url(self, topics: KafkaTopics, monkeypatch: pytest.MonkeyPatch) -> str:
        """The broker waits for a reader that was closed until its session has expired."""
        for name, ms in (("_SESSION_MS", 1000), ("_HEARTBEAT_MS", 100)):
            monkeypatch.setattr(f"stepwell.addons.connect.brokers.kafka.{name}", ms)
        return topics.url("in", "?group=laws")


def flags(service: ServiceProcess, topics: KafkaTopics) -> list[str]:
    return ["--model", "fold", "--stream", "key", "--url", service.url, "--to", topics.url("out")]


def test_a_topic_gives_the_predictions_of_the_fold(
    service: ServiceProcess, topics: KafkaTopics, tmp_path: Path
) -> None:
    readings = Readings(21, streams=50, steps=20)
    topics.add([(one["stream"], {"x": one["x"]}) for one in readings.documents()])

    words = (topics.url("in", "?group=g&member=m"), *flags(service, topics))
    counts = run_once(tmp_path, *words)
    again = run_once(tmp_path, *words)

    out = topics.read("out", len(readings))
    assert written(document for _, document in out) == readings.expected()
    assert all(key == document["stream"].encode() for key, document in out)
    assert {document["source"]["id"] for _, document in out} <= {f"kafka:in/{i}" for i in range(4)}
    assert (counts["messages"], again["messages"]) == (1000, 0)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_connectors_of_a_group_that_are_killed_in_turn_lose_nothing(
    models: Path, topics: KafkaTopics, short_path: Path
) -> None:
    """Rebalances and kills: every stream is the fold, and a message is there twice only with equal content."""
    readings = Readings(22, streams=50, steps=120)
    kill_in_turn(
        short_path,
        models,
        lambda service: [topics.url("in", "?group=g"), *flags(service, topics)],
        readings,
        add=lambda _: topics.add([(one["stream"], {"x": one["x"]}) for one in readings.documents()]),
        n_written=topics.n_written,
        victims=[0, None, 1],
    )

    out = [document for _, document in topics.read("out", len(readings))]
    assert written(out, doubles=True) == readings.expected()


def test_a_static_member_that_was_killed_goes_on_under_its_name(
    service: ServiceProcess, topics: KafkaTopics, tmp_path: Path
) -> None:
    topics.add([("static", {"x": 1})])
    with connector(tmp_path, topics.url("in", "?group=g&member=m"), *flags(service, topics)) as one:
        wait_for(lambda: topics.n_written() == 1, what=one.text)
        one.kill()
        topics.add([("static", {"x": 2})])
        one.start()
        wait_for(lambda: topics.n_written() == 2, what=one.text)

    assert one.process.wait(60) == 0, one.text()


def revocation_of(reader: Any) -> asyncio.Event:
    """Return an event that is set once partitions of the reader are being revoked."""
    began, give_up = asyncio.Event(), reader.on_partitions_revoked

    async def on_partitions_revoked(revoked: Collection[Any]) -> None:
        if revoked:
            began.set()
        await give_up(revoked)

    reader.on_partitions_revoked = on_partitions_revoked
    return began


def test_a_poll_that_outlives_a_rebalance_loses_nothing(topics: KafkaTopics) -> None:
    """The poll begins while the partitions are given up, and returns what the new assignment has."""
    read: list[bytes] = []

    async def read_on(reader: Any, found: Sequence[BrokerMessage] = ()) -> None:
        while True:
            if found:
                read.extend(one.body for one in found)
                await reader.acknowledge(found)
            found = await reader.poll(1000)

    async def rebalance() -> None:
        first, second = (BrokerUrl.parse(topics.url("in", "?group=g")).reader(ReaderOptions()) for _ in "12")
        revoking = revocation_of(first)
        await first.open()
        while not (found := await first.poll(1000)):
            pass
        await second.open()
        async with asyncio.timeout(60):
            await revoking.wait()
            await topics.add_now([(f"k{i}", i) for i in range(40, 80)])
            reading = [asyncio.create_task(read_on(first, found)), asyncio.create_task(read_on(second))]
            while len(read) < 80:
                await asyncio.wait(reading, timeout=0.1)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await first.close()
        await second.close()

    topics.add([(f"k{i}", i) for i in range(40)])
    with contextlib.suppress(TimeoutError):
        asyncio.run(rebalance())

    assert sorted(map(int, read)) == list(range(80))


def test_check_joins_no_group_and_shows_the_oldest_messages(
    service: ServiceProcess, topics: KafkaTopics, tmp_path: Path
) -> None:
    topics.add([("shown", {"x": 5})])
    text = ended(tmp_path, topics.url("in"), "--model", "fold", "--stream", "key", "--url", service.url, "--check")

    assert 'shown: {"x": [5]}' in text


async def test_a_stream_whose_topic_cannot_be_is_refused_alone(topics: KafkaTopics) -> None:
    """Ids may have a colon and an at sign, and topics may not."""
    streams = ["out", "a:b", "a@b", "out"]

    refused = await write(topics.url("{stream}"), [out_message(one, n) for n, one in enumerate(streams)])

    assert {one.message.key: one.reason for one in refused} == {
        "a:b": "the topic 'a:b' is illegal: Kafka takes 1 to 249 of A-Z a-z 0-9 . _ -",
        "a@b": "the topic 'a@b' is illegal: Kafka takes 1 to 249 of A-Z a-z 0-9 . _ -",
    }
    assert [document["step"] for _, document in await asyncio.to_thread(topics.read, "out", 2)] == [0, 3]


class NoSuchTopics:
    """A producer whose broker has the topic `out` and creates none; the real broker of these tests creates all."""

    def __init__(self) -> None:
        self.client = self.cluster = self
        self.unauthorized_topics = {"secret"}
        self.n_updates = 0
        self.written: list[str] = []

    def add_topic(self, topic: str) -> None:
        """Do nothing: it is not there."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0} if topic == "out" else None

    async def force_metadata_update(self) -> None:
        self.n_updates += 1

    async def fetch_all_metadata(self) -> None:
        """Do nothing: the broker responds."""

    async def send(self, topic: str, _body: bytes, *, key: bytes | None) -> asyncio.Future[None]:
        self.written.append(topic)
        confirmed = asyncio.get_running_loop().create_future()
        confirmed.set_result(None)
        return confirmed


async def test_a_stream_whose_topic_is_not_there_delays_the_others_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kafka_module = pytest.importorskip("stepwell.addons.connect.brokers.kafka", reason="aiokafka is not installed")
    monkeypatch.setattr(kafka_module, "_TOPIC_S", 0.05)
    producer, writer = NoSuchTopics(), kafka_module.KafkaWriter(BrokerUrl.parse("kafka://h/{stream}"), "json")
    writer._producer = producer
    messages = [out_message("out"), out_message("nosuch"), out_message("secret")]

    first = await writer.write(messages)
    n_updates = producer.n_updates
    again = await writer.write(messages)

    assert [(one.message.key, one.reason) for one in first] == [
        ("nosuch", "the broker has no topic 'nosuch', and does not create it"),
        ("secret", "the login may not write to the topic 'secret'"),
    ]
    assert (again, producer.n_updates) == (first, n_updates)
    assert producer.written == ["out", "out"]


async def test_a_message_that_is_too_large_is_refused_alone(topics: KafkaTopics) -> None:
    messages = [out_message("p1", 0), out_message("p1", 1, "p" * (5 << 20)), out_message("p1", 2)]

    [refused] = await write(topics.url("out"), messages)

    assert (refused.message, "too large" in refused.reason) == (messages[1], True)
    assert [document["step"] for _, document in await asyncio.to_thread(topics.read, "out", 2)] == [0, 2]


def test_a_prediction_that_cannot_be_handed_over_is_a_dead_letter(
    service: ServiceProcess, topics: KafkaTopics, tmp_path: Path
) -> None:
    """The other streams go on, and `--once` ends with 1."""
    topics.add([("a:b", {"x": 1}), ("out", {"x": 2}), ("a:b", {"x": 3}), ("out", {"x": 4})])
    to = ["--model", "fold", "--stream", "key", "--url", service.url, "--to", topics.url("{stream}")]

    counts = run_once(tmp_path, topics.url("in"), *to, "--dead-letter", f"file://{tmp_path}/dead.jsonl", code=1)

    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert [(one["code"], one["stream"], json.loads(one["message"])["step"]) for one in letters] == [
        ("undeliverable", "a:b", 1), ("undeliverable", "a:b", 2),
    ]  # fmt: skip
    assert [document["step"] for _, document in topics.read("out", 2)] == [1, 2]
    assert (counts["timesteps"], counts["predictions"], counts["dead_letters"]) == (4, 2, 2)


def test_a_topic_that_cannot_be_is_refused_at_the_start() -> None:
    pytest.importorskip("aiokafka")
    with pytest.raises(ConnectUsageError, match="the topic 'a:b' is illegal"):
        BrokerUrl.parse("kafka://h/a:b").writer("json")
