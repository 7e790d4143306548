"""`refused`: alarms about timesteps that the service has refused, whatever they came through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from websockets.sync.client import connect

from tests.addons.alert.alerts import AlertProcess, alarmed, step_streams
from tests.addons.connect.connectors import wait_for
from tests.processes import ServiceProcess

GOOD = [0.1, 0.2, 0.3, 0.4]
SHORT = {"inputs": {"x": [0.1, 0.2]}}
NAN = '{"inputs": {"x": [NaN, 0.2, 0.3, 0.4]}}'


def rule(prefix: str, refused: int) -> str:
    return f'name = "bad data"\nmodel = "lstm"\nprefix = "{prefix}"\nrefused = {refused}\n'


def leads(process: AlertProcess) -> Callable[[], bool]:
    return lambda: process.leads


def step(http: httpx2.Client, stream: str) -> None:
    step_streams(http, "lstm", [stream], {"x": [GOOD]})


def refuse_in_json(http: httpx2.Client, stream: str) -> str:
    response = http.post(f"/v1/models/lstm/streams/{stream}/step", json=SHORT)
    return str(response.json()["code"])


def refuse_nan(http: httpx2.Client, stream: str) -> str:
    headers = {"content-type": "application/json"}
    return str(http.post(f"/v1/models/lstm/streams/{stream}/step", content=NAN, headers=headers).json()["code"])


def refuse_a_chunk(http: httpx2.Client, stream: str) -> str:
    body = {"inputs": {"x": [GOOD, GOOD[:3]]}}
    return str(http.post(f"/v1/models/lstm/streams/{stream}/steps", json=body).json()["code"])


def refuse_in_columns(http: httpx2.Client, stream: str) -> str:
    body = json.dumps({"streams": ["other", stream], "inputs": {"x": [GOOD, ["too large", 0.1, 0.2, 0.3]]}})
    content = body.replace('"too large"', "1e999")
    response = http.post("/v1/models/lstm/step", content=content, headers={"content-type": "application/json"})
    return str(response.json()["errors"]["1"]["code"])


def refuse_in_a_feed(http: httpx2.Client, stream: str) -> str:
    with connect(f"ws{str(http.base_url)[4:]}/v1/models/lstm/feed") as socket:
        socket.send(json.dumps({"stream": stream, **SHORT}))
        return str(json.loads(socket.recv())["error"]["code"])


def test_a_refused_timestep_raises_an_alarm_that_the_next_applied_one_clears(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """Whichever way it came."""
    ways = (refuse_in_json, refuse_nan, refuse_a_chunk, refuse_in_columns, refuse_in_a_feed)
    refusals = {f"r.{refuse.__name__}": refuse for refuse in ways}
    with alarmed(service, tmp_path, rule("r.", 1)) as (receiver, [process], http):
        for stream in refusals:
            step(http, stream)
        wait_for(leads(process), what=process.text)
        codes = {stream: refuse(http, stream) for stream, refuse in refusals.items()}
        wait_for(lambda: len(receiver.alarms()) == len(ways), what=process.text)
        listed = http.get("/v1/alerts?model=lstm").json()["alerts"]
        for stream in refusals:
            step(http, stream)
        wait_for(lambda: len(receiver.alarms()) == 2 * len(ways), what=process.text)

    raised = {alarm["stream"]: alarm for alarm in receiver.alarms(state="raised")}
    cleared = {alarm["stream"]: alarm for alarm in receiver.alarms(state="cleared")}
    assert {stream: (one["kind"], one["step"], one["code"]) for stream, one in raised.items()} == {
        stream: ("refused", 1, code) for stream, code in codes.items()
    }
    assert set(codes.values()) <= {"bad_input", "non_finite", "bad_json"}
    assert {stream: (one["step"], one["clears"]) for stream, one in cleared.items()} == {
        stream: (2, one["id"]) for stream, one in raised.items()
    }
    assert {one["stream"]: one for one in listed if one["stream"] in refusals} == raised


def test_timesteps_that_are_refused_while_no_process_runs_are_counted_by_the_next_one(
    service: ServiceProcess, tmp_path: Path
) -> None:
    with alarmed(service, tmp_path, rule("away.", 3)) as (receiver, [process], http):
        for stream in ("away.1", "away.2"):
            step(http, stream)
        wait_for(leads(process), what=process.text)
        process.kill()
        for stream, n in (("away.1", 3), ("away.2", 2)):
            for _ in range(n):
                refuse_in_json(http, stream)
        process.start()
        wait_for(lambda: len(receiver.alarms()) == 1, what=process.text)
        process.kill()
        process.start()
        wait_for(leads(process), what=process.text)
        refuse_nan(http, "away.2")
        wait_for(lambda: len(receiver.alarms()) == 2, what=process.text)

    assert receiver.by_stream() == {"away.1": [("raised", 1)], "away.2": [("raised", 1)]}
    assert [alarm["code"] for alarm in receiver.alarms()] == ["bad_input", "non_finite"]


def test_an_applied_timestep_ends_the_row_of_refused_ones(service: ServiceProcess, tmp_path: Path) -> None:
    rule_of_when = 'name = "seen"\nmodel = "lstm"\nprefix = "row."\nwhen = "outputs.y[0] > -100"\n'
    with alarmed(service, tmp_path, rule("row.", 2), rule_of_when) as (receiver, [process], http):
        step(http, "row.1")
        wait_for(leads(process), what=process.text)
        refuse_in_json(http, "row.1")
        step(http, "row.1")

        def marks(n: int) -> list[dict[str, Any]]:
            step(http, f"row.mark{n}")
            wait_for(lambda: any(one["stream"] == f"row.mark{n}" for one in receiver.alarms()), what=process.text)
            return receiver.alarms(kind="refused")

        assert marks(1) == []
        refuse_in_json(http, "row.1")
        refuse_in_json(http, "row.1")
        wait_for(lambda: bool(receiver.alarms(kind="refused")), what=process.text)

    assert receiver.by_stream(kind="refused") == {"row.1": [("raised", 2)]}
