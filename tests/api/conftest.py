"""A running service that all tests share; each test uses streams of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.running import Service, running_service
from tests.graphs import fold, last_seen, latch, latest, lstm, nan_at, slow, stateless, total, two_inputs, write_models
from tests.servers import Server


@pytest.fixture(scope="session")
def service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with one small model of every kind."""
    folder = write_models(
        tmp_path_factory.mktemp("models"),
        *(fold, two_inputs, latch, lstm, total, slow, stateless, last_seen),
        nan_at_3=lambda: nan_at(3),
        half=lambda: latest("float16"),
        double=lambda: latest("float64"),
    )
    with running_service(shared_redis.url, folder, max_body_bytes=1_000_000, max_chunk_steps=64) as one:
        yield one
