"""`stepwell connect` from and to Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.connect.broker_laws import BrokerLaws
from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.messages import BrokerUnavailableError, ConnectError
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect.brokers import BrokerProcess, mosquitto
from tests.addons.connect.connectors import (
    ConnectorProcess,
    Readings,
    connector,
    ended,
    kill_in_turn,
    wait_for,
    written,
)
from tests.addons.connect.readers import first_messages_around_a_loss, next_messages
from tests.addons.connect.skipping import or_skip
from tests.addons.connect.writers import out_message
from tests.faults.proxy import Proxy
from tests.processes import ServiceProcess, service_process

SUBACK = 0x90
REPOSITORY = Path(__file__).parents[3]


class MqttTopics:
    """Publishes to a broker, and collects the messages of `out/#` and `dead`."""

    def __init__(self, broker: BrokerProcess) -> None:
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        self.port = broker.port
        self.out: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.topics: set[str] = set()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.max_inflight_messages_set(1000)
        self.client.on_message = self._on_message
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        self.client.subscribe([("out/#", 1), ("dead", 1)])

    def _on_message(self, _client: object, _data: object, message: Any) -> None:
        self.topics.add(message.topic)
        (self.dead if message.topic == "dead" else self.out).append(json.loads(message.payload))

    def url(self, path: str, query: str = "") -> str:
        return f"mqtt://127.0.0.1:{self.port}/{path}{query}"

    def publish(self, topic: str, document: object) -> Any:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.client.publish(topic, body, qos=1)

    def n_written(self) -> int:
        return len({(one["stream"], one["step"]) for one in list(self.out)})


@pytest.fixture
def topics(tmp_path: Path) -> Iterator[MqttTopics]:
    with or_skip(mosquitto, tmp_path) as broker:
        one = MqttTopics(broker)
        yield one
        one.client.disconnect()
        with contextlib.suppress(AttributeError):  # paho's thread may end while it is waited for, and is gone then
            one.client.loop_stop()


class TestMqtt(BrokerLaws):
    """The laws of every broker."""

    @pytest.fixture
    def url(self, topics: MqttTopics) -> str:
        return topics.url("in/s", "?client=laws")


def test_what_was_acknowledged_before_the_end_is_not_delivered_again(topics: MqttTopics) -> None:
    """Also while more messages arrive than are read: a connection that is closed then is reset."""

    async def first_after_each_end() -> list[int]:
        found = []
        reader = BrokerUrl.parse(topics.url("busy", "?client=busy")).reader(ReaderOptions())
        await reader.open()
        for n in range(1000):
            topics.publish("busy", {"n": n})
        for _ in range(10):
            taken = [(await next_messages(reader, 1))[0] for _ in range(5)]
            found.append(json.loads(taken[0].body)["n"])
            await reader.acknowledge(taken)
            await reader.close()
            await reader.open()
        await reader.close()
        return found

    found = asyncio.run(first_after_each_end())

    assert found == list(range(0, 50, 5))


def flags(service: ServiceProcess, topics: MqttTopics) -> list[str]:
    return ["--model", "fold", "--stream", "topic", "--url", service.url, "--to", topics.url("out/{stream}")]


def start(one: ConnectorProcess) -> None:
    """Wait until a connector is subscribed: its first report comes after that."""
    wait_for(lambda: '"messages"' in one.text(), what=one.text)


def test_the_oldest_go_on_when_the_broker_sends_no_more_and_it_is_said(
    service: ServiceProcess, topics: MqttTopics, tmp_path: Path
) -> None:
    """The window is the connector's, and not the broker's own of 1,000 messages."""
    words = ["--time", "t", "--order", "1h", "--idle", "1s", "--json"]
    with connector(tmp_path, topics.url("in/{stream}", "?client=full"), *flags(service, topics), *words) as one:
        start(one)
        for n in range(4200):
            topics.publish("in/full", {"x": 1, "t": n / 1000})
        wait_for(lambda: "all that the broker lets wait" in one.text(), what=one.text)
        wait_for(lambda: topics.n_written() >= 2000, what=one.text)
    assert [row["step"] for row in topics.out[:2000]] == list(range(1, 2001))


def test_messages_of_topics_are_streams_by_a_segment(
    service: ServiceProcess, topics: MqttTopics, tmp_path: Path
) -> None:
    source = topics.url("plant/+/pump/{stream}", "?client=c1")
    words = (source, *flags(service, topics), "--position", "n", "--json", "--dead-letter", topics.url("dead"))
    with connector(tmp_path, *words) as one:
        start(one)
        for n in (1, 2, 2, 3):  # the second one is published twice
            topics.publish("plant/7/pump/p1", {"n": n, "x": n})
        topics.publish("plant/7/pump/p1", b"{")
        wait_for(lambda: 3 in (out["step"] for out in topics.out) and len(topics.dead) == 1, what=one.text)

    assert topics.topics == {"out/p1", "dead"}
    # A message that comes again in a later poll gives its prediction again.
    assert [*dict.fromkeys(out["step"] for out in topics.out)] == [1, 2, 3]
    assert topics.out[0]["source"] == {"id": "mqtt:plant/+/pump/+#n", "at": 1}
    assert topics.dead[0]["code"] == "bad_json"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_session_that_outlives_a_killed_connector_makes_every_stream_the_fold(
    models: Path, topics: MqttTopics, short_path: Path
) -> None:
    readings = Readings(31, streams=50, steps=120)

    def publish(connectors: Sequence[ConnectorProcess]) -> None:
        start(connectors[0])
        for document in readings.documents():
            topics.publish(f"in/{document['stream']}", document)

    source, rules = topics.url("in/{stream}", "?client=c2"), ("--position", "n", "--json")
    kill_in_turn(
        short_path,
        models,
        lambda service: [source, *flags(service, topics), *rules],
        readings,
        add=publish,
        n_written=topics.n_written,
        victims=[0, None, 0],
    )

    assert written(topics.out, doubles=True) == readings.expected()


def test_without_a_position_the_command_says_what_is_doubled(
    service: ServiceProcess, topics: MqttTopics, tmp_path: Path
) -> None:
    with connector(tmp_path, topics.url("in/{stream}"), *flags(service, topics), "--json") as one:
        start(one)
        for x in (1, 1):
            topics.publish("in/plain", {"x": x})
        wait_for(lambda: len(topics.out) == 2, what=one.text)

    assert "delivered twice is applied twice" in one.text()


def test_a_second_connector_of_the_same_name_stands_by_until_the_first_one_is_gone(
    service: ServiceProcess, topics: MqttTopics, tmp_path: Path
) -> None:
    words = (topics.url("in/{stream}", "?client=same"), *flags(service, topics), "--position", "n", "--json")
    with connector(tmp_path, *words) as one:
        start(one)
        with connector(tmp_path, *words) as two:
            start(two)
            topics.publish("in/same", {"x": 1, "n": 1})
            wait_for(lambda: topics.n_written() == 1, what=one.text)
            assert json.loads(two.text().splitlines()[-1])["messages"] == 0

            one.kill()  # the broker removes its mark
            topics.publish("in/same", {"x": 2, "n": 2})
            wait_for(lambda: topics.n_written() == 2, what=two.text)

            one.start()
            assert two.stop() == 0
            topics.publish("in/same", {"x": 3, "n": 3})
            wait_for(lambda: topics.n_written() == 3, what=one.text)

    assert [found["step"] for found in topics.out if found["stream"] == "same"][-1] == 3


def test_a_connector_that_is_taken_over_stands_by(service: ServiceProcess, topics: MqttTopics, tmp_path: Path) -> None:
    """The mark is removed while both run, as if the broker had lost it: the second one ends the first one's session."""
    words = (topics.url("in/{stream}", "?client=both"), *flags(service, topics), "--position", "n", "--json")
    with connector(tmp_path, *words) as one:
        start(one)
        with connector(tmp_path, *words) as two:
            start(two)
            topics.client.publish("stepwell/connect/both", b"", qos=1, retain=True)
            wait_for(lambda: "same client name" in one.text(), what=lambda: one.text() + two.text())
            for n in (1, 2, 3):
                topics.publish("in/both", {"x": n, "n": n})
            wait_for(lambda: topics.n_written() == 3, what=lambda: one.text() + two.text())

    assert one.process.wait(60) == two.process.wait(60) == 0


