"""`stepwell connect` from and to NATS JetStream."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stepwell.addons.connect.broker_laws import BrokerLaws
from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.messages import ConnectError
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect.brokers import BrokerProcess, nats
from tests.addons.connect.connectors import Readings, connector, ended, kill_in_turn, run_once, wait_for, written
from tests.addons.connect.readers import next_messages, until_lost
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.writers import out_message, write
from tests.processes import ServiceProcess

T = TypeVar("T")


class NatsSubjects:
    """A server with the streams `IN` (subjects `in.>`), `OUT` and `DEAD`."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker

    def url(self, subject: str, query: str = "") -> str:
        return f"nats://127.0.0.1:{self.broker.port}/{subject}{query}"

    def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        import nats as client

        async def connected() -> T:
            one = await client.connect(f"nats://127.0.0.1:{self.broker.port}")
            try:
                return await work(one.jetstream())
            finally:
                await one.close()

        return asyncio.run(connected())

    async def create(self, js: Any) -> None:
        for name in ("in", "out", "dead"):
            await js.add_stream(name=name.upper(), subjects=[name, f"{name}.>"])

    def add(self, messages: list[tuple[str, Any]]) -> None:
        async def publish(js: Any) -> None:
            for subject, value in messages:
                await js.publish(subject, value if isinstance(value, bytes) else json.dumps(value).encode())

        self.run(publish)

    def read(self, stream: str) -> list[tuple[str, dict[str, Any]]]:
        async def fetch(js: Any) -> list[tuple[str, dict[str, Any]]]:
            found: list[tuple[str, dict[str, Any]]] = []
            n = (await js.stream_info(stream)).state.messages
            subscription = await js.subscribe(f"{stream.lower()}.>", ordered_consumer=True)
            while len(found) < n:
                message = await subscription.next_msg(10)
                found.append((message.subject, json.loads(message.data)))
            return found

        return self.run(fetch)

    def n_written(self) -> int:
        async def count(js: Any) -> int:
            return int((await js.stream_info("OUT")).state.messages)

        return self.run(count)


@pytest.fixture
def subjects(tmp_path: Path) -> Iterator[NatsSubjects]:
    with or_skip(nats, tmp_path) as broker:
        one = NatsSubjects(broker)
        one.run(one.create)
        yield one


class TestNats(BrokerLaws):
    """The laws of every broker."""

    @pytest.fixture
    def url(self, subjects: NatsSubjects) -> str:
        return subjects.url("in.s", "?durable=laws")


def flags(service: ServiceProcess, subjects: NatsSubjects) -> list[str]:
    return ["--model", "fold", "--stream", "topic", "--url", service.url, "--to", subjects.url("out.{stream}")]


def flags_of_all(service: ServiceProcess, subjects: NatsSubjects) -> list[str]:
    """Of a connector whose messages have their stream in a field, and whose predictions have one subject."""
    return ["--model", "fold", "--stream", "stream", "--url", service.url, "--to", subjects.url("out.all")]


def test_a_subject_gives_the_predictions_of_the_fold(
    service: ServiceProcess, subjects: NatsSubjects, tmp_path: Path
) -> None:
    documents = [(f"in.n{i % 3}", {"x": i}) for i in range(30)]
    subjects.add([*documents, ("in.n0", b"{")])
    words = (subjects.url("in.{stream}", "?durable=d"), *flags(service, subjects))

    counts = run_once(tmp_path, *words, "--dead-letter", subjects.url("dead.x"), code=1)
    again = run_once(tmp_path, *words)

    out = subjects.read("OUT")
    assert [(subject, one["step"]) for subject, one in out if subject == "out.n0"] == [
        ("out.n0", step) for step in range(1, 11)
    ]
    assert re.fullmatch(r"nats:IN@\d{8}T\d{6}\.\d{6}Z", out[0][1]["source"]["id"])
    assert out[0][1]["source"]["at"] == 1
    assert [one["code"] for _, one in subjects.read("DEAD")] == ["bad_json"]
    assert (counts["messages"], again["messages"]) == (31, 0)


