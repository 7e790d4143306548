"""All worker processes of two replicas follow a release, and a release outlives all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.graphs import fold, write_model
from tests.process.test_serve import wait_until
from tests.processes import ServiceProcess, service_process
from tests.servers import Server

WORKERS = ("--workers", "2", "--drain-s", "0")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for version, factor in ((1, 3), (2, 5)):
        write_model(tmp_path / "models", "fold", lambda factor=factor: fold(factor), version=version)  # type: ignore[misc]
    return tmp_path / "models"


def versions_of_new_streams(one: ServiceProcess, n: int = 12) -> set[int]:
    """Return the default versions that `n` new connections find, which reach both workers."""
    found = set()
    for _ in range(n):
        found.add(httpx2.get(f"{one.url}/v1/models/fold", trust_env=False, timeout=30).json()["version"])
    return found


def put(one: ServiceProcess, body: Any) -> None:
    httpx2.put(f"{one.url}/v1/models/fold/release", json=body, trust_env=False, timeout=30).raise_for_status()


@pytest.mark.slow
def test_every_worker_of_every_replica_follows_a_release_that_outlives_them(
    models: Path, redis_server: Server, short_path: Path
) -> None:
    flags = ("--redis", redis_server.url, *WORKERS)
    with (
        service_process(models, short_path / "one", *flags) as one,
        service_process(models, short_path / "two", *flags) as two,
    ):
        assert versions_of_new_streams(one) | versions_of_new_streams(two) == {2}
        put(one, {"current": 1, "candidate": 2, "mode": "ramp", "percent": 5})
        assert wait_until(lambda: versions_of_new_streams(one, 4) | versions_of_new_streams(two, 4) == {1})
        assert versions_of_new_streams(one) | versions_of_new_streams(two) == {1}
        two.stop()
        one.stop()
        one.start()
        assert versions_of_new_streams(one) == {1}
        found = httpx2.get(f"{one.url}/v1/models/fold/release", trust_env=False, timeout=30).json()
        assert (found["revision"], found["candidate"], found["percent"]) == (1, 2, 5)
        put(one, {"percent": 0})
        for i in range(3):
            path = f"{one.url}/v1/models/fold/streams/s{i}/step"
            httpx2.post(path, json={"inputs": [1]}, trust_env=False, timeout=30).raise_for_status()

        def counted() -> bool:
            page = httpx2.get(f"{one.url}/metrics", trust_env=False, timeout=30).text
            return 'stepwell_streams{model="fold",version="1"} 3.0' in page

        assert wait_until(counted)
