"""The API's page in a real browser: every route stands there, and can be sent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.browser import Page
from tests.graphs import total, write_model
from tests.processes import Service, service

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def live() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "total", total)
        with service(Path(name) / "models", Path(name) / "data") as one:
            yield one


def fill(page: Page, values: str) -> None:
    """Open the first route of the page, which is the step, and fill its fields in."""
    page.wait_for("document.querySelector('details summary code').textContent.endsWith('/step')")
    page.ask(f"""(() => {{
        const step = document.querySelector('details');
        step.open = true;
        const [model, stream] = step.querySelectorAll('.fields input');
        [model.value, stream.value] = ['total', 's'];
        step.querySelector('textarea').value = {values!r};
    }})()""")


def test_every_route_stands_there_and_nothing_comes_from_elsewhere(live: Service, page: Page) -> None:
    page.open(f"{live.url}/docs")

    page.wait_for("document.querySelectorAll('main > details').length >= 15")
    assert page.troubles == []
    assert {url for url in page.requested if not url.startswith(live.url)} == set()


def test_a_step_can_be_sent_from_there(live: Service, page: Page) -> None:
    page.open(f"{live.url}/docs")
    fill(page, '{"inputs": [2, 3]}')
    page.ask("document.querySelector('details button[type=submit]').click()")

    answer = page.wait_for("document.querySelector('.answer[data-good=yes]').textContent")

    assert answer.startswith("200\n")
    assert '"step": 1' in answer


def test_a_request_can_be_had_as_curl(live: Service, page: Page) -> None:
    page.open(f"{live.url}/docs")
    fill(page, '{"inputs": [2, 3]}')
    page.ask("document.querySelector('details .curl').click()")

    line = page.text(".answer")

    assert line.startswith(f"curl -X POST '{live.url}/v1/models/total/streams/s/step'")
    assert """-d '{"inputs": [2, 3]}'""" in line
