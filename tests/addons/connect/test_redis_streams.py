"""`stepwell connect` from and to Redis Streams: every prediction is written exactly once, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.connect.broker_laws import BrokerLaws
from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.urls import BrokerUrl
from tests.addons.connect.connectors import (
    ConnectorProcess,
    Readings,
    connector,
    ended,
    kill_in_turn,
    run_once,
    streams_equal_the_fold,
    wait_for,
    written,
)
from tests.processes import ServiceProcess, free_port
from tests.servers import AOF, Server, server


class RedisBroker:
    """A server of the Redis protocol on a TCP port."""

    def __init__(self, one: Server, port: int) -> None:
        self.server = one
        self.port = port
        self.client: Any = one.client()

    def url(self, stream: str, group: str = "") -> str:
        return f"redis://127.0.0.1:{self.port}/0?stream={stream}" + (f"&group={group}" if group else "")

    def add(self, stream: str, readings: Readings) -> None:
        pipe = self.client.pipeline(transaction=False)
        for document in readings.documents():
            pipe.xadd(stream, {"stream": document["stream"], "x": document["x"][0], "n": document["n"]})
        pipe.execute()

    def entries(self, stream: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _, fields in self.client.xrange(stream):
            entry: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items()}
            entry |= {name: json.loads(entry[name]) for name in ("outputs", "source", "step") if name in entry}
            found.append(entry)
        return found


@pytest.fixture
def broker(short_path: Path) -> Iterator[RedisBroker]:
    port = free_port()
    with server(short_path / "broker", *AOF, "--port", str(port)) as one:
        yield RedisBroker(one, port)


class TestRedisStreams(BrokerLaws):
    """The laws of every broker."""

    @pytest.fixture
    def url(self, broker: RedisBroker) -> str:
        return broker.url("in", "laws")


def flags(service: ServiceProcess, broker: RedisBroker) -> list[str]:
    return ["--model", "fold", "--stream", "stream", "--url", service.url, "--to", broker.url("out")]


def test_entries_with_fields_and_entries_with_json_are_timesteps_and_bad_ones_are_dead_letters(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    broker.client.xadd("in", {"stream": "both", "x": "4"}, id="5-7")
    for bad in ({"x": 1}, {"stream": "both", "x": "nan"}, {"data": "{"}):
        broker.client.xadd("in", bad)
    broker.client.xadd("in", {"data": '{"stream": "both", "x": [5]}'})

    run_once(tmp_path, broker.url("in", "g"), *flags(service, broker), "--dead-letter", broker.url("dead"), code=1)

    first, last = broker.entries("out")
    assert (first["stream"], first["step"], first["outputs"]) == ("both", 1, {"y": [5]})
    assert first["source"] == {"id": "redis:0/in", "at": 5 << 20 | 7}
    assert (first["model"], first["version"], "state_id" in first) == ("fold", "1", False)
    assert (last["step"], len(last["state_id"])) == (2, 22)
    assert broker.client.xpending("in", "g")["pending"] == 0
    assert [entry["code"] for entry in broker.entries("dead")] == ["bad_request", "bad_input", "bad_json"]
    assert all(entry[name] for entry in broker.entries("dead") for name in ("reason", "source"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_connectors_that_are_killed_in_turn_write_every_prediction_once(
    models: Path, broker: RedisBroker, short_path: Path
) -> None:
    """One reads and the other stands by."""
    readings = Readings(11, streams=100, steps=100)
    kill_in_turn(
        short_path,
        models,
        lambda service: [broker.url("in", "g"), *flags(service, broker)],
        readings,
        add=lambda _: broker.add("in", readings),
        n_written=lambda: int(broker.client.xlen("out")),
        is_settled=lambda: broker.client.xpending("in", "g")["pending"] == 0,
        victims=[0, None, 1, 0, 1],
    )

    assert written(broker.entries("out")) == readings.expected()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_connector_that_was_paused_beyond_its_lease_writes_nothing_twice(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    readings = Readings(14, streams=20, steps=400)
    words = (broker.url("in", "g"), *flags(service, broker))
    with connector(tmp_path, *words) as one, connector(tmp_path, *words) as two:
        broker.add("in", readings)
        for paused, other in ((one, two), (two, one)):
            enough = min(int(broker.client.xlen("out")) + 256, len(readings))
            paused.process.send_signal(signal.SIGSTOP)
            wait_for(lambda n=enough: int(broker.client.xlen("out")) >= n, what=other.text)  # type: ignore[misc]
            paused.process.send_signal(signal.SIGCONT)
        wait_for(lambda: broker.client.xlen("out") == len(readings), what=one.text)

    assert written(broker.entries("out")) == readings.expected()


def test_a_reader_that_has_lost_its_lease_unnoticed_gets_no_new_entries(broker: RedisBroker) -> None:
    """As after a pause of the process: the connector that has the lease would never see what this one gets."""

    async def read() -> tuple[list[int], int]:
        reader = BrokerUrl.parse(broker.url("in", "g")).reader(ReaderOptions())
        await reader.open()
        try:
            broker.client.xadd("in", {"stream": "a", "x": 1})
            first = await reader.poll(10)
            await reader.acknowledge(first)
            broker.client.set("{in}:stepwell:g:lease", "another one")
            broker.client.xadd("in", {"stream": "a", "x": 2})
            second = await reader.poll(10)
            return [len(first), len(second)], broker.client.xpending("in", "g")["pending"]
        finally:
            await reader.close()

    assert asyncio.run(read()) == ([1, 0], 0)
    assert broker.client.get("{in}:stepwell:g:lease") == b"another one"


def test_an_entry_that_is_added_while_a_reader_waits_is_returned(broker: RedisBroker) -> None:
    async def read() -> list[int]:
        reader = BrokerUrl.parse(broker.url("in", "g")).reader(ReaderOptions())
        await reader.open()
        found = []
        try:
            for x in range(3):
                waiting = asyncio.create_task(reader.poll(10))
                if x:
                    await asyncio.to_thread(broker.client.xadd, "in", {"stream": "a", "x": x})
                messages = await waiting
                while x and not messages:
                    messages = await reader.poll(10)
                found.append(len(messages))
                if messages:
                    await reader.acknowledge(messages)
            return found
        finally:
            await reader.close()

    assert asyncio.run(read()) == [0, 1, 1]


def test_a_stream_that_was_created_again_with_the_ids_of_before_is_reported(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    """A producer that numbers its entries itself: more of them were applied before than one poll leaves."""
    words = (broker.url("in", "g"), "--model", "fold", "--stream", "stream", "--url", service.url, "--once")
    texts = []
    for code in (0, 1):
        with broker.client.pipeline(transaction=False) as pipe:
            for i in range(16_400):
                pipe.xadd("in", {"stream": f"renumbered{i % 40}", "x": 1}, id=f"{i + 1}-0")
            pipe.execute()
        one = ConnectorProcess(tmp_path, *words).start()
        assert one.process.wait(100) == code, one.text()
        texts.append(one.text())
        broker.client.delete("in")

    assert "in a row" not in texts[0]
    assert "timesteps in a row were applied before, by their positions in redis:0/in. If that was deleted" in texts[1]
    assert "Nothing was applied: all 16,400 timesteps were applied before" in texts[1]


def test_a_reset_stream_is_written_again_from_step_1(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    import httpx2

    words = (broker.url("in", "g"), *flags(service, broker))
    for x in (1, 2):
        broker.client.xadd("in", {"stream": "reset", "x": x})
        run_once(tmp_path, *words)
        httpx2.post(f"{service.url}/v1/models/fold/streams/reset/reset", json={}, timeout=30)

    assert [(one["step"], one["outputs"]["y"]) for one in broker.entries("out")] == [(1, [2]), (1, [3])]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_service_that_is_away_stops_the_reading_and_nothing_is_lost(
    models: Path, broker: RedisBroker, short_path: Path
) -> None:
    readings = Readings(12, streams=35, steps=500)
    service = ServiceProcess(models, short_path / "one", "--drain-s", "0").start()
    with connector(short_path, broker.url("in", "g"), *flags(service, broker)) as one:
        broker.add("in", readings)
        wait_for(lambda: broker.client.xlen("out") > 0, what=one.text)
        service.kill()
        wait_for(lambda: "waiting for the service" in one.text(), what=one.text)
        pending = broker.client.xpending("in", "g")["pending"]
        service.start()
        try:
            wait_for(lambda: broker.client.xlen("out") == len(readings), what=one.text)
            assert streams_equal_the_fold(service.url, readings)
        finally:
            service.stop()

    assert written(broker.entries("out")) == readings.expected()
    assert pending <= 16_384  # one poll: nothing is read ahead of the service


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_broker_that_ends_and_starts_again_is_waited_for(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    readings = Readings(13, streams=20, steps=300)
    with connector(tmp_path, broker.url("in", "g"), *flags(service, broker)) as one:
        broker.add("in", readings)
        for part in (1, 2, 3):
            wait_for(lambda part=part: int(broker.client.xlen("out")) > len(readings) * part // 5, what=one.text)  # type: ignore[misc]
            broker.server.stop()  # what it has confirmed is in its file
            broker.server.start()
        wait_for(lambda: broker.client.xlen("out") == len(readings), what=one.text)

    assert "waiting for a broker" in one.text()
    assert written(broker.entries("out")) == readings.expected()


def test_check_joins_no_group(service: ServiceProcess, broker: RedisBroker, tmp_path: Path) -> None:
    broker.client.xadd("in", {"stream": "c", "x": 1})
    text = ended(
        tmp_path, broker.url("in", "g"), "--model", "fold", "--stream", "stream", "--url", service.url, "--check"
    )

    assert 'c: {"x": [1]}' in text
    assert broker.client.xinfo_groups("in") == []


def test_entries_whose_ids_have_no_position_are_dead_letters(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    """`1-1048576` would have the position of `1-0`, and be taken for a repetition of it."""
    ids = ["1-0", "1-1048575", "1-1048576", "2-0", f"{2**43}-0", "1796066977277123-0"]
    for n, one in enumerate(ids):
        broker.client.xadd("in", {"stream": "ids", "x": n}, id=one)

    words = (broker.url("in", "g"), *flags(service, broker), "--dead-letter", broker.url("dead"))
    counts = run_once(tmp_path, *words, code=1)

    assert (counts["timesteps"], counts["dead_letters"]) == (3, 3)
    assert [one["source"]["at"] for one in broker.entries("out")] == [1 << 20, 2 * (1 << 20) - 1, 2 << 20]
    letters = broker.entries("dead")
    assert [one["code"] for one in letters] == ["bad_request"] * 3
    assert all(f"the entry id {name} has no position" in one["reason"] for name, one in zip(
        ["1-1048576", f"{2**43}-0", "1796066977277123-0"], letters, strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("as_data", [False, True])
def test_entries_with_ids_of_microseconds_are_placed_by_a_field(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path, as_data: bool
) -> None:
    for n in range(3):
        document = {"stream": f"us{as_data:d}", "x": n, "n": n}
        broker.client.xadd(
            "in", {"data": json.dumps(document)} if as_data else document, id=f"{1796066977277123 + n}-0"
        )

    counts = run_once(tmp_path, broker.url("in", "g"), *flags(service, broker), "--position", "n")

    assert (counts["timesteps"], counts["dead_letters"]) == (3, 0)
    assert [one["source"] for one in broker.entries("out")] == [{"id": "redis:0/in#n", "at": n} for n in range(3)]


def test_ids_in_fields_of_entries_are_the_text_as_it_stands(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    """The documented `XADD`: each is a machine of its own."""
    ids = ["0042", "42", "4_2", "48e2", "1.10"]
    for n, one in enumerate([*ids, "+42", " 42"]):
        broker.client.xadd("in", {"stream": one, "x": n})

    counts = run_once(tmp_path, broker.url("in", "g"), *flags(service, broker), code=1)

    assert [(one["stream"], one["step"]) for one in broker.entries("out")] == [(one, 1) for one in ids]
    assert counts["dead_letter_codes"] == {"bad_request": 2}