async def relay_without_subacks(
    broker: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: bytes
) -> None:
    """Relay a connection to a broker, without the SUBACK packets for one client.

    Args:
        broker: The broker's port.
        reader: What the client sends.
        writer: What the client receives.
        client: The client's name, which is in its first packet.
    """
    from_broker, to_broker = await asyncio.open_connection("127.0.0.1", broker)
    first = await reader.read(4096)
    to_broker.write(first)

    async def requests() -> None:
        while data := await reader.read(4096):
            to_broker.write(data)
        to_broker.close()

    sending = asyncio.create_task(requests())
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            head = await from_broker.readexactly(2)
            while head[-1] & 0x80:  # another byte of the length follows
                head += await from_broker.readexactly(1)
            length = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(head[1:]))
            packet = head + await from_broker.readexactly(length)
            if packet[0] != SUBACK or client not in first:
                writer.write(packet)
    writer.close()
    await sending


async def test_a_session_that_the_broker_has_kept_goes_on_before_the_subscription_is_confirmed(
    topics: MqttTopics,
) -> None:
    """The broker sends what it has kept first, which may take longer than a connector waits."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await relay_without_subacks(topics.port, reader, writer, b"c9")

    def reader_at(port: int) -> Any:
        return BrokerUrl.parse(f"mqtt://127.0.0.1:{port}/in/{{stream}}?client=c9").reader(ReaderOptions())

    first = reader_at(topics.port)
    await first.open()
    await first.close()
    await asyncio.to_thread(topics.publish("in/s", {"n": 1}).wait_for_publish)
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        second = reader_at(server.sockets[0].getsockname()[1])
        await second.open()
        found: list[Any] = []
        while not found:
            found += await second.poll(10)
        await second.close()

    assert [one.body for one in found] == [b'{"n": 1}']


async def test_messages_that_wait_when_the_connection_is_lost_are_read_again_behind_those_that_are_open(
    topics: MqttTopics,
) -> None:
    def add() -> None:
        for n in range(20):
            topics.publish("in/s", {"n": n}).wait_for_publish()

    with Proxy(("127.0.0.1", topics.port)) as proxy:
        url = f"mqtt://127.0.0.1:{proxy.port}/in/{{stream}}?client=c11"
        reader = BrokerUrl.parse(url).reader(ReaderOptions())
        found = await first_messages_around_a_loss(reader, proxy, add)

    assert found == [b'{"n": 0}'] * 2


def test_a_shared_subscription_is_refused(topics: MqttTopics, tmp_path: Path) -> None:
    words = (topics.url("$share/g/in/{stream}"), "--model", "fold", "--stream", "topic")
    text = ended(tmp_path, *words, code=2)

    assert "shared subscription" in text


def test_the_example_of_compose_gives_predictions_of_the_demos_model(topics: MqttTopics, short_path: Path) -> None:
    text = (REPOSITORY / "docker/connect.toml").read_text()
    (short_path / "c.toml").write_text(
        text.replace("mqtt://mqtt/", topics.url("")).replace("predictions/", "out/").replace("dead-letters", "dead")
    )
    models = REPOSITORY / "service/stepwell/addons/demo/models"
    with (
        service_process(models, short_path / "one") as service,
        connector(short_path, short_path / "c.toml", "--url", service.url, "--json") as one,
    ):
        start(one)
        topics.publish("sensors/pump-1", {"n": 1, "motion": [0, 0, 9.8, 0, 0, 0]})
        wait_for(lambda: len(topics.out) == 1, what=one.text)

    assert topics.topics == {"out/pump-1"}
    assert len(topics.out[0]["outputs"]["activity"]) == 4


async def test_a_topic_that_the_login_may_not_write_is_refused_alone(tmp_path: Path) -> None:
    """The broker confirms the message with a code that it was refused; this one also ends the connection."""
    (tmp_path / "acl").write_text("topic write out/ok\n")
    with or_skip(partial(mosquitto, settings=(f"acl_file {tmp_path}/acl",)), tmp_path) as broker:
        messages = [out_message(one, n) for n, one in enumerate(["ok", "nosuch", "ok"])]
        writer = BrokerUrl.parse(f"mqtt://127.0.0.1:{broker.port}/out/{{stream}}").writer("json")
        await writer.open()
        with contextlib.suppress(BrokerUnavailableError):
            await writer.write(messages)
        await writer.close()
        await writer.open()
        [refused] = await writer.write(messages)
        await writer.close()

    assert refused.message is messages[1]
    assert "the broker refuses the topic 'out/nosuch': Not authorized" in refused.reason


async def test_a_topic_of_all_streams_that_the_login_may_not_write_ends_the_writing(tmp_path: Path) -> None:
    """Whenever it is tried: it is a mistake in the permissions, and no message is to blame."""
    (tmp_path / "acl").write_text("topic write other\n")
    with or_skip(partial(mosquitto, settings=(f"acl_file {tmp_path}/acl",)), tmp_path) as broker:
        writer = BrokerUrl.parse(f"mqtt://127.0.0.1:{broker.port}/out").writer("json")
        for _ in range(2):
            await writer.open()
            with pytest.raises(ConnectError, match="refuses messages: Not authorized"):
                await writer.write([out_message("ok")])
            await writer.close()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_once_does_not_end_while_another_connector_reads(topics: MqttTopics) -> None:
    """It has read nothing, so nothing is done."""
    from stepwell.addons.connect.brokers.mqtt import MqttReader

    url, clock = BrokerUrl.parse(topics.url("in/{stream}", "?client=c9")), Clock()
    first = url.reader(ReaderOptions())
    second = MqttReader(url, ReaderOptions(once=True), clock=clock)
    await first.open()
    try:
        await second.open()
        clock.now += 100
        assert (await second.poll(1), second.is_done) == ([], False)
    finally:
        await second.close()
        await first.close()


async def test_once_counts_its_quiet_seconds_from_the_last_acknowledgement(topics: MqttTopics) -> None:
    """Until then the broker keeps what is beyond the messages that it may send ahead."""
    from stepwell.addons.connect.brokers.mqtt import MqttReader

    clock = Clock()
    reader = MqttReader(BrokerUrl.parse(topics.url("in/{stream}")), ReaderOptions(once=True), clock=clock)
    await reader.open()
    topics.publish("in/a", {"x": 1})
    found = await next_messages(reader, 5)
    clock.now += 100
    await reader.acknowledge(found)

    assert not reader.is_done
    clock.now += 100
    assert reader.is_done
    await reader.close()
