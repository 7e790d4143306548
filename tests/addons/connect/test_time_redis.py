"""`stepwell connect --order` and `--every` from Redis Streams, over crashes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.addons.connect.connectors import ConnectorProcess, connector, run_once, wait_for
from tests.addons.connect.test_redis_streams import RedisBroker
from tests.graphs import fold_reference
from tests.processes import ServiceProcess, free_port
from tests.servers import AOF, server


@pytest.fixture
def broker(short_path: Path) -> Iterator[RedisBroker]:
    port = free_port()
    with server(short_path / "broker", *AOF, "--port", str(port)) as one:
        yield RedisBroker(one, port)


def add(broker: RedisBroker, documents: list[dict[str, Any]]) -> None:
    pipe = broker.client.pipeline(transaction=True)  # one poll
    for document in documents:
        pipe.xadd("in", {"data": json.dumps(document)})
    pipe.execute()


def dead(broker: RedisBroker) -> list[dict[str, Any]]:
    """Return the messages of the dead letters, each once."""
    found = {fields[b"message"].decode() for _, fields in broker.client.xrange("dead") if fields[b"code"] == b"late"}
    return [json.loads(one) for one in found]


def flags(service: ServiceProcess, broker: RedisBroker, *more: str) -> list[str]:
    words = ["--model", "fold", "--stream", "stream", "--url", service.url, "--time", "t", *more]
    return [broker.url("in", "g"), *words, "--to", broker.url("out"), "--dead-letter", broker.url("dead")]


def outs(broker: RedisBroker, stream: str) -> list[tuple[int, int]]:
    """Return the position and the prediction of each message out of a stream."""
    found = [one for one in broker.entries("out") if one["stream"] == stream]
    return [(one["source"]["at"] // 1_000_000, one["outputs"]["y"][0]) for one in found]


def test_what_waits_is_not_acknowledged_and_goes_on_after_a_kill(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    add(broker, [{"stream": "kill", "x": at, "t": at} for at in (10, 9, 14, 16, 12)])
    with connector(tmp_path, *flags(service, broker, "--order", "5s")) as one:
        wait_for(lambda: broker.client.xlen("out") == 2 and broker.client.xpending("in", "g")["pending"] == 3)
        one.kill()
        add(broker, [{"stream": "kill", "x": int(at), "t": at} for at in (9.5, 13, 21)])
        one.start()
        wait_for(lambda: broker.client.xlen("out") == 6 and broker.client.xlen("dead") == 1, what=one.text)

    times = [9, 10, 12, 13, 14, 16]
    assert outs(broker, "kill") == list(zip(times, fold_reference(times), strict=True))


def test_a_message_of_the_newest_operation_that_is_read_again_was_applied(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    """What was applied and not acknowledged is told from what is late."""
    words = flags(service, broker, "--order", "0")
    add(broker, [{"stream": "again", "x": at, "t": at} for at in (5, 6, 7)])
    run_once(tmp_path, *words)
    broker.client.xgroup_destroy("in", "g")  # as if nothing of it had been acknowledged
    add(broker, [{"stream": "again", "x": at, "t": at} for at in (4, 8)])

    counts = run_once(tmp_path, *words, code=1)

    assert outs(broker, "again") == list(zip([5, 6, 7, 8], fold_reference([5, 6, 7, 8]), strict=True))
    assert dead(broker) == [{"stream": "again", "x": 4, "t": 4}]
    assert (counts["skipped"], counts["late"], counts["timesteps"]) == (3, 1, 1)


def test_a_fill_holds_the_value_of_a_tick_before_a_kill(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    add(broker, [{"stream": "hold", "x": 3, "t": 0.5}, {"stream": "other", "x": 1, "t": 3.5}])
    with connector(tmp_path, *flags(service, broker, "--every", "1s")) as one:
        wait_for(lambda: broker.client.xlen("out") == 2, what=one.text)  # ticks 1 and 2 of `hold`
        one.kill()
        add(broker, [{"stream": "other", "x": 1, "t": 5.5}, {"stream": "hold", "x": 9, "t": 5.9}])
        one.start()
        wait_for(lambda: len(outs(broker, "hold")) == 4, what=one.text)
    assert [y for _, y in outs(broker, "hold")] == fold_reference([3] * 4)


def test_a_message_that_is_late_for_a_tick_is_a_dead_letter_also_when_that_could_not_be_written_at_first(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    add(broker, [{"stream": "tick", "x": 1, "t": 9.5}, {"stream": "other", "x": 1, "t": 12}])
    with connector(tmp_path, *flags(service, broker, "--every", "1s")) as one:
        wait_for(lambda: len(outs(broker, "tick")) == 1, what=one.text)
        broker.client.set("dead", "is no stream")
        times = [("tick", 8.5), ("tick", 19.5), ("other", 23)]
        add(broker, [{"stream": stream, "x": 1, "t": at} for stream, at in times])
        wait_for(lambda: one.process.poll() is not None, what=one.text)
        broker.client.delete("dead")
        one.start()
        wait_for(lambda: broker.client.xlen("dead") == 1, what=one.text)
    assert [message["t"] for message in dead(broker)] == [8.5]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_shuffled_messages_are_the_offline_fold_whatever_is_killed(
    service: ServiceProcess, broker: RedisBroker, tmp_path: Path
) -> None:
    rng = random.Random(3)
    messages: list[dict[str, Any]] = [
        {"stream": f"kill.{rng.randrange(20)}", "x": i, "t": 1000 + i / 40} for i in range(1500)
    ]
    order = sorted(messages, key=lambda one: one["t"] + (rng.random() * 4.9 if rng.random() > 0.01 else 20))
    for place in rng.sample(range(len(order)), 30):
        order.insert(place + rng.randrange(5), order[place])
    with connector(tmp_path, *flags(service, broker, "--order", "5s", "--idle", "1s")) as one:

        def kill(victim: ConnectorProcess) -> None:
            victim.kill()
            victim.start()

        def n_open() -> int:
            groups = broker.client.xinfo_groups("in")
            return int(groups[0]["pending"] + (groups[0]["lag"] or 0)) if groups else len(order)

        parts = [order[i : i + 500] for i in range(0, 1530, 500)]
        add(broker, parts[0])
        for part in parts[1:]:
            wait_for(lambda: n_open() < 900, what=one.text)
            kill(one)
            add(broker, part)
        wait_for(lambda: n_open() == 0, what=one.text)
    check_order(broker, order)


def check_order(broker: RedisBroker, messages: list[dict[str, Any]]) -> None:
    """Check that each message was applied in the order of times or is a dead letter, and that none is both."""
    late = {one["x"] for one in dead(broker)}
    entries = broker.entries("out")
    for stream in {one["stream"] for one in messages}:
        own = [one for one in messages if one["stream"] == stream]
        found = [(one["source"]["at"], one["outputs"]["y"][0]) for one in entries if one["stream"] == stream]
        at = [time for time, _ in found]
        assert at == sorted(set(at))
        applied = {round(one["t"] * 1e6): one["x"] for one in own if round(one["t"] * 1e6) in set(at)}
        assert [y for _, y in found] == fold_reference(applied[time] for time in at)
        assert {one["x"] for one in own} - set(applied.values()) <= late
        assert not [one for one in own if one["x"] in late & set(applied.values()) and own.count(one) == 1]
