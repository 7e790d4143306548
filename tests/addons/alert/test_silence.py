"""Silence, expiry and deletion of streams, while processes are killed."""

from __future__ import annotations

import itertools
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.addons.alert.alerts import AlertProcess, alarmed, alerting, rules_to, step_streams, webhook
from tests.addons.connect.connectors import wait_for
from tests.processes import ServiceProcess, service_process

N = 100
SILENT_S = 6.0


@pytest.fixture
def short_lived(models: Path) -> Iterator[ServiceProcess]:
    """A service whose streams expire 4 to 5 s after their last step."""
    with (
        tempfile.TemporaryDirectory(prefix="sw") as name,
        service_process(models, Path(name) / "s", "--drain-s", "0", "--history", "16", "--stream-ttl-s", "4") as one,
    ):
        yield one


def step(http: httpx2.Client, streams: list[str]) -> None:
    step_streams(http, "lstm", streams, {"x": [[0.1, 0.2, 0.3, 0.4]] * len(streams)})


def leading(processes: list[AlertProcess]) -> list[AlertProcess]:
    """Return the processes that evaluate the rules."""
    return [one for one in processes if one.leads]


@pytest.mark.slow
def test_every_silent_stream_raises_one_alarm_while_the_leading_process_is_killed(
    service: ServiceProcess, tmp_path: Path
) -> None:
    streams = [f"s.{i}" for i in range(N)]
    rng = random.Random(3)
    alive = list(streams)
    rng.shuffle(alive)
    times: list[tuple[float, float]] = []  # of each step, before and after it
    last: dict[str, int] = {}  # the last step of each stream
    pace = threading.Event()  # never set
    rule = f'name = "quiet"\nmodel = "lstm"\nprefix = "s."\nsilent_s = {SILENT_S}'
    with alarmed(service, tmp_path, rule, processes=2) as (receiver, two, http):
        wait_for(lambda: len(leading(two)) == 1)
        kill_at = [2 * N // 3, N // 3]
        while alive:  # each stream falls silent at a random time
            before = time.time()
            step(http, alive)
            times.append((before, time.time()))
            last |= dict.fromkeys(alive, len(times))
            alive = alive[rng.randrange(0, 4) :]
            leaders = leading(two)
            if kill_at and len(alive) <= kill_at[0] and leaders:
                kill_at.pop(0)
                leaders[0].kill()
                leaders[0].start()
            pace.wait(0.1)

        def at_the_end(state: str, after: int) -> set[str]:
            alarms = receiver.alarms(state=state)
            return {one["stream"] for one in alarms if one["step"] == last[one["stream"]] + after}

        wait_for(lambda: len(at_the_end("raised", 0)) == N, what=lambda: len(receiver.alarms()))
        step(http, streams)
        wait_for(lambda: len(at_the_end("cleared", 1)) == N, what=lambda: len(receiver.alarms()))

    # A machine may be so busy that all streams are silent for so long between two steps
    pauses = [after - before for (before, _), (_, after) in itertools.pairwise(times)]
    paused = {number for number, pause in enumerate(pauses, 1) if pause > SILENT_S - 0.5}
    for stream, found in receiver.by_stream().items():
        alarms = [one for one in found if one != ("raised", last[stream] + 1)]  # silent again, after the end
        raised = sorted({number for state, number in alarms if state == "raised"})
        assert alarms == [one for number in raised for one in (("raised", number), ("cleared", number + 1))]
        assert set(raised) <= paused | {last[stream]}
    for alarm in receiver.alarms(state="raised"):
        if alarm["step"] <= last[alarm["stream"]]:
            assert alarm["at"] >= times[alarm["step"] - 1][0] + SILENT_S - 1
    assert receiver.unsigned == 0


def test_a_stream_of_which_every_timestep_is_refused_falls_silent(service: ServiceProcess, tmp_path: Path) -> None:
    rule = 'name = "refused"\nmodel = "lstm"\nprefix = "refused."\nsilent_s = 2'
    with alarmed(service, tmp_path, rule) as (receiver, _, http):
        step(http, ["refused.1"])

        def is_raised() -> bool:
            response = http.post("/v1/models/lstm/streams/refused.1/step", json={"inputs": {"x": [0.1, 0.2]}})
            assert response.json()["code"] == "bad_input"
            return bool(receiver.alarms(state="raised"))

        wait_for(is_raised)
        step(http, ["refused.1"])
        wait_for(lambda: len(receiver.alarms()) == 2, what=receiver.alarms)

    assert receiver.by_stream() == {"refused.1": [("raised", 1), ("cleared", 2)]}


@pytest.mark.slow
def test_an_expired_stream_raises_an_alarm_and_a_deleted_one_does_not(
    short_lived: ServiceProcess, tmp_path: Path
) -> None:
    rule = 'name = "gone"\nmodel = "lstm"\nexpired = true\nwhen = "outputs.y[0] > -100"'
    with alarmed(short_lived, tmp_path, rule) as (receiver, processes, http):
        wait_for(lambda: len(leading(processes)) == 1)
        step(http, ["kept", "deleted", "back"])
        wait_for(lambda: len(receiver.alarms(kind="when", state="raised")) == 3)
        http.delete("/v1/models/lstm/streams/deleted")
        wait_for(lambda: len(receiver.alarms(kind="expired")) == 2, what=receiver.alarms)
        step(http, ["back"])
        wait_for(lambda: len(receiver.alarms(kind="expired", state="cleared")) == 1, what=receiver.alarms)
        wait_for(lambda: len(receiver.alarms(kind="when", state="cleared")) >= 3, what=receiver.alarms)

    assert set(receiver.by_stream(kind="expired", state="raised")) == {"kept", "back"}
    assert receiver.by_stream(kind="when")["deleted"] == [("raised", 1), ("cleared", 1)]


@pytest.mark.slow
def test_streams_that_fell_silent_while_no_process_ran_raise_alarms_at_the_start(
    service: ServiceProcess, tmp_path: Path
) -> None:
    rule = 'name = "quiet"\nmodel = "two_inputs"\nsilent_s = 1\nprefix = "o."'
    one = {"a": [1, 2], "b": 3}
    with webhook() as receiver, httpx2.Client(base_url=service.url, timeout=60) as http:
        http.post("/v1/models/two_inputs/streams/o.before/step", json={"inputs": one}).raise_for_status()
        rules = rules_to(service, receiver, rule)
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data"):
            wait_for(lambda: len(receiver.alarms()) == 1, what=receiver.alarms)
        http.post("/v1/models/two_inputs/streams/o.away/step", json={"inputs": one}).raise_for_status()
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data"):
            wait_for(lambda: len(receiver.alarms()) == 2, what=receiver.alarms)
        listed = http.get("/v1/alerts?model=two_inputs").json()["alerts"]

    assert [(alarm["stream"], alarm["step"], alarm["kind"]) for alarm in receiver.alarms()] == [
        ("o.before", 1, "silent"),
        ("o.away", 1, "silent"),
    ]
    assert receiver.alarms()[0]["outputs"] == {"total": [4, 5], "last": 3}
    assert sorted(alarm["id"] for alarm in listed) == sorted(alarm["id"] for alarm in receiver.alarms())
