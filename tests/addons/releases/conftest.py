"""Two replicas for the tests of one file, and two versions of a model for each test alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.releases.fleet import NEW_FACTOR, OLD_FACTOR, Fleet
from tests.api.running import Service, running_service
from tests.graphs import fold, write_model
from tests.servers import Server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def replicas(shared_redis: Server, folder: Path) -> Iterator[list[Service]]:
    with running_service(shared_redis.url, folder) as one, running_service(shared_redis.url, folder) as two:
        yield [one, two]


@pytest.fixture
def releases(request: pytest.FixtureRequest, replicas: list[Service], folder: Path, stream: str) -> Iterator[Fleet]:
    """Two versions of `fold` that differ in their factor; the parameter "feed" sends timesteps over feeds."""
    for version, factor in ((1, OLD_FACTOR), (2, NEW_FACTOR)):
        write_model(folder, stream, lambda factor=factor: fold(factor), version=version)  # type: ignore[misc]
    replicas[0].http.post("/v1/models/reload").raise_for_status()
    found = Fleet(replicas, stream, by_feed=getattr(request, "param", "http") == "feed")
    found.put(current=1)
    yield found
    found.close()
