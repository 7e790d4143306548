"""What the dashboard opens: links to streams, the search over many of them, deleted ones; in a real browser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.dashboard.actions import (
    call,
    confirm,
    missing,
    open_address,
    open_page,
    post,
    row,
    wait_for_counts,
    wait_for_step,
)
from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
STREAMS = 1500
ROWS = "document.querySelectorAll('[role=option]').length"


@pytest.fixture(scope="module")
def live(models: Path) -> Iterator[ServiceProcess]:
    """A service with more streams than the page loads at once."""
    with tempfile.TemporaryDirectory(prefix="sw") as name, service_process(models, Path(name)) as one:
        for start in range(0, STREAMS, 500):
            names = [f"dev-{i:04}" for i in range(start, start + 500)]
            post(one, "wave/step", {"streams": names, "inputs": [[0.5]] * len(names)})
        yield one


def test_a_link_opens_exactly_its_stream_and_the_list_shows_it(page: Page, live: ServiceProcess) -> None:
    for stream in ("dev-1499", "dev-0150"):  # the list does not load the first one
        open_page(page, live, stream, model="wave")
        wait_for_step(page, stream, 1)

    page.wait_for("""(() => {
        const list = document.getElementById('stream-list').getBoundingClientRect();
        const row = document.querySelector('[aria-selected=true]').getBoundingClientRect();
        return row.top >= list.top - 1 && row.bottom <= list.bottom + 1;
    })()""")


def test_a_link_to_a_stream_that_does_not_exist_opens_no_other_until_its_first_timestep(
    page: Page, live: ServiceProcess
) -> None:
    open_page(page, live, "dev-9999", model="wave")

    assert missing(page).startswith("There is no stream dev-9999")
    assert page.evaluate("document.getElementById('view').hidden") is True
    page.wait_for(f"{ROWS} > 100")
    assert page.evaluate("document.querySelector('[aria-selected=true]')") is None
    post(live, "wave/streams/dev-9999/step", {"inputs": [0.5]})
    wait_for_step(page, "dev-9999", 1)


def test_a_link_that_is_followed_on_the_page_opens_its_stream(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0001", model="wave")
    wait_for_step(page, "dev-0001", 1)
    page.evaluate("location.hash = '#model=wave&stream=dev-1234'")

    wait_for_step(page, "dev-1234", 1)


def test_further_pages_of_a_search_are_loaded(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    page.wait_for(ROWS)
    page.evaluate("document.getElementById('filter').focus()")
    page.type("dev-0")
    page.wait_for(f"{ROWS} === 200")
    page.wait_for(f"""(() => {{
        const more = document.getElementById('more');
        if (!more.hidden) more.click();
        return {ROWS} === 1000;
    }})()""")

    assert page.wait_for(row("dev-0999"))


def test_the_slash_key_searches_streams_that_are_not_loaded_and_escape_clears(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    page.wait_for(f"{ROWS} > 100")
    page.press("/")
    page.type("dev-1499")
    page.wait_for(f"{ROWS} === 1 && {row('dev-1499')}")
    assert page.evaluate("location.hash").endswith("search=dev-1499")
    page.press("Escape")

    assert page.wait_for(f"{ROWS} > 100")
    assert page.evaluate("document.activeElement.id") == "filter"


def test_enter_in_the_list_moves_to_the_stream(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0003", model="wave")
    wait_for_step(page, "dev-0003", 1)
    page.evaluate("document.getElementById('stream-list').focus()")
    page.press("Enter")

    assert page.wait_for("document.activeElement.id === 'stream-name'")


def test_a_deleted_stream_is_gone_and_the_focus_moves_to_the_list(page: Page, live: ServiceProcess) -> None:
    post(live, "wave/streams/gone-1/step", {"inputs": [0.5]})
    open_page(page, live, "gone-1", model="wave")
    wait_for_step(page, "gone-1", 1)
    page.evaluate("document.getElementById('remove').focus()")
    confirm(page, "#remove")

    assert missing(page).startswith("There is no stream gone-1")
    assert call(live, "GET", "wave/streams/gone-1").status_code == 404
    assert page.wait_for("document.activeElement.id === 'stream-list'")


def test_a_stream_that_is_deleted_elsewhere_is_no_longer_shown(page: Page, live: ServiceProcess) -> None:
    post(live, "total/streams/gone-2/step", {"inputs": {"x": [1, 2]}})
    open_page(page, live, "gone-2", model="total")
    wait_for_step(page, "gone-2", 1)
    call(live, "DELETE", "total/streams/gone-2").raise_for_status()

    assert missing(page).startswith("There is no stream gone-2")


def test_rejected_requests_are_shown_with_their_reason_but_not_those_of_the_page(
    page: Page, live: ServiceProcess
) -> None:
    open_page(page, live, "dev-9998", model="wave")
    missing(page)
    wait_for_counts(page)
    page.wait_for("performance.getEntriesByType('resource').filter(e => e.name.endsWith('/dev-9998')).length >= 3")
    before = page.evaluate("performance.now()")
    assert call(live, "POST", "wave/streams/x/step", json={"inputs": [1, 2, 3]}).status_code == 422
    page.wait_for(
        f"performance.getEntriesByType('resource').some(e => e.name.endsWith('/metrics') && e.startTime > {before})"
    )

    page.wait_for("!document.getElementById('refusals').hidden && document.querySelector('.refusal')")
    assert page.text(".refusal").split("\n")[:3] == ["1", "bad_input", "An input does not fit the model"]
    codes = page.evaluate("[...document.querySelectorAll('.refusal a')].map(link => link.textContent)")
    assert codes == ["bad_input"]


def test_a_chart_without_inputs_has_the_reason(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0004", model="wave")
    wait_for_step(page, "dev-0004", 1)

    reason = page.wait_for("document.getElementById('inputs-note').textContent")
    assert reason == "drawn from the next timestep on: the service keeps states, not inputs"
    assert page.evaluate("getComputedStyle(document.querySelector('#inputs-plot canvas')).visibility") == "hidden"
    post(live, "wave/streams/dev-0004/step", {"inputs": [0.5]})
    wait_for_step(page, "dev-0004", 2)
    page.wait_for("!document.getElementById('inputs-note').textContent")
    assert page.evaluate("getComputedStyle(document.querySelector('#inputs-plot canvas')).visibility") == "visible"


# -------------------------------------------------------------------- a phone

AT_THE_STREAM = "Math.abs(document.getElementById('view').getBoundingClientRect().top) < 60"


def test_a_tap_on_a_phone_scrolls_to_the_stream(page: Page, live: ServiceProcess) -> None:
    page.emulate_screen(390, 844)
    open_page(page, live, "dev-0003", model="wave")
    page.wait_for(f"{ROWS} > 5")
    page.click("[role=option]:nth-child(5)")

    assert page.wait_for(AT_THE_STREAM)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_all_streams_are_above_the_list_on_a_phone_and_a_tap_on_a_chart_scrolls_to_its_stream(
    page: Page, live: ServiceProcess
) -> None:
    page.emulate_screen(390, 844)
    open_address(page, live, "#model=wave&view=fleet")
    post(live, "wave/streams/dev-0150/step", {"inputs": [0.5]})
    page.wait_for(f"!document.getElementById('fleet').hidden && {ROWS} > 150 && document.querySelector('.cell button')")
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert page.evaluate(f"{top.format('#fleet')} < {top.format('.streams')}")
    page.click(".cell button")

    assert page.wait_for(AT_THE_STREAM)
    assert page.evaluate("document.getElementById('stream-name').textContent") == "dev-0150"
