"""`stepwell connect --order` from NATS JetStream and Kafka: a kill while messages wait."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.messages import BrokerMessage, OutMessage
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect.brokers import kafka, nats
from tests.addons.connect.connectors import connector, lines_of, n_lines, wait_for
from tests.addons.connect.skipping import or_skip
from tests.graphs import fold_reference
from tests.processes import ServiceProcess, free_port


async def _nats_stream(address: str) -> None:
    import nats as client

    connection = await client.connect(f"nats://{address}")
    await connection.jetstream().add_stream(name="IN", subjects=["in"])
    await connection.close()


async def _kafka_topic(address: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic("in", 1, 1)])
    await admin.close()


def _flags(service: ServiceProcess, out: Path, *rules: str) -> list[str]:
    words = ["--model", "fold", "--stream", "stream", "--url", service.url, "--time", "t", *rules]
    return [*words, "--to", f"file://{out}"]


async def _write(url: str, documents: list[dict[str, Any]]) -> None:
    writer = BrokerUrl.parse(url).writer("json")
    await writer.open()
    await writer.write([OutMessage("s", "log", None, one) for one in documents])
    await writer.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["nats", "kafka"])
def test_messages_go_on_in_order_over_a_kill(service: ServiceProcess, tmp_path: Path, broker: str) -> None:
    start, prepare = (nats, _nats_stream) if broker == "nats" else (kafka, _kafka_topic)
    with or_skip(start, tmp_path) as process:
        address = f"127.0.0.1:{process.port}"
        asyncio.run(prepare(address))
        url, out, dead = f"{broker}://{address}/in", tmp_path / "out.jsonl", tmp_path / "dead.jsonl"
        words = _flags(service, out, "--order", "5s", "--dead-letter", f"file://{dead}")

        def add(*times: float) -> None:
            asyncio.run(_write(url, [{"stream": f"t.{broker}", "x": int(t), "t": t} for t in times]))

        add(10, 9, 20, 11, 16, 26, 15)
        with connector(tmp_path, url, *words) as one:
            wait_for(lambda: n_lines(out) == 5, what=one.text)
            wait_for(lambda: n_lines(dead) == 1, what=one.text)
            one.kill()
            one.start()
            add(12.5, 24, 31)
            wait_for(lambda: n_lines(out) == 7, what=one.text)
            wait_for(lambda: n_lines(dead) >= 2, what=one.text)
        applied = [9, 10, 11, 16, 20, 24, 26]
        assert [one["outputs"]["y"][0] for one in lines_of(out)] == fold_reference(applied)
        assert {json.loads(one["message"])["t"] for one in lines_of(dead)} == {15, 12.5}


@pytest.mark.timeout(300)
def test_a_late_message_that_came_while_the_connector_was_away_is_a_dead_letter(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """What it is late for is before the committed offset, so it is not read again."""
    with or_skip(kafka, tmp_path) as process:
        address = f"127.0.0.1:{process.port}"
        asyncio.run(_kafka_topic(address))
        url, out, dead = f"kafka://{address}/in", tmp_path / "out.jsonl", tmp_path / "dead.jsonl"
        words = _flags(service, out, "--order", "5s", "--dead-letter", f"file://{dead}")

        def add(*messages: tuple[str, int]) -> None:
            asyncio.run(_write(url, [{"stream": f"away.{one}", "x": t, "t": t} for one, t in messages]))

        add(("a", 10), ("b", 18), ("a", 13), ("b", 25))
        with connector(tmp_path, f"{url}?member=m", *words) as one:
            wait_for(lambda: n_lines(out) == 3, what=one.text)
            one.kill()
            add(("a", 12), ("a", 14), ("b", 40))
            one.start()
            wait_for(lambda: n_lines(out) == 5, what=one.text)
            wait_for(lambda: n_lines(dead) == 1, what=one.text)
        applied = [line["outputs"]["y"][0] for line in lines_of(out) if line["stream"] == "away.a"]
        assert applied == fold_reference([10, 13, 14])
        assert [json.loads(one["message"])["t"] for one in lines_of(dead)] == [12]


@pytest.mark.timeout(300)
def test_what_is_done_stands_beside_the_offset_where_the_broker_keeps_it(
    service: ServiceProcess, tmp_path: Path
) -> None:
    pytest.importorskip("aiokafka", reason="aiokafka is not installed (STEPWELL_EXTRAS=connect)")
    from tests.addons.connect.kafka_metadata import KafkaMetadata

    port = free_port()
    with KafkaMetadata(port) as relay, or_skip(partial(kafka, advertised=port), tmp_path) as process:
        relay.target = process.port
        asyncio.run(_kafka_topic(f"127.0.0.1:{port}"))
        url, out, dead = f"kafka://127.0.0.1:{port}/in", tmp_path / "out.jsonl", tmp_path / "dead.jsonl"
        words = _flags(service, out, "--order", "5s", "--dead-letter", f"file://{dead}")

        def add(*times: int) -> None:
            asyncio.run(_write(url, [{"stream": "beside", "x": t, "t": t} for t in times]))

        def late() -> list[int]:
            return [json.loads(one["message"])["t"] for one in lines_of(dead)]

        add(10, 21, 16, 11)
        with connector(tmp_path, f"{url}?member=m", *words) as one:
            wait_for(lambda: (n_lines(out), n_lines(dead)) == (2, 1), what=one.text)
            one.kill()
            add(15, 26)
            one.start()
            wait_for(lambda: n_lines(out) >= 3 and 15 in late(), what=one.text)
        # What was written right before the kill, and not noted yet, is written again.
        assert [*dict.fromkeys(one["outputs"]["y"][0] for one in lines_of(out))] == fold_reference([10, 16, 21])
        assert [*dict.fromkeys(late())] == [11, 15]
        assert {group for group, _, _ in relay.texts} == {"stepwell"}


@pytest.mark.timeout(300)
def test_more_streams_than_the_broker_lets_wait_go_on_and_the_oldest_pause(
    service: ServiceProcess, tmp_path: Path
) -> None:
    with or_skip(nats, tmp_path) as process:
        address = f"127.0.0.1:{process.port}"
        asyncio.run(_nats_stream(address))
        url, out = f"nats://{address}/in", tmp_path / "out.jsonl"
        words = _flags(service, out, "--every", "1s", "--order-messages", "4")
        asyncio.run(_write(url, [{"stream": f"w.{t}", "x": t, "t": t} for t in range(8)]))
        with connector(tmp_path, url, *words) as one:
            wait_for(lambda: {f"w.{t}" for t in range(7)} <= {row["stream"] for row in lines_of(out)}, what=one.text)
            wait_for(lambda: "pause before --gap" in one.text(), what=one.text)


def test_the_oldest_go_on_when_the_broker_sends_no_more_and_it_is_said(service: ServiceProcess, tmp_path: Path) -> None:
    with or_skip(nats, tmp_path) as process:
        address = f"127.0.0.1:{process.port}"
        asyncio.run(_nats_stream(address))
        url, out = f"nats://{address}/in", tmp_path / "out.jsonl"
        words = _flags(service, out, "--order", "1h", "--order-messages", "4")
        asyncio.run(_write(url, [{"stream": "full", "x": t, "t": t} for t in (2, 1, 4, 3, 6, 5)]))
        with connector(tmp_path, url, *words) as one:
            wait_for(lambda: "all that the broker lets wait" in one.text(), what=one.text)
            wait_for(lambda: n_lines(out) >= 3, what=one.text)
    assert [row["outputs"]["y"][0] for row in lines_of(out)][:3] == fold_reference([1, 2, 3])


async def _redeliveries(url: str, most_s: float) -> int:
    """Return how often a message was delivered again that is read, and stays open while nothing more comes."""
    reader: Any = BrokerUrl.parse(url).reader(ReaderOptions(most_open=10))
    await reader.open()
    found: list[BrokerMessage] = []
    while not found:
        found += await reader.poll(10)
    ends = asyncio.get_running_loop().time() + most_s
    while asyncio.get_running_loop().time() < ends:
        await reader.poll(10)
    info = await reader._js.consumer_info("IN", "stepwell")
    await reader.close()
    return int(info.num_redelivered)


def test_what_waits_long_is_kept_alive_in_nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with or_skip(nats, tmp_path) as process:
        monkeypatch.setattr("stepwell.addons.connect.brokers.nats_jetstream._ACK_WAIT_S", 1.0)
        address = f"127.0.0.1:{process.port}"
        asyncio.run(_nats_stream(address))
        asyncio.run(_write(f"nats://{address}/in", [{"x": 1}]))
        assert asyncio.run(_redeliveries(f"nats://{address}/in", 2.5)) == 0


async def _lags(url: str) -> list[int | None]:
    """Return the lag behind three messages that were read: before they are done, and then."""
    reader: Any = BrokerUrl.parse(url).reader(ReaderOptions(most_open=10))
    await reader.open()
    found: list[BrokerMessage] = []
    while len(found) < 3:
        found += await reader.poll(10)
    before = reader.lag()
    await reader.acknowledge_some(found)
    after = reader.lag()
    await reader.close()
    return [before, after]


def test_the_lag_of_kafka_is_counted_from_what_is_done(tmp_path: Path) -> None:
    with or_skip(kafka, tmp_path) as process:
        address = f"127.0.0.1:{process.port}"
        asyncio.run(_kafka_topic(address))
        url = f"kafka://{address}/in"
        asyncio.run(_write(url, [{"x": 1}] * 3))
        assert asyncio.run(_lags(url)) == [3, 0]
