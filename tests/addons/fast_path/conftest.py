"""Two services with separate stores: one with the fast path, one with the declared routes only."""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.addons.fast_path.both_paths import BothPaths
from tests.api.running import running_service
from tests.graphs import fold, lstm, nan_at, slow, stateless, two_inputs, write_models
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import server

WITHIN_S = 0.5  # in the services of `hasty`
MAX_BODY = 100_000


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(
        tmp_path_factory.mktemp("models"), fold, two_inputs, lstm, slow, stateless, nan_at_3=lambda: nan_at(3)
    )


@pytest.fixture(scope="session")
def both_paths(folder: Path) -> Iterator[BothPaths]:
    """Both services, without API keys."""
    with two(folder) as both:
        yield both


@pytest.fixture(scope="session")
def keyed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothPaths]:
    """Both services, with the API keys `full`, `other` (of another tenant) and `reader` (without scope `step`)."""
    keys = [key("full"), key("other", tenant="b"), key("reader", scopes=["read"])]
    with two(folder, api_keys_file=write_keys_file(tmp_path_factory.mktemp("keys") / "keys.json", *keys)) as both:
        yield both


@pytest.fixture(scope="session")
def hasty(folder: Path) -> Iterator[BothPaths]:
    """Both services, which wait for the rest of a request for `WITHIN_S`."""
    with two(folder, receive_timeout_s=WITHIN_S) as both:
        yield both


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id that only this test uses."""
    return f"t{zlib.crc32(request.node.nodeid.encode()):08x}"


@contextlib.contextmanager
def two(folder: Path, **settings: Any) -> Iterator[BothPaths]:
    limits = {"max_body_bytes": MAX_BODY, "max_chunk_steps": 64, "queue_limit": 500}
    with contextlib.ExitStack() as stack:
        ours = []
        for lane in (True, False):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sw")))
            store = stack.enter_context(server(place))
            ours.append(stack.enter_context(running_service(store.url, folder, lane=lane, **limits, **settings)))
        yield BothPaths(*ours)
