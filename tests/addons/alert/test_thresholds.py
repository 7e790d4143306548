"""Conditions on outputs and inputs, with real processes: what is raised equals an offline computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt

from tests.addons.alert.alerts import alerting, expected_thresholds, rules_to, webhook
from tests.addons.connect.connectors import wait_for
from tests.processes import ServiceProcess


def send(service: ServiceProcess, prefix: str, xs: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Step streams, `(streams, steps, features)`, in chunks of different lengths; returns their outputs."""
    names = [f"{prefix}{i}" for i in range(len(xs))]
    outputs, at, rng = [], 0, np.random.default_rng(5)
    with httpx2.Client(base_url=service.url, timeout=60) as http:
        while at < xs.shape[1]:
            n = int(rng.integers(1, 6))
            part = xs[:, at : at + n].tolist()
            body = {"streams": names, "inputs": {"x": [one[0] for one in part] if n == 1 else part}}
            answer = http.post(f"/v1/models/lstm/{'step' if n == 1 else 'steps'}", json=body).json()
            assert not answer.get("errors")
            found = np.array(answer["outputs"]["y"])
            outputs.append(found[:, None] if n == 1 else found)
            at += n
    return np.concatenate(outputs, axis=1)


def test_thresholds_equal_an_offline_computation(service: ServiceProcess, tmp_path: Path) -> None:
    """Hysteresis, `for_steps` and `clear_for_steps`, over chunks of any length, with the process killed in between."""
    xs = np.random.default_rng(1).normal(size=(12, 120, 4)).astype(np.float32)
    with webhook() as receiver:
        rules = rules_to(
            service,
            receiver,
            'name = "high"\nmodel = "lstm"\nprefix = "t."\nwhen = "outputs.y[0] > 0.1"\nfor_steps = 2\nclear = 0.0\n'
            "clear_for_steps = 2",
            'name = "odd"\nmodel = "lstm"\nprefix = "t."\n'
            'when = "abs(outputs.y[1] - outputs.y[0]) > 0.3 and not inputs.x[0] < 0"\n'
            'clear = "inputs.x[2] > 0.5"\nseverity = "critical"',
        )
        with alerting(tmp_path, rules, "--data-dir", service.folder / "data") as [process]:
            wait_for(lambda: process.leads, what=process.text)
            first = send(service, "t.", xs[:, :50])
            process.kill()
            second = send(service, "t.", xs[:, 50:100])
            process.start()
            third = send(service, "t.", xs[:, 100:])
            y = np.concatenate([first, second, third], axis=1)
            high = {f"t.{i}": expected_thresholds(y[i, :, 0] > 0.1, y[i, :, 0] < 0.0, 2, 2) for i in range(12)}
            odd = {
                f"t.{i}": expected_thresholds(
                    (abs(y[i, :, 1] - y[i, :, 0]) > 0.3) & ~(xs[i, :, 0] < 0), xs[i, :, 2] > 0.5, 1
                )
                for i in range(12)
            }
            total = sum(map(len, [*high.values(), *odd.values()]))
            wait_for(lambda: len(receiver.alarms()) >= total, what=lambda: (len(receiver.alarms()), total))

    assert sum(map(len, high.values())) > 20
    assert receiver.by_stream(rule="high") == {stream: alarms for stream, alarms in high.items() if alarms}
    assert receiver.by_stream(rule="odd") == {stream: alarms for stream, alarms in odd.items() if alarms}
    severities = {(alarm["rule"], alarm.get("severity")) for alarm in receiver.alarms()}
    assert severities == {("high", None), ("odd", "critical")}
    assert receiver.unsigned == 0
