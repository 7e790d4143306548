"""The API reference page in a real browser: every route is listed and can be called."""

from __future__ import annotations

import pytest

from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess

pytestmark = pytest.mark.browser


def test_every_route_is_listed_and_nothing_is_loaded_from_elsewhere(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")

    page.wait_for("document.querySelectorAll('main > details').length >= 15")
    assert page.errors == []
    assert {url for url in page.requested if not url.startswith(live.url)} == set()


def test_a_step_can_be_sent_from_the_page_and_copied_as_curl(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")
    page.wait_for("document.querySelector('details summary code').textContent.endsWith('/step')")
    page.evaluate("""(() => {
        const step = document.querySelector('details');
        step.open = true;
        const [model, stream] = step.querySelectorAll('.fields input');
        [model.value, stream.value] = ['total', 's'];
        step.querySelector('textarea').value = '{"inputs": [2, 3]}';
    })()""")
    page.click("details button[type=submit]")
    answer = page.wait_for("document.querySelector('.answer[data-good=yes]').textContent")
    assert answer.startswith("200\n")
    assert '"step": 1' in answer

    page.click("details .curl")
    line = page.text(".curl-line:not([hidden])")
    assert line.startswith(f"curl -X POST '{live.url}/v1/models/total/streams/s/step'")
    assert """-d '{"inputs": [2, 3]}'""" in line
    assert page.text(".answer").startswith("200")  # the line does not replace it


def test_an_untouched_example_of_each_way_to_step_works(live: ServiceProcess, page: Page) -> None:
    page.open(f"{live.url}/docs")
    for route in ("{stream}/step", "{stream}/steps", "{stream}/peek", "/{model}/step", "/{model}/steps"):
        found = f"""[...document.querySelectorAll('main > details')].find(one =>
            one.querySelector('summary').textContent.startsWith('POST') &&
            one.querySelector('code').textContent.endsWith({route!r}))"""
        page.wait_for(f"({found}).querySelector('button[type=submit]').click() ?? true")

        answer = page.wait_for(f"({found}).querySelector('.answer[data-good]')?.textContent")
        assert answer.startswith("200\n"), route


def test_the_page_of_errors_has_what_to_do_and_is_readable_on_a_phone(live: ServiceProcess, page: Page) -> None:
    page.emulate_screen(390, 844)
    page.open(f"{live.url}/docs/errors#seq_gap")

    assert "Send the timesteps from expected on" in page.text("#seq_gap")
    assert page.text(".controls a:last-child") == "Dashboard"
    assert page.errors == []
    assert page.evaluate("""[...document.querySelectorAll('.errors td')].every((cell) => {
        const { left, right } = cell.getBoundingClientRect();
        return left >= 0 && right <= innerWidth;
    })""")
