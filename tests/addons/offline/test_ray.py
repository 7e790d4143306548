"""A real Ray on this machine predicts as the service does, and its states go on in the service."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.addons.offline.recording import N_STREAMS, assert_states_go_on, expected, found, recording
from tests.api.running import running_service
from tests.graphs import fold, write_model
from tests.servers import Server

if find_spec("ray") is None:
    pytest.skip("ray is not installed (STEPWELL_EXTRAS=ray)", allow_module_level=True)

from stepwell.addons.offline import ray as on_ray

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


def test_a_table_is_predicted_as_the_service_would(ray: Any, tmp_path: Path) -> None:
    rows = recording()

    predicted = on_ray.predictions(
        ray.data.from_pandas(rows), write_model(tmp_path, "fold", fold), stream="pump", time="t"
    )

    assert found(predicted.to_pandas()) == expected(rows)


def test_the_states_of_a_backfill_go_on_in_the_service(ray: Any, redis_server: Server, tmp_path: Path) -> None:
    models, rows = tmp_path / "models", recording()
    file, savepoint = write_model(models, "fold", fold), tmp_path / "states.savepoint"

    computed = on_ray.states(ray.data.from_pandas(rows), file, stream="pump", time="t")

    assert on_ray.save_states(computed, savepoint, file) == N_STREAMS
    with running_service(redis_server.url, models) as service:
        assert_states_go_on(service, savepoint, rows)
