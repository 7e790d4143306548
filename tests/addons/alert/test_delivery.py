"""Delivery of alarms: a receiver that is away, one that refuses, and brokers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import redis

from tests.addons.alert.alerts import SECRET, WebhookReceiver, alerting, webhook
from tests.addons.connect.connectors import wait_for
from tests.processes import ServiceProcess, free_port
from tests.servers import server

STREAMS = 20


def rules_of(service: ServiceProcess, name: str, *targets: str) -> str:
    rule = f'[[rule]]\nname = "high"\nmodel = "lstm"\nprefix = "{name}."\nwhen = "outputs.y[0] > 0.1"\n'
    return f'url = "{service.url}"\ngroup = "{name}"\n{rule}' + "\n".join(f"[[to]]\n{one}" for one in targets)


def hook(receiver: WebhookReceiver) -> str:
    return f'webhook = "{receiver.url}"\nsecret = "{SECRET}"'


def step_all(service: ServiceProcess, name: str, n: int, seed: int) -> int:
    """Step streams with random inputs; returns how many alarms their outputs have raised or cleared."""
    streams = [f"{name}.{i}" for i in range(STREAMS)]
    xs = np.random.default_rng(seed).normal(size=(STREAMS, n, 4))
    body = {"streams": streams, "inputs": {"x": xs.tolist()}}
    answer = httpx2.post(f"{service.url}/v1/models/lstm/steps", json=body, timeout=60).json()
    high = np.array(answer["outputs"]["y"])[:, :, 0] > 0.1
    return int(np.count_nonzero(high[:, 1:] != high[:, :-1]) + np.count_nonzero(high[:, 0]))


def in_order(by_stream: dict[str, list[tuple[str, int]]]) -> bool:
    """Whether the alarms of each stream are in the order of its steps, raised and cleared in turn."""
    return all(
        [step for _, step in alarms] == sorted(step for _, step in alarms)
        and [state for state, _ in alarms] == [("raised", "cleared")[i % 2] for i in range(len(alarms))]
        for alarms in by_stream.values()
    )


def test_a_receiver_that_was_down_gets_every_alarm_in_order(service: ServiceProcess, tmp_path: Path) -> None:
    """It refuses connections, then answers 500 and 400; the process is killed meanwhile, and another continues."""
    with webhook() as receiver:
        rules = rules_of(service, "down", hook(receiver))
        receiver.stop()
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data", processes=2) as two:
            wait_for(lambda: any(one.leads for one in two))
            total = step_all(service, "down", 40, 1)
            wait_for(lambda: any("does not accept" in one.text() for one in two))
            receiver.refusing = 500
            receiver.start()
            wait_for(lambda: receiver.n_refused > 0)
            leader = next(one for one in two if "does not accept" in one.text())
            leader.kill()
            receiver.refusing, receiver.n_refused = 400, 0
            wait_for(lambda: receiver.n_refused > 0)
            receiver.refusing = 0
            wait_for(lambda: len(receiver.alarms()) >= total, what=lambda: (len(receiver.alarms()), total))

    assert total > STREAMS
    assert len(receiver.alarms()) == total
    assert in_order(receiver.by_stream())
    assert receiver.unsigned == 0


def test_a_redis_stream_and_a_file_get_each_alarm_once(
    service: ServiceProcess, tmp_path: Path, short_path: Path
) -> None:
    out, port = tmp_path / "alarms.jsonl", free_port()
    redis_url = f"redis://127.0.0.1:{port}/0"
    rules = rules_of(service, "file", f'url = "file://{out}"', f'url = "{redis_url}?stream=alarms"')
    with (
        server(short_path / "broker", "--port", str(port)),
        redis.Redis.from_url(redis_url) as log,
        alerting(tmp_path, rules, "--data-dir", service.folder / "data") as [process],
    ):
        wait_for(lambda: process.leads, what=process.text)
        total = step_all(service, "file", 20, 2)
        wait_for(lambda: out.exists() and len(out.read_text().splitlines()) >= total)
        wait_for(lambda: int(str(log.xlen("alarms"))) >= total)
        in_redis: Any = log.xrange("alarms")

    alarms = [json.loads(line) for line in out.read_text().splitlines()]
    entries = [fields[b"id"].decode() for _, fields in in_redis]
    assert len({alarm["id"] for alarm in alarms}) == len(alarms) == total
    assert sorted(entries) == sorted(alarm["id"] for alarm in alarms)


def test_a_target_that_cannot_be_written_stops_no_other_one(service: ServiceProcess, tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    with webhook() as receiver:
        rules = rules_of(service, "wrong", f'url = "file://{folder}/alarms.jsonl"', hook(receiver))
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data") as [one]:
            wait_for(lambda: one.leads, what=one.text)
            total = step_all(service, "wrong", 20, 5)
            wait_for(lambda: len(receiver.alarms()) >= total and "cannot be written" in one.text(), what=one.text)
            folder.mkdir()
            file = folder / "alarms.jsonl"
            wait_for(lambda: file.exists() and len(file.read_text().splitlines()) == total, what=one.text)

    written = {json.loads(line)["id"] for line in file.read_text().splitlines()}
    assert written == {alarm["id"] for alarm in receiver.alarms()}


def test_sigterm_hands_over_at_once(service: ServiceProcess, tmp_path: Path) -> None:
    """The process writes what it has, exits with 0, and the other one continues."""
    with webhook() as receiver:
        rules = rules_of(service, "over", hook(receiver))
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data", "--json", processes=2) as two:
            wait_for(lambda: any(one.leads for one in two))
            first = next(one for one in two if one.leads)
            [second] = [one for one in two if one is not first]
            wait_for(lambda: "standing by" in second.text())
            total = step_all(service, "over", 10, 3)
            wait_for(lambda: len(receiver.alarms()) >= total)
            assert first.stop() == 0
            wait_for(lambda: second.leads)
            total += step_all(service, "over.b", 10, 4)
            wait_for(lambda: len(receiver.alarms()) >= total, what=lambda: (len(receiver.alarms()), total))

        counts = json.loads([line for line in first.text().splitlines() if line.startswith("{")][-1])
        assert counts["ended"]
        assert counts["leads"] is False
    assert len(receiver.accepted) == len(receiver.alarms()) == total