def test_a_stream_that_was_deleted_and_created_again_is_applied(
    service: ServiceProcess, subjects: NatsSubjects, tmp_path: Path
) -> None:
    """Its sequence begins with 1 again, and its messages are others."""

    async def create_again(js: Any) -> None:
        await js.delete_stream("IN")
        await js.add_stream(name="IN", subjects=["in", "in.>"])

    words = (subjects.url("in.{stream}", "?durable=d"), *flags(service, subjects))
    subjects.add([("in.again", {"x": 1}), ("in.again", {"x": 2})])
    first = run_once(tmp_path, *words)
    subjects.run(create_again)
    subjects.add([("in.again", {"x": 3}), ("in.again", {"x": 4})])
    second = run_once(tmp_path, *words)

    assert [(one["timesteps"], one["skipped"]) for one in (first, second)] == [(2, 0), (2, 0)]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_connectors_that_are_killed_in_turn_lose_nothing(
    models: Path, subjects: NatsSubjects, short_path: Path
) -> None:
    readings = Readings(41, streams=50, steps=120)
    kill_in_turn(
        short_path,
        models,
        lambda service: [subjects.url("in.all", "?durable=d"), *flags_of_all(service, subjects)],
        readings,
        add=lambda _: subjects.add([("in.all", document) for document in readings.documents()]),
        n_written=subjects.n_written,
        victims=[0, None, 1, 0],
    )

    assert written((one for _, one in subjects.read("OUT")), doubles=True) == readings.expected()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_is_killed_and_started_again_is_waited_for(
    service: ServiceProcess, subjects: NatsSubjects, tmp_path: Path
) -> None:
    readings = Readings(42, streams=20, steps=100)
    subjects.add([("in.all", document) for document in readings.documents()])
    with connector(tmp_path, subjects.url("in.all"), *flags_of_all(service, subjects)) as one:
        wait_for(lambda: subjects.n_written() > 0, what=one.text)
        subjects.broker.stop()
        subjects.broker.start()
        wait_for(lambda: subjects.n_written() == len(readings), what=one.text)

    assert written((one for _, one in subjects.read("OUT")), doubles=True) == readings.expected()


async def test_a_connector_that_gets_its_lease_back_begins_with_what_it_has_not_acknowledged(
    subjects: NatsSubjects,
) -> None:
    """The acknowledgement of a later message would acknowledge those before it, too."""
    await asyncio.to_thread(subjects.add, [("in.s", {"x": n}) for n in range(10)])
    reader = BrokerUrl.parse(subjects.url("in.{stream}", "?durable=d")).reader(ReaderOptions())

    async def take_lease(js: Any) -> None:
        await (await js.key_value("stepwell-connect")).put("IN.d", b"another one")

    async def give_it_back(js: Any) -> None:
        await (await js.key_value("stepwell-connect")).delete("IN.d")

    await reader.open()
    first = await next_messages(reader, 5)
    await asyncio.to_thread(subjects.run, take_lease)
    await until_lost(reader)
    await asyncio.to_thread(subjects.run, give_it_back)
    again = await next_messages(reader, 5)
    await reader.acknowledge(again)
    behind = await next_messages(reader, 5)
    await reader.close()

    assert [one.at for one in first] == [one.at for one in again] == [1, 2, 3, 4, 5]
    assert [one.at for one in behind] == [6, 7, 8, 9, 10]


async def test_a_lease_that_was_lost_and_got_back_between_two_polls_begins_with_what_is_open(
    subjects: NatsSubjects,
) -> None:
    await asyncio.to_thread(subjects.add, [("in.s", {"x": n}) for n in range(5)])
    reader = BrokerUrl.parse(subjects.url("in.{stream}", "?durable=d")).reader(ReaderOptions())

    async def expire(js: Any) -> None:
        await (await js.key_value("stepwell-connect")).delete("IN.d")

    await reader.open()
    first = await next_messages(reader, 5)
    await asyncio.to_thread(subjects.run, expire)
    again = await next_messages(reader, 5)
    await reader.close()

    assert [one.at for one in first] == [one.at for one in again] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("options", "n_left"),
    [({"retention": "interest"}, 0), ({"max_consumers": 1}, 10)],
    ids=["it keeps messages for its consumers", "it admits one consumer"],
)
async def test_a_stream_of_any_kind_loses_none_when_a_connector_is_killed(
    subjects: NatsSubjects, options: dict[str, Any], n_left: int
) -> None:
    async def create(js: Any) -> None:
        await js.add_stream(name="KIND", subjects=["kind.>"], **options)

    async def state(js: Any) -> tuple[int, int]:
        found = (await js.stream_info("KIND")).state
        return found.messages, found.consumer_count

    await asyncio.to_thread(subjects.run, create)
    reader = BrokerUrl.parse(subjects.url("kind.{stream}", "?durable=d")).reader(ReaderOptions())
    await reader.open()
    assert not await reader.poll(5)  # from now on there is a consumer
    await asyncio.to_thread(subjects.add, [("kind.s", {"x": n}) for n in range(10)])
    await reader.acknowledge(await next_messages(reader, 5))
    await next_messages(reader, 5)
    await reader.close()
    await reader.open()
    again = await next_messages(reader, 5)
    await reader.acknowledge(again)
    await reader.close()

    assert [one.at for one in again] == [6, 7, 8, 9, 10]
    assert await asyncio.to_thread(subjects.run, state) == (n_left, 1)


