"""What `stepwell alert` refuses and shows, and the route that lists raised alarms."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import numpy as np
import pytest

from stepwell.addons.alert.conditions import ConditionError, TensorRow, parse_condition
from stepwell.addons.alert.rules import read_rules
from stepwell.errors import SettingsError
from tests.addons.alert.alerts import AlertProcess, alerting, step_streams, write_rules
from tests.addons.connect.connectors import wait_for
from tests.processes import ServiceProcess
from tests.servers import Server

GOOD = '[[rule]]\nname = "a"\nmodel = "lstm"\nwhen = "outputs.y[0] > 1"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            GOOD + "for_step = 2\n",
            "line 5: for_step of [[rule]]: unknown key; expected one of name, model, prefix, when",
        ),
        (GOOD + "for_steps = 0\n", "line 5: for_steps of [[rule]]"),
        (GOOD + "clear_for_steps = 0\n", "line 5: clear_for_steps of [[rule]]"),
        (GOOD.replace("> 1", ">> 1"), "line 4: when of [[rule]]"),
        (GOOD + 'clear = "outputs"\n', "line 5: clear of [[rule]]"),
        (GOOD.replace("> 1", "> inputs.x[0]") + "clear = 3\n", "line 5: clear of [[rule]]: a number needs a `when`"),
        (GOOD + "silent_s = -1\n", "line 5: silent_s of [[rule]]"),
        (GOOD + "silent_s = inf\n", "line 5: silent_s of [[rule]]"),
        (GOOD + 'prefix = "a/b"\n', "line 5: prefix of [[rule]]"),
        ('[[rule]]\nname = "a"\nmodel = "m"\n', "never raises an alarm"),
        (GOOD + "refused = 0\n", "line 5: refused of [[rule]]"),
        ('[[rule]]\nname = "a"\nmodel = "m"\nsilent_s = 1\nfor_steps = 2\n', "line 5: for_steps"),
        (GOOD + GOOD, "line 6: name of [[rule]]: the name 'a' is used twice"),
        (GOOD + "[[to]]\nsecret = 's'\n", "line 5: webhook of [[to]]: found neither"),
        (GOOD + "[[to]]\nwebhook = 'ftp://x'\n", "line 6: webhook of [[to]]"),
        (GOOD + "[[to]]\nwebhook = 'http://[::1'\n", "line 6: webhook of [[to]]"),
        (GOOD + "[[to]]\nwebhook = 'http://x:99999/'\n", "line 6: webhook of [[to]]"),
        (GOOD + '[[to]]\nwebhook = "http://x/\\n"\n', "line 6: webhook of [[to]]"),
        (GOOD + "[[to]]\nurl = 'file:///x'\nsecret = 's'\n", "found a secret"),
        (GOOD + "[[to]]\nwebhook = 'http://x/'\nsecret_env = 'NOT_THERE'\n", "NOT_THERE"),
        ("key_env = 'NOT_THERE'\n" + GOOD, "NOT_THERE"),
        ("", "`rule`"),
    ],
)
def test_a_bad_rule_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = write_rules(tmp_path, text)

    with pytest.raises(SettingsError) as caught:
        read_rules(file, env={})

    assert said in caught.value.problem
    assert str(file) in caught.value.problem


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "outputs.y[0]",
        "(lambda: 1)() > 0",
        "outputs.__class__[0] > 0 > open",
        "y > 1",
        "outputs.y[0] is 1",
        "outputs.y[0] > 'a'",
        "outputs.y[0.5] > 1",
        "max(outputs.y[0], 2) > 1",
        "1 +",
        "(" * 300 + "1 > 0" + ")" * 300,
        "outputs.y[0] > 1 " * 100,
    ],
)
def test_what_is_not_a_condition_is_refused(text: str) -> None:
    with pytest.raises(ConditionError):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("outputs.y[0] > 0.5", [False, True, False]),
        ("outputs.y[0] > 0.5 or outputs.y[1] == 3", [True, True, False]),
        ("not outputs.y[0] > 0.5", [True, False, True]),
        ("0 < outputs.y[0] < 1", [False, True, False]),
        ("abs(outputs.y[0]) >= 2 and inputs.x > 10", [False, False, True]),
        ("outputs.y[0] * 2 + 1 == outputs.y[-1] / 1 - 0", [False, False, True]),
        ('min(outputs["y"]) < -1', [False, False, True]),
        ("max(outputs.y) > 2.5", [True, False, False]),
        ("isnan(outputs.z)", [False, True, False]),
        (f"outputs.y[0] < {10**400}", [True, True, True]),
        ("outputs.z != outputs.z or inputs.x < 10", [True, True, False]),
    ],
)
def test_conditions_are_evaluated_by_timestep(text: str, expected: list[bool]) -> None:
    tensors = {
        "outputs": {"y": np.array([[-1, 3], [0.75, 0.2], [-2, -3]], np.float32), "z": np.array([1, np.nan, 2])},
        "inputs": {"x": np.array([5, 6, 20], np.uint8)},
    }

    assert parse_condition(text).evaluate(tensors, 3).tolist() == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "outputs.y[7] > 0",
            "outputs.y[7] has the index 7 on axis 0; a timestep of y has the shape [3], so give 0 to 2",
        ),
        ("outputs.y[-4] > 0", "outputs.y[-4] has the index -4 on axis 0"),
        ("outputs.y[0][1] > 0", "outputs.y[0][1] has 2 indices; a timestep of y has the shape [3], so give 1"),
        (
            "outputs.y > 0",
            "outputs.y is not one number: a timestep of y has the shape [3]; give an index for each axis",
        ),
        ("outputs.y[torque] > 0", "outputs.y[torque] names the label 'torque'; the labels of y are low, mid, rpm 2"),
    ],
)
def test_an_index_that_does_not_fit_is_reported_with_those_that_do(text: str, reason: str) -> None:
    with pytest.raises(ConditionError) as found:
        parse_condition(text).of_model({"outputs": {"y": TensorRow([3], ["low", "mid", "rpm 2"])}, "inputs": {}})

    assert str(found.value).startswith(reason)


@pytest.mark.parametrize("text", ["outputs.y[mid] > 0.5", "outputs.y['rpm 2'] > 2", "max(outputs.grid[d]) > 3"])
def test_a_label_is_the_index_of_its_number(text: str) -> None:
    rows = {"y": TensorRow([3], ["low", "mid", "rpm 2"]), "grid": TensorRow([2, 2], ["a", "b", "c", "d"])}
    condition = parse_condition(text).of_model({"outputs": rows, "inputs": {}})
    values = {"y": np.array([[9, 0.25, 1], [0, 0.75, 3]]), "grid": np.array([[[9, 9], [9, 1]], [[0, 0], [0, 4]]])}

    assert condition.evaluate({"outputs": values, "inputs": {}}, 2).tolist() == [False, True]


def run(folder: Path, rules: str, *words: object) -> tuple[int, str]:
    """Run the command to its end; returns its exit code and what it has written."""
    one = AlertProcess(folder, write_rules(folder, rules), *words).start()
    return one.process.wait(100), one.text()


@pytest.mark.parametrize(
    ("rule", "said", "code"),
    [
        (GOOD.replace("lstm", "fold"), "--history fold=N", 3),
        (GOOD.replace("y[0]", "z[0]"), "the model's outputs are y", 2),
        (GOOD.replace("y[0]", "y[7]"), "the shape [2]", 2),
        (GOOD.replace("lstm", "nope"), "nope", 1),
    ],
)
def test_a_rule_that_does_not_fit_its_model_is_refused(
    service: ServiceProcess, tmp_path: Path, rule: str, said: str, code: int
) -> None:
    found, text = run(tmp_path, f'url = "{service.url}"\n{rule}', "--data-dir", service.folder / "data")

    assert said in text
    assert found == code
    assert "Traceback" not in text


def test_a_store_that_no_service_uses_is_refused(service: ServiceProcess, tmp_path: Path, redis_server: Server) -> None:
    rules = f'url = "{service.url}"\n{GOOD}'
    other, why_other = run(tmp_path, f'store = "{redis_server.url}"\n{rules}')
    away, why_away = run(tmp_path, rules, "--data-dir", tmp_path / "empty")

    assert (other, away) == (3, 3)
    assert "No service uses the store" in why_other
    assert "does not reply" in why_away


def test_check_shows_what_the_rules_would_have_raised(service: ServiceProcess, tmp_path: Path) -> None:
    body = {"streams": ["c.1", "c.2"], "inputs": {"a": [[[1, 1], [9, 9]], [[0, 0], [0, 0]]], "b": [[1, 1], [1, 1]]}}
    httpx2.post(f"{service.url}/v1/models/two_inputs/steps", json=body, timeout=30).raise_for_status()
    rule = '[[rule]]\nname = "sum"\nmodel = "two_inputs"\nprefix = "c."\nwhen = "outputs.total[0] > 5"\n'
    words = (f'url = "{service.url}"\n{rule}', "--data-dir", service.folder / "data", "--check")

    _, shown = run(tmp_path, *words, "--json")
    _, printed = run(tmp_path, *words)

    [row] = [json.loads(line) for line in shown.splitlines()]
    alarm = {"state": "raised", "kind": "when", "stream": "c.1", "step": 2, "outputs": {"total": [12, 12], "last": 1}}
    assert row == {"rule": "sum", "model": "two_inputs", "streams": 2, "timesteps": 4, "alarms": [alarm]}
    assert "raised (when): c.1, step 2" in printed
    assert httpx2.get(f"{service.url}/v1/alerts?model=two_inputs", timeout=30).json()["alerts"] == []


def test_raised_alarms_are_listed_page_by_page(service: ServiceProcess, tmp_path: Path) -> None:
    streams = [f"p.{i}" for i in range(7)]
    rule = '[[rule]]\nname = "all"\nmodel = "lstm"\nprefix = "p."\nwhen = "outputs.y[0] > -100"\n'
    rules = f'url = "{service.url}"\ngroup = "pages"\n{rule}'
    with (
        alerting(tmp_path, rules, "--data-dir", service.folder / "data") as [process],
        httpx2.Client(base_url=service.url, timeout=60) as http,
    ):
        wait_for(lambda: process.leads, what=process.text)
        step_streams(http, "lstm", streams, {"x": [[0.0, 0.0, 0.0, 0.0]] * 7})
        wait_for(lambda: len(http.get("/v1/alerts?model=lstm").json()["alerts"]) >= 7, what=process.text)

        found, cursor = [], ""
        while cursor is not None:
            page = http.get("/v1/alerts", params={"model": "lstm", "limit": 3, "cursor": cursor}).json()
            assert len(page["alerts"]) == 3 or page["cursor"] is None
            found += [alarm["stream"] for alarm in page["alerts"] if alarm["rule"] == "all"]
            cursor = page["cursor"]
        bad = [http.get(path) for path in ("/v1/alerts?limit=0", "/v1/alerts?cursor=%7E")]

    assert found == streams
    assert [(one.status_code, one.json()["code"]) for one in bad] == [(400, "bad_request")] * 2


def test_metrics_are_served(service: ServiceProcess, tmp_path: Path) -> None:
    rules = f'url = "{service.url}"\ngroup = "metrics"\n{GOOD}'
    with alerting(tmp_path, rules, "--data-dir", service.folder / "data", "--metrics-port", 0) as [process]:
        wait_for(lambda: process.leads, what=process.text)
        [address] = [line.partition(" ")[2] for line in process.text().splitlines() if line.startswith("metrics:")]
        assert "stepwell_alert_leads 1.0" in httpx2.get(address, timeout=30).text
