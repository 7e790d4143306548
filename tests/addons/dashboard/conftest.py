"""Fixtures for tests of the dashboard: a browser, a service, and the dashboard's files without a service."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stepwell.addons.demo.recordings import MODELS
from tests.addons.dashboard.browser import Browser, Page, browser, chromium
from tests.graphs import letters, total, wave, write_model
from tests.processes import ServiceProcess, service_process

FILES = Path(__file__).parents[3] / "service/stepwell/addons/dashboard/page"


@pytest.fixture(scope="session")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests: starting it takes longer than most of them."""
    binary = chromium()
    if binary is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with browser(binary, tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def page(chromium_browser: Browser) -> Iterator[Page]:
    """A tab for one test alone, with nothing stored."""
    with chromium_browser.tab() as tab:
        yield tab


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Silence the log."""


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    """The URL of the dashboard's folder, served by a plain web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(FILES))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, a running sum, one with a deterministic forecast, and one with a sampled forecast."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(MODELS / "activity.onnx", folder)
    for name, build in (("total", total), ("wave", wave), ("letters", letters)):
        write_model(folder, name, build)
    return folder


@pytest.fixture(scope="module")
def live(models: Path) -> Iterator[ServiceProcess]:
    """A service for all tests of a file; each uses its own streams."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder, service_process(models, Path(folder)) as one:
        yield one


@pytest.fixture
def own(models: Path, tmp_path: Path, short_path: Path) -> Iterator[ServiceProcess]:
    """A service for one test alone, with models of its own in `tmp_path`."""
    with service_process(shutil.copytree(models, tmp_path, dirs_exist_ok=True), short_path) as one:
        yield one


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id for one test alone, which begins no other one."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name.removeprefix("test_"))
