"""Any bytes under a stream's keys cause a documented error for its own requests and do not affect other streams."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwell.errors import ServiceError
from stepwell.store.keys import idempotency_key_of, record_key
from stepwell.types import Prediction
from tests.engine.harness import gather_results, step, worker
from tests.fuzz.test_readers import mutated
from tests.graphs import fold, write_models
from tests.servers import Server, server

_names = (f"s{n}" for n in itertools.count())
FEW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def store() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder, server(Path(folder)) as one:
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), fold=fold)


@pytest.fixture(scope="module")
def valid_bytes(store: Server, folder: Path) -> tuple[bytes, bytes]:
    """A record and an idempotency entry, written by an engine."""

    async def write() -> None:
        async with worker(store.url, folder) as engine:
            await engine.steps.advance(step("sound", 5, idempotency_key="k"))

    asyncio.run(write())
    name = record_key("default", "fold", "sound")
    with store.client() as client:
        record, entry = client.get(name), client.get(idempotency_key_of(name, "k"))
    assert isinstance(record, bytes)
    assert isinstance(entry, bytes)
    return record, entry


@FEW
@given(data=st.data())
def test_foreign_bytes_affect_their_own_stream_only(
    store: Server, folder: Path, valid_bytes: tuple[bytes, bytes], data: st.DataObject
) -> None:
    record = data.draw(st.one_of(st.none(), st.binary(max_size=200), mutated([valid_bytes[0]])))
    entry = data.draw(st.one_of(st.none(), st.binary(max_size=200), mutated([valid_bytes[1]])))
    bad, good = next(_names), next(_names)
    with store.client() as client:
        name = record_key("default", "fold", bad)
        for key, value in ((name, record), (idempotency_key_of(name, "k"), entry)):
            if value is not None:
                client.set(key, value)

        async def ask() -> tuple[object, object]:
            async with worker(store.url, folder) as engine:
                asked = step(bad, 5, idempotency_key="k")
                result, fine = await gather_results(
                    engine.steps.advance(asked), engine.steps.advance(step(good, 5, idempotency_key="k"))
                )
                return result, fine

        result, fine = asyncio.run(ask())
        left = client.get(name)

    assert isinstance(fine, Prediction)
    if isinstance(result, ServiceError):
        assert result.code in ("state_corrupt", "record_version", "model_changed", "idempotency_key_reused"), result
        assert result.applied in ("no", "unknown")
        assert left == record
    else:
        assert isinstance(result, Prediction), result
