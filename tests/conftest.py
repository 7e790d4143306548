"""Fixtures for every test: a short temporary folder, and a real server of the Redis protocol."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.servers import Server, server

os.environ.setdefault("KERAS_BACKEND", "jax")  # the test extra installs JAX, and Keras would default to TensorFlow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with slow tests first; at the end, the last one would run alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape characters that UTF-8 cannot encode: some tests log them, and reports travel between processes."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A temporary folder with a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[Server]:
    """One server for the whole run, for tests that use streams of their own."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder, server(Path(folder)) as one:
        yield one


@pytest.fixture
def redis_server(short_path: Path) -> Iterator[Server]:
    """A server for one test alone, which it may kill, fill and flush."""
    with server(short_path / "redis") as one:
        yield one


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id for one test alone."""
    return f"t{zlib.crc32(request.node.nodeid.encode()):08x}"
