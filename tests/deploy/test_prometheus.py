"""A real Prometheus scrapes two replicas under load, through a fault: every panel and every alert has its data."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2
import pytest
from websockets.sync.client import connect

from scripts.observability.alerts import ALERTS
from scripts.observability.dashboard import DASHBOARD
from tests.addons.drift.live import normal, write_reference_model
from tests.addons.releases.builds import adder, raising_at
from tests.deploy.prometheus import PROMETHEUS, WINDOW, Prometheus, hastened, prometheus
from tests.graphs import count, fold, write_model, write_models
from tests.processes import ServiceProcess
from tests.requests.test_api_keys import bearer, key, write_keys_file
from tests.servers import AOF, Server, server

QUERIES = [query for panels in DASHBOARD.values() for panel in panels for query in panel.queries.values()]
NEEDS_A_FAULT = [query for query in QUERIES if "ALERTS" in query]
LIMIT_S = 60.0
KEY = "all"

pytestmark = [
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (apt install prometheus)"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


@dataclass
class Observed:
    """Two replicas under load, their store, and the Prometheus that scrapes them with the key of its file."""

    store: Server
    replicas: list[ServiceProcess]
    prometheus: Prometheus


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    models = write_models(folder / "models", fold, count)
    for version, build in ((1, adder), (2, lambda: raising_at(1000))):
        write_model(models, "sum", build, version=version)
    write_reference_model(models, "pump", normal(20, 50, 2))
    finished = threading.Event()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(server(folder / "redis", *AOF))
        flags = ("--redis", store.url, "--api-keys-file", str(write_keys_file(folder / "keys.json", key(KEY))))
        replicas = [ServiceProcess(models, folder / name, *flags) for name in ("a", "b")]
        for replica in replicas:
            stack.callback(replica.stop)
            replica.start()
        trial = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 100}
        with client(replicas[0]) as http:
            http.put("/v1/models/sum/release", json=trial).raise_for_status()
        targets = [f"127.0.0.1:{replica.port}" for replica in replicas]
        one = Observed(store, replicas, stack.enter_context(prometheus(folder / "prometheus", targets, key=KEY)))
        load = threading.Thread(target=keep_loading, args=(one, finished))
        load.start()
        stack.callback(load.join)
        stack.callback(finished.set)
        yield one


def client(replica: ServiceProcess) -> httpx2.Client:
    return httpx2.Client(base_url=replica.url, headers=bearer(KEY), timeout=20, trust_env=False)


def keep_loading(observed: Observed, finished: threading.Event) -> None:
    """Send all kinds of requests, some of them invalid, until the event is set."""
    a, b = map(client, observed.replicas)
    chunk = normal(25, 2).tolist()
    feed_url = observed.replicas[0].url.replace("http", "ws") + "/v1/models/fold/streams/fed/feed"
    with (
        a,
        b,
        connect(feed_url, additional_headers=bearer(KEY)) as feed,
        a.stream("GET", "/v1/models/fold/streams/s/events"),
    ):
        while not finished.wait(0.1):
            for http in (a, b):
                http.post("/v1/models/fold/streams/s/step", json={"inputs": [1]})
                http.post("/v1/models/count/streams/s/step", json={"inputs": [1]}, headers={"Idempotency-Key": "one"})
                http.post("/v1/models/fold/streams/gap/step", json={"inputs": [1], "seq": 9})
                http.post("/v1/models/nobody/streams/s/step", json={"inputs": [1]})
                http.post("/v1/models/sum/streams/s/step", json={"inputs": [1]})
                http.post("/v1/models/pump/streams/s/steps", json={"inputs": {"x": chunk}})
            feed.send(json.dumps({"inputs": [1]}))
            feed.recv(timeout=20)


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"not within {LIMIT_S:.0f} s: {what}"
        time.sleep(0.2)  # noqa: TID251 - Prometheus reports nothing by itself


def filled(query: str) -> str:
    """Return a query as Grafana sends it, with all values chosen."""
    for variable, value in {"$instance": ".*", "$model": ".*", "$__rate_interval": WINDOW, "$__range": "1h"}.items():
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def without_data(observed: Observed, queries: list[str]) -> list[str]:
    return [query for query in queries if not any(has_number(sample) for sample in observed.prometheus.query(query))]


def has_number(sample: object) -> bool:
    return not str(sample).endswith("'NaN']}")


def test_every_panel_and_every_alert_has_data_under_load(observed: Observed) -> None:
    """The condition of an alert is false then, so the rule itself has no result."""
    queries = [filled(query) for query in QUERIES if query not in NEEDS_A_FAULT]
    queries += [hastened(alert.value) for alert in ALERTS]

    wait_for(lambda: [each["health"] for each in observed.prometheus.targets()] == ["up", "up"], "two targets")
    wait_for(lambda: not without_data(observed, queries), "data for every panel and alert")


def test_two_senders_of_one_stream_raise_the_alert_for_conflicts(observed: Observed) -> None:
    wait_for(lambda: "StepwellConflicts" in observed.prometheus.firing(), "fires")


def test_the_alerts_of_a_killed_store_fire_and_clear(observed: Observed) -> None:
    expected = {"StepwellStoreAway", "StepwellNotReady", "StepwellErrors"}
    assert not expected & observed.prometheus.firing()

    observed.store.kill()
    wait_for(lambda: expected <= observed.prometheus.firing(), "fires")
    shown = [filled(query) for query in NEEDS_A_FAULT]
    assert without_data(observed, shown) == []
    observed.store.start()

    wait_for(lambda: not expected & observed.prometheus.firing(), "clears")


def test_a_store_that_comes_back_empty_raises_the_alert_for_lost_timesteps(observed: Observed) -> None:
    with client(observed.replicas[0]) as http:

        def step(seq: int) -> int:
            body = {"inputs": [1], "seq": seq}
            return http.post("/v1/models/fold/streams/lost/step", json=body).status_code

        assert [step(1), step(2)] == [200, 200]
        with observed.store.client() as store:
            store.flushall()
        assert step(3) == 404

    wait_for(lambda: "StepwellStoreLostSteps" in observed.prometheus.firing(), "fires")


def test_no_rule_reports_an_error(observed: Observed) -> None:
    rules = observed.prometheus.rules()

    assert len(rules) == len(ALERTS)
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
