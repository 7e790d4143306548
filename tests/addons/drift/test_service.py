"""Drift of a running service: what is counted, where, and how it compares with the same computed offline."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from stepwell.addons.drift.addon import Drift
from stepwell.addons.drift.monitor import DriftMonitor
from stepwell.addons.drift.sketch import ERROR
from stepwell_export.runtime.psi import FLOOR, MIN_VALUES, quantile_keys
from tests.addons.drift.live import (
    WITHIN_S,
    counted,
    drift,
    features,
    normal,
    referenced,
    step_all,
    write_reference_model,
)
from tests.addons.releases.fleet import wait_until
from tests.api.running import Service, running_service
from tests.graphs import last_seen, lstm, write_model
from tests.servers import Server

Array = npt.NDArray[Any]

MODELS = ("offline", "shifted", "roads", "uncounted", "replicas", "priming", "metrics", "empty", "few")
DATA = normal(40, 50, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_reference_model(folder, name, DATA)
    write_model(folder, "last_seen_drift", last_seen)
    write_model(folder, "plain", lambda: lstm(6))
    write_model(folder, "versions", lambda: lstm(6), version=1)
    for version in (1, 2):
        write_reference_model(folder, "paired", DATA + version, version=version)
    write_model(folder, "versions", lambda: referenced(lambda: lstm(6, seed=5), DATA), version=2)
    return folder


@pytest.fixture(scope="module")
def service(shared_redis: Server, folder: Path) -> Iterator[Service]:
    with running_service(shared_redis.url, folder) as one:
        yield one


def names(n: int) -> list[str]:
    return [f"s{i}" for i in range(n)]


def offline_psi(reference: Array, values: Array) -> float:
    """The PSI as the page on drift defines it, from all values, `(n,)` each."""
    deciles = np.quantile(reference, np.arange(1, 10) / 10, method="inverted_cdf")
    bins = [-np.inf, *deciles, np.inf]
    e, f = (
        np.array([np.mean((of > low) & (of <= high)) for low, high in itertools.pairwise(bins)])
        for of in (reference, values)
    )
    e, f = np.maximum(e, FLOOR), np.maximum(f, FLOOR)
    return float(np.sum((f - e) * np.log(f / e)))


def test_counts_range_quantiles_and_psi_are_those_of_an_offline_computation(service: Service) -> None:
    xs = np.exp(normal(20, 30, 6, seed=1)) - 1  # some negative, skewed
    outputs = np.array(step_all(service, "offline", names(20), xs)["outputs"]["y"])
    found = counted(service, "offline", 600)

    assert set(found) == {*(f"x[{i}]" for i in range(6)), "y[0]", "y[1]"}
    for name, reference, sent in (
        *((f"x[{i}]", DATA[:, :, i].ravel(), xs[:, :, i].ravel()) for i in range(6)),
        *((f"y[{i}]", None, outputs[:, :, i].ravel()) for i in range(2)),
    ):
        values = sent.astype(np.float32).astype(np.float64)
        median = 0.0 if reference is None else float(np.quantile(reference, 0.5, method="inverted_cdf"))
        one = found[name]
        assert (one["count"], one["missing"]) == (600, 0)
        assert (one["min"], one["max"]) == (np.min(values), np.max(values))
        for key, q in quantile_keys().items():
            exact = float(np.quantile(values, q, method="inverted_cdf"))
            assert one["quantiles"][key] == pytest.approx(exact, abs=ERROR * (abs(exact - median) + 0.5))
        if reference is not None:
            assert one["psi_all"] == pytest.approx(offline_psi(reference, values), rel=1e-9)
            outside = np.mean((values < reference.min()) | (values > reference.max()))
            assert one["outside"] == pytest.approx(outside)
    assert features(service, "offline", "24h")["x[0]"]["count"] == 600
    assert drift(service, "offline")["reference"] is True


def test_a_shift_by_two_sigma_on_a_tenth_of_the_streams_shows_at_its_features_alone(service: Service) -> None:
    """All values together cannot show it: their PSI is below 0.09 for any choice of bins."""
    rng, streams = np.random.default_rng(2), names(100)

    def has_drifted_there_alone() -> bool:
        """Of few values, the PSI of the others is noise, which fades as values come in."""
        for _ in range(4):
            xs = rng.normal(size=(100, 6))
            xs[::10, [1, 4]] += 2
            step_all(service, "shifted", streams, xs)
        found = features(service, "shifted")
        psi = {i: found[f"x[{i}]"]["psi"] or 0.0 for i in range(6)}
        is_shown = all(psi[i] > 0.2 if i in (1, 4) else psi[i] < 0.05 for i in psi)
        return found["x[0]"]["count"] >= 10_000 and is_shown

    wait_until(has_drifted_there_alone, WITHIN_S)
    found = features(service, "shifted")
    assert all(found[f"x[{i}]"]["psi_all"] < 0.09 for i in range(6))


def test_every_kind_of_request_is_counted(service: Service) -> None:
    x = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for _ in range(3):
        assert service.step("roads", "alone", x).status_code == 200  # on the fast path, a batch of one
    keyed = service.http.post(
        service.path("roads", "keyed", "step"), json={"inputs": x}, headers={"Idempotency-Key": "one"}
    )
    assert keyed.status_code == 200
    step_all(service, "roads", names(30), np.array([x] * 30))
    assert service.http.post(service.path("roads", "chunk", "steps"), json={"inputs": {"x": [x] * 5}}).is_success
    with service.feed("roads", "fed") as feed:
        for _ in range(4):
            feed.send(json.dumps({"inputs": x}))
            assert "outputs" in json.loads(feed.recv())
    infer = {"parameters": {"sequence_id": 7, "sequence_start": True}}
    infer["inputs"] = [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": x}]  # type: ignore[assignment]
    assert service.http.post("/v2/models/roads/infer", json=infer).status_code == 200

    found = counted(service, "roads", 3 + 1 + 30 + 5 + 4 + 1)
    assert found["x[5]"]["max"] == np.float32(0.6)


def test_replays_peeks_rollouts_and_rejected_timesteps_are_not_counted(service: Service) -> None:
    x = [0.1] * 6
    for _ in range(3):
        assert service.step("uncounted", "s", x, seq=1).status_code == 200  # once applied, twice replayed
    assert service.http.post(service.path("uncounted", "s", "peek"), json={"inputs": [9.0] * 6}).status_code == 200
    rollout = {"horizon": 3, "inputs": {"x": [9.0] * 6}, "feedback": {"x": "x"}}
    service.http.post(service.path("uncounted", "s", "rollout"), json=rollout)
    assert service.step("uncounted", "s", [9.0] * 6, seq=5).status_code == 409
    assert service.step("uncounted", "s", [9.0] * 5).status_code == 422
    assert service.step("uncounted", "s", x, seq=2).status_code == 200

    assert counted(service, "uncounted", 2)["x[0]"]["max"] == np.float32(0.1)


def test_outputs_are_counted_as_they_are_returned(service: Service) -> None:
    path = service.path("priming", "s", "steps")
    for how in ("none", "last", "all"):
        body = {"inputs": {"x": [[0.1] * 6] * 10}, "return": how}
        assert service.http.post(path, json=body).is_success
    found = counted(service, "priming", 30)

    assert found["y[0]"]["count"] == 0 + 1 + 10


def test_missing_values_are_a_share_and_nothing_else(service: Service) -> None:
    for inputs in ({"a": [1, None], "b": 7}, {"a": [2, 5]}, {"a": [None, None], "b": 3}, {"a": [4, None], "b": 1}):
        assert service.step("last_seen_drift", "s", inputs).status_code == 200
    found = counted(service, "last_seen_drift", 4, "a[0]")

    assert {name: (found[name]["count"], found[name]["missing"]) for name in ("a[0]", "a[1]", "b[0]")} == {
        "a[0]": (3, 0.25), "a[1]": (1, 0.75), "b[0]": (3, 0.25),
    }  # fmt: skip
    assert (found["a[1]"]["min"], found["a[1]"]["max"]) == (5, 5)


def test_without_a_reference_there_is_no_psi_but_everything_else(service: Service) -> None:
    step_all(service, "plain", names(20), normal(20, 30, 6))
    found = counted(service, "plain", 600)["x[0]"]

    assert drift(service, "plain")["reference"] is False
    assert [found[name] for name in ("psi", "psi_all", "psi_tenth", "outside")] == [None] * 4
    assert found["min"] < found["quantiles"]["0.1"] < found["quantiles"]["0.5"] < found["max"]


def test_before_the_first_timestep_all_features_are_there_and_empty(service: Service) -> None:
    found = drift(service, "empty")

    assert set(found["windows"]) == {"1h", "24h"}
    for window in found["windows"].values():
        assert set(window) == {"inputs", "outputs"}
        assert len(window["inputs"]) == 6
        for one in (*window["inputs"].values(), *window["outputs"].values()):
            assert (one["count"], one["missing"], one["quantiles"]) == (0, 0, {})
            assert one["min"] is one["max"] is one["psi"] is None


def test_below_the_least_number_of_values_there_is_no_psi(service: Service) -> None:
    step_all(service, "few", names(10), normal(10, MIN_VALUES // 10 - 1, 6))
    assert counted(service, "few", MIN_VALUES - 10)["x[0]"]["psi"] is None

    step_all(service, "few", names(10), normal(10, 1, 6))
    assert counted(service, "few", MIN_VALUES)["x[0]"]["psi"] is not None


def test_each_version_has_its_own_drift(service: Service) -> None:
    for version, n in ((1, 3), (2, 5)):
        for i in range(n):
            answer = service.http.post(
                f"{service.path('versions', f'v{version}-{i}', 'step')}?version={version}", json={"inputs": [1.0] * 6}
            )
            assert answer.status_code == 200
    counted(service, "versions", 5)

    wait_until(lambda: features(service, "versions", query="?version=1")["x[0]"]["count"] == 3, WITHIN_S)
    assert drift(service, "versions", "?version=1")["reference"] is False
    assert drift(service, "versions", "?version=2")["reference"] is True
    assert service.http.get("/v1/models/versions/drift?version=9").status_code == 404


def test_a_paired_timestep_counts_once_for_the_version_that_responds(service: Service) -> None:
    trial = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 100}
    assert service.http.put("/v1/models/paired/release", json=trial).status_code == 200
    for _ in range(3):
        step_all(service, "paired", names(10), normal(10, 6))

    counted(service, "paired", 30)
    assert features(service, "paired", query="?version=2")["x[0]"]["count"] == 0


def monitor_of(one: Service) -> DriftMonitor:
    [found] = [each for each in one.app.state.addons if isinstance(each, Drift)]
    return found.monitor


def test_a_version_that_was_replaced_is_written_and_forgotten(shared_redis: Server, tmp_path: Path) -> None:
    write_reference_model(tmp_path, "replaced", DATA)
    with running_service(shared_redis.url, tmp_path) as one:
        monitor, models = monitor_of(one), one.app.state.engine.models
        step_all(one, "replaced", names(10), normal(10, 6))
        counted(one, "replaced", 10)
        before = models.get("replaced", None)
        write_model(tmp_path, "replaced", lambda: lstm(6, seed=9))
        assert one.http.post("/v1/models/reload").json()["loaded"]

        def is_forgotten() -> bool:
            step_all(one, "replaced", ["new"], normal(1, 6))
            return bool(monitor.observed() == [("replaced", 1)])

        wait_until(is_forgotten, WITHIN_S)
        assert before is not models.get("replaced", None)


def test_sketches_of_replicas_are_merged_and_outlive_them(service: Service, shared_redis: Server, folder: Path) -> None:
    with running_service(shared_redis.url, folder) as other:
        step_all(other, "replicas", names(10), normal(10, 20, 6))
        step_all(service, "replicas", [f"t{i}" for i in range(10)], normal(10, 40, 6, seed=1))
        counted(service, "replicas", 600)
        counted(other, "replicas", 600)
        step_all(other, "replicas", names(10), normal(10, 5, 6))

    counted(service, "replicas", 650)
    assert features(service, "replicas", "24h")["x[0]"]["count"] == 650


def test_the_metrics_have_the_last_hour(service: Service) -> None:
    step_all(service, "metrics", names(20), normal(20, 30, 6) + 3)
    psi = counted(service, "metrics", 600)["x[2]"]["psi"]
    line = 'stepwell_psi{feature="x[2]",model="metrics",tensor="x",version="1"}'

    def shown() -> list[float]:
        page = service.http.get("/metrics").text
        return [float(each.rpartition(" ")[2]) for each in page.splitlines() if each.startswith(line)]

    wait_until(lambda: shown() == [psi], WITHIN_S)


def test_a_model_has_at_most_the_set_number_of_features_and_keeps_some_for_outputs(
    shared_redis: Server, tmp_path: Path
) -> None:
    write_reference_model(tmp_path, "wide", normal(10, 20, 30))
    with running_service(shared_redis.url, tmp_path, drift_max_features=8) as one:
        step_all(one, "wide", names(5), normal(5, 30))
        found = counted(one, "wide", 5)

    assert list(found) == ["x[0]", "x[1]", "x[2]", "x[3]", "x[4]", "x[5]", "y[0]", "y[1]"]


def test_nothing_is_observed_when_the_setting_is_off(shared_redis: Server, tmp_path: Path) -> None:
    write_reference_model(tmp_path, "off", DATA)
    with running_service(shared_redis.url, tmp_path, drift=False) as one:
        step_all(one, "off", names(5), normal(5, 6))
        sampler = next(iter(one.app.state.engine.steps.models))
        assert monitor_of(one).sampler(sampler) is None
        assert features(one, "off")["x[0]"]["count"] == 0


def test_the_answer_may_be_msgpack(service: Service) -> None:
    answer = service.http.get("/v1/models/plain/drift", headers={"accept": "application/msgpack"})

    assert msgspec.msgpack.decode(answer.content)["reference"] is False


def test_the_keys_in_the_store_share_a_slot_and_expire(service: Service, shared_redis: Server) -> None:
    step_all(service, "roads", names(3), normal(3, 6))

    def keys() -> list[bytes]:
        return list(shared_redis.client().scan_iter("swl:1:drift:{roads}:*"))

    wait_until(lambda: len(keys()) >= 2, WITHIN_S)
    assert all(3600 < shared_redis.client().ttl(key) < 2 * 86400 for key in keys())