async def test_a_consumer_that_was_being_created_again_when_its_connector_was_killed_begins_where_it_should(
    subjects: NatsSubjects,
) -> None:
    await asyncio.to_thread(subjects.add, [("in.s", {"x": n}) for n in range(10)])
    reader = BrokerUrl.parse(subjects.url("in.{stream}", "?durable=d")).reader(ReaderOptions())

    async def interrupt(js: Any) -> None:
        """Leave what is there between the deletion of a consumer and its creation."""
        found = (await js.consumer_info("IN", "d")).config
        found.name, found.durable_name, found.deliver_policy, found.opt_start_seq = (
            None,
            "d-keeper",
            "by_start_sequence",
            6,
        )
        await js.add_consumer("IN", found)
        await js.delete_consumer("IN", "d")

    await reader.open()
    await reader.acknowledge(await next_messages(reader, 5))
    await reader.close()
    await asyncio.to_thread(subjects.run, interrupt)
    await reader.open()
    found = await next_messages(reader, 5)
    await reader.close()

    assert [one.at for one in found] == [6, 7, 8, 9, 10]


def test_a_subject_without_a_stream_is_refused(service: ServiceProcess, subjects: NatsSubjects, tmp_path: Path) -> None:
    text = ended(
        tmp_path, subjects.url("nowhere"), "--model", "fold", "--stream", "stream", "--url", service.url, code=1
    )

    assert "no JetStream stream" in text


def test_check_creates_no_consumer(service: ServiceProcess, subjects: NatsSubjects, tmp_path: Path) -> None:
    subjects.add([("in.shown", {"x": 5})])
    text = ended(
        tmp_path, subjects.url("in.{stream}"), "--model", "fold", "--stream", "topic", "--url", service.url, "--check"
    )

    assert 'shown: {"x": [5]}' in text


async def test_a_stream_that_makes_an_illegal_subject_is_refused_alone(subjects: NatsSubjects) -> None:
    """Ids may begin and end with a dot, and have two in a row."""
    messages = [out_message(one, n) for n, one in enumerate(["a.b", "a..b", ".a", "a.", "a@b:c"])]

    refused = await write(subjects.url("out.{stream}"), messages)

    assert [one.message for one in refused] == messages[1:4]
    assert refused[0].reason == "the subject 'out.a..b' is illegal: it has an empty part"
    assert [one for one, _ in await asyncio.to_thread(subjects.read, "OUT")] == ["out.a.b", "out.a@b:c"]


async def test_a_stream_whose_subject_no_jetstream_stream_has_is_refused_alone(subjects: NatsSubjects) -> None:
    messages = [out_message(one, n) for n, one in enumerate(["out", "nosuch", "out"])]

    [refused] = await write(subjects.url("{stream}.x"), messages)

    assert (refused.message, refused.reason) == (messages[1], "no JetStream stream has the subject 'nosuch.x'")
    assert len(await asyncio.to_thread(subjects.read, "OUT")) == 2


async def test_a_message_that_is_too_large_is_refused_alone(subjects: NatsSubjects) -> None:
    messages = [out_message("ok", 0), out_message("ok", 1, "p" * (2 << 20)), out_message("ok", 2)]

    [refused] = await write(subjects.url("out.x"), messages)

    assert (refused.message, "too large" in refused.reason) == (messages[1], True)
    assert [document["step"] for _, document in await asyncio.to_thread(subjects.read, "OUT")] == [0, 2]


async def test_once_does_not_end_at_a_request_that_was_slow(subjects: NatsSubjects) -> None:
    """An empty response is no end: the server may be busy."""
    await asyncio.to_thread(subjects.add, [("in.a", {"x": n}) for n in range(5)])
    reader = BrokerUrl.parse(subjects.url("in.{stream}")).reader(ReaderOptions(once=True))
    await reader.open()
    found = list(await next_messages(reader, 2))
    await reader.acknowledge(found)

    subjects.broker.pause()
    asyncio.get_running_loop().call_later(1.0, subjects.broker.resume)
    while not reader.is_done:
        found += await reader.poll(2)
    await reader.close()

    assert [json.loads(one.body)["x"] for one in found] == [0, 1, 2, 3, 4]


async def test_once_ends_where_nothing_of_the_subject_is_left(subjects: NatsSubjects) -> None:
    """The last message of the JetStream stream is of another subject."""
    await asyncio.to_thread(subjects.add, [("in.a", {"x": 1}), ("in", {"x": 2})])
    reader = BrokerUrl.parse(subjects.url("in.{stream}")).reader(ReaderOptions(once=True))
    await reader.open()
    found = await next_messages(reader, 2)

    assert (len(found), reader.is_done) == (1, True)
    await reader.close()


async def test_a_bucket_that_keeps_a_lease_for_ever_is_refused(subjects: NatsSubjects) -> None:
    """Nobody would take over from a connector that was killed."""

    async def create(js: Any) -> None:
        await js.create_key_value(bucket="stepwell-connect")

    await asyncio.to_thread(subjects.run, create)
    reader = BrokerUrl.parse(subjects.url("in.{stream}")).reader(ReaderOptions())

    with pytest.raises(ConnectError, match="keeps entries for ever; a lease needs 10 s"):
        await reader.open()
    await reader.close()
