"""A service of models that can be rolled out, for the tests of one file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.running import Service, running_service
from tests.graphs import fold, letters, nan_at, slow, total, two_inputs, wave, write_models
from tests.servers import Server


@pytest.fixture(scope="module")
def rolling(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = (fold, letters, wave, total, two_inputs, slow)
    folder = write_models(tmp_path_factory.mktemp("rolling"), *models, nan_at=lambda: nan_at(4))
    with running_service(shared_redis.url, folder, max_horizon=200, max_samples=20) as one:
        yield one
