"""A running service for clients that were written for Triton."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest

from tests.api.running import Service, running_service
from tests.graphs import fold, latch, latest, lstm, stateless, two_inputs, write_models
from tests.servers import Server


@pytest.fixture(scope="session")
def service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with the fast lane, as `stepwell serve` runs it."""
    folder = write_models(
        tmp_path_factory.mktemp("models"), fold, two_inputs, latch, lstm, stateless, half=lambda: latest("float16")
    )
    with running_service(shared_redis.url, folder, lane=True) as one:
        yield one


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id that no other test has."""
    return f"t{zlib.crc32(request.node.nodeid.encode()):08x}"
