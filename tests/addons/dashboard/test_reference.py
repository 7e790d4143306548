"""The API reference page in a real browser: every route is listed and can be called."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.dashboard.browser import Page
from tests.graphs import total, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def live() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "total", total)
        with service_process(Path(name) / "models", Path(name) / "data") as one:
            yield one


def fill_in_step(page: Page, values: str) -> None:
    """Expand the first route of the page, the step, and fill in its fields."""
    page.wait_for("document.querySelector('details summary code').textContent.endsWith('/step')")
    page.evaluate(f"""(() => {{
        const step = document.querySelector('details');
        step.open = true;
        const [model, stream] = step.querySelectorAll('.fields input');
        [model.value, stream.value] = ['total', 's'];
        step.querySelector('textarea').value = {values!r};
    }})()""")


def test_every_route_is_listed_and_nothing_is_loaded_from_elsewhere(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")

    page.wait_for("document.querySelectorAll('main > details').length >= 15")
    assert page.errors == []
    assert {url for url in page.requested if not url.startswith(live.url)} == set()


def test_a_step_can_be_sent_from_the_page(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")
    fill_in_step(page, '{"inputs": [2, 3]}')
    page.evaluate("document.querySelector('details button[type=submit]').click()")

    answer = page.wait_for("document.querySelector('.answer[data-good=yes]').textContent")

    assert answer.startswith("200\n")
    assert '"step": 1' in answer


def test_a_request_can_be_copied_as_curl(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")
    fill_in_step(page, '{"inputs": [2, 3]}')
    page.evaluate("document.querySelector('details .curl').click()")

    line = page.text(".curl-line:not([hidden])")

    assert line.startswith(f"curl -X POST '{live.url}/v1/models/total/streams/s/step'")
    assert """-d '{"inputs": [2, 3]}'""" in line


@pytest.mark.parametrize(
    "route",
    ["/streams/{stream}/step", "/streams/{stream}/steps", "/streams/{stream}/peek", "/{model}/step", "/{model}/steps"],
)
def test_an_untouched_example_works(live: ServiceProcess, page: Page, route: str) -> None:
    page.open(f"{live.url}/docs")
    found = f"""[...document.querySelectorAll('main > details')].find(one =>
        one.querySelector('summary').textContent.startsWith('POST') &&
        one.querySelector('code').textContent.endsWith({route!r}))"""
    page.wait_for(f"({found}).querySelector('button[type=submit]').click() ?? true")

    answer = page.wait_for(f"({found}).querySelector('.answer[data-good]')?.textContent")

    assert answer.startswith("200\n")


def test_the_curl_line_does_not_replace_the_answer(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")
    page.wait_for("document.querySelector('details button[type=submit]').click() ?? true")
    page.wait_for("document.querySelector('.answer[data-good=yes]')?.textContent")
    page.evaluate("document.querySelector('details .curl').click()")

    assert page.evaluate("document.querySelector('.curl-line:not([hidden])').textContent").startswith("curl ")
    assert page.evaluate("document.querySelector('.answer').textContent").startswith("200")


def test_the_page_of_errors_says_what_to_do(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs/errors#seq_gap")

    assert "Send the timesteps from expected on" in page.text("#seq_gap")
    assert page.text(".controls a:last-child") == "Dashboard"
    assert page.errors == []


def test_what_to_do_about_an_error_is_readable_on_a_phone(live: ServiceProcess, page: Page) -> None:
    page.emulate_screen(390, 844)
    page.open(f"{live.url}/docs/errors")

    assert page.evaluate("""[...document.querySelectorAll('.errors td')].every((cell) => {
        const { left, right } = cell.getBoundingClientRect();
        return left >= 0 && right <= innerWidth;
    })""")
