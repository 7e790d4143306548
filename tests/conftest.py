"""Fixtures for every test: a short temporary folder, and a real server of the Redis protocol."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import tomllib
import zlib
from collections.abc import Generator, Iterator
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from stepwell.garbage_collection import collector_paused
from tests.programs.start import forked_starts, real_starts
from tests.quick import is_left_out, is_long, left_out_of_all, runs_all_files
from tests.servers import Server, server

TESTS = Path(__file__).parent
_SLOW_UNTIL = 0.5  # of the other files
WAITING = {
    *(
        "python_client/test_client.py",
        "python_client/test_limits.py",
        "addons/drift/test_service.py",
        "addons/cluster/test_transport.py",
    ),
    *("test_drain.py", "addons/tracing/test_traces.py"),
}
"""Files that have no slow test, but wait for most of 15 to 60 seconds."""
_TESTS_OF_COMPILED = 40  # tests after which what JAX has compiled is dropped
_n_since_dropped = 0
os.environ.setdefault("KERAS_BACKEND", "jax")  # the test extra installs JAX, and Keras would default to TensorFlow
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads wait for each other, for long on a busy machine
# Compiled Keras models are cached: compiling takes two thirds of the time of their tests and examples.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# The models of the tests are small: XLA's optimizations take longer than they save.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_IS_QUICKLY_COMPILED = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
# XLA's fusion emitters compile small models for long. A flag that XLA does not have ends the process: docs/adr/0039.
if _IS_QUICKLY_COMPILED and find_spec("jaxlib") is not None and version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# The tests start several hundred programs; without byte code each would compile all modules, as in many containers.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
settings.register_profile("patient", parent=settings.default, deadline=None)  # how long one example takes is no fact
# For mutants, of which only whether a test fails counts: to find the smallest example takes seconds, and a mutant that
# is caught is caught in each run.
settings.register_profile(
    "any-failure",
    parent=settings.get_profile("patient"),
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    database=None,
)
settings.load_profile("patient")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what it starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else the programs that tests start would inherit it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a part of Stepwell's tests, in a few minutes")
    parser.addoption("--all", action="store_true", help="also the slowest, and every case of what has many")


def pytest_configure() -> None:
    """Check that what is installed registers what the project file has: a changed entry point needs another install.

    Raises:
        pytest.UsageError: It does not.
    """
    groups = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]["entry-points"]
    expected = {(group, name, value) for group, points in groups.items() for name, value in points.items()}
    found = {(one.group, one.name, one.value) for one in distribution("stepwell").entry_points}
    if missing := sorted(expected - found):
        raise pytest.UsageError(
            f"The environment is older than pyproject.toml: {missing[0][1]!r} of {missing[0][0]} is not registered. "
            "Run ./stepwell --version, or: pip install --no-deps --no-build-isolation -e ."
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("quick") and is_left_out(collection_path, config) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: it would traverse the imported packages again and again, also later."""
    with collector_paused():
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Spread the files with slow tests, which mostly wait, among the others, beginning with those that only compute.

    The last slow ones come long before the end, where one of them would run alone.
    """
    slow = dict.fromkeys(item.path for item in items if item.get_closest_marker("slow"))
    waiting = {TESTS / name for name in WAITING}
    slow |= dict.fromkeys(item.path for item in items if item.path in waiting)
    others = dict.fromkeys(item.path for item in items if item.path not in slow)
    places = {path: _SLOW_UNTIL * len(others) * i / len(slow) for i, path in enumerate(slow)}
    computing = sorted(others, key=lambda path: not path.is_relative_to(TESTS / "model_export"))
    places |= {path: i for i, path in enumerate(computing)}
    items.sort(key=lambda item: places[item.path])
    left_out = {item for item in items if config.getoption("quick") and is_long(item)}
    if runs_all_files(config) and not config.getoption("all"):
        left_out |= left_out_of_all(items)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape characters that UTF-8 cannot encode: some tests log them, and reports travel between processes."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drop what JAX has compiled at the end of each file and after some tests: it would keep gigabytes for the run."""
    global _n_since_dropped  # noqa: PLW0603 - hooks have no object of their own
    _n_since_dropped += 1
    ends = nextitem is None or nextitem.path != item.path
    if "jax" in sys.modules and (ends or _n_since_dropped >= _TESTS_OF_COMPILED):
        sys.modules["jax"].clear_caches()
        _n_since_dropped = 0


@pytest.fixture(scope="session", autouse=True)
def forked_programs() -> Iterator[None]:
    """Fork the programs that tests start from one process that has imported Stepwell."""
    with forked_starts():
        yield


@pytest.fixture(scope="module")
def real_programs() -> Iterator[None]:
    """Start each program of a file with an interpreter of its own: its tests are about starts or memory."""
    with real_starts():
        yield


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
