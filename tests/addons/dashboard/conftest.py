"""Fixtures for tests of the dashboard: a browser, and the dashboard's files without a service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.addons.dashboard.browser import Browser, Page, browser, chromium

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
