"""What the dashboard opens: links to streams, the search over many of them, deleted ones; in a real browser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.test_operations import click, confirm, shown_message
from tests.addons.dashboard.test_page import open_page, post, row, shown, wait_for_counts, wait_for_step
from tests.graphs import total, wave, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
STREAMS = 1500


@pytest.fixture(scope="module")
def live() -> Iterator[ServiceProcess]:
    """A service with more streams than the page loads at once."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "wave", wave)
        write_model(Path(name) / "models", "total", total)
        with service_process(Path(name) / "models", Path(name) / "data") as one:
            for start in range(0, STREAMS, 500):
                names = [f"dev-{i:04}" for i in range(start, start + 500)]
                post(one, "wave/step", {"streams": names, "inputs": [[0.5]] * len(names)})
            yield one


def search(page: Page, text: str) -> None:
    page.wait_for("document.querySelectorAll('[role=option]').length")
    page.evaluate("document.getElementById('filter').focus()")
    page.type(text)


def missing(page: Page) -> str:
    """Wait until the page shows that there is no such stream, and return its words."""
    shown = "!document.getElementById('missing').hidden && document.getElementById('missing').innerText"
    return str(page.wait_for(shown))


@pytest.mark.parametrize("stream", ["dev-0001", "dev-0777", "dev-1499"])
def test_a_link_opens_exactly_its_stream(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live, stream, model="wave")

    wait_for_step(page, stream, 1)


def test_a_link_to_a_stream_that_does_not_exist_opens_no_other(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-9999", model="wave")

    assert missing(page).startswith("There is no stream dev-9999")
    assert page.evaluate("document.getElementById('view').hidden") is True
    page.wait_for("document.querySelectorAll('[role=option]').length > 100")
    assert page.evaluate("document.querySelector('[aria-selected=true]')") is None


def test_a_stream_that_did_not_exist_appears_with_its_first_timestep(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "late-1", model="wave")
    missing(page)
    post(live, "wave/streams/late-1/step", {"inputs": [0.5]})

    wait_for_step(page, "late-1", 1)


def test_a_link_to_a_model_that_does_not_exist_opens_no_other(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0001", model="pump")
    page.wait_for("document.getElementById('empty-title').textContent === 'There is no model pump'")

    assert page.evaluate("document.getElementById('view').hidden") is True


def test_a_link_that_is_followed_on_the_page_opens_its_stream(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0001", model="wave")
    wait_for_step(page, "dev-0001", 1)
    page.evaluate("location.hash = '#model=wave&stream=dev-1234'")

    wait_for_step(page, "dev-1234", 1)


@pytest.mark.parametrize("stream", ["dev-0500", "dev-1499"])
def test_the_search_finds_streams_that_are_not_loaded(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live, model="wave")
    search(page, stream)

    assert shown(page, stream)
    assert page.evaluate("location.hash").endswith(f"search={stream}")


def test_a_search_without_results_says_so(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    search(page, "nothing")

    page.wait_for("/No stream's id begins with “nothing”/.test(document.getElementById('streams-note').textContent)")


def test_further_pages_of_a_search_are_loaded(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    search(page, "dev-0")
    page.wait_for("document.querySelectorAll('[role=option]').length === 200")
    page.wait_for("""(() => {
        const more = document.getElementById('more');
        if (!more.hidden) more.click();
        return document.querySelectorAll('[role=option]').length === 1000;
    })()""")

    assert page.wait_for(row("dev-0999"))


def test_the_slash_key_searches_and_escape_clears(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="wave")
    shown_rows = "document.querySelectorAll('[role=option]').length"
    page.wait_for(f"{shown_rows} > 100")
    page.press("/")
    page.type("dev-0777")
    page.wait_for(f"{shown_rows} === 1")
    page.press("Escape")

    assert page.wait_for(f"{shown_rows} > 100")
    assert page.evaluate("document.activeElement.id") == "filter"


def test_enter_in_the_list_moves_to_the_stream(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0003", model="wave")
    wait_for_step(page, "dev-0003", 1)
    page.evaluate("document.getElementById('stream-list').focus()")
    page.press("Enter")

    assert page.wait_for("document.activeElement.id === 'stream-name'")


def test_a_deleted_stream_is_gone_and_no_other_is_opened(page: Page, live: ServiceProcess) -> None:
    post(live, "wave/streams/gone-1/step", {"inputs": [0.5]})
    open_page(page, live, "gone-1", model="wave")
    wait_for_step(page, "gone-1", 1)
    confirm(page, "#remove")

    assert missing(page).startswith("There is no stream gone-1")
    assert httpx2.get(f"{live.url}/v1/models/wave/streams/gone-1", trust_env=False, timeout=30).status_code == 404


def test_a_stream_that_is_deleted_elsewhere_is_no_longer_shown(page: Page, live: ServiceProcess) -> None:
    post(live, "total/streams/gone-2/step", {"inputs": {"x": [1, 2]}})
    open_page(page, live, "gone-2", model="total")
    wait_for_step(page, "gone-2", 1)
    httpx2.delete(f"{live.url}/v1/models/total/streams/gone-2", trust_env=False, timeout=30).raise_for_status()

    assert missing(page).startswith("There is no stream gone-2")


def test_a_snapshot_can_be_deleted(page: Page, live: ServiceProcess) -> None:
    post(live, "wave/streams/kept-1/step", {"inputs": [0.5]})
    path = f"{live.url}/v1/models/wave/streams/kept-1/snapshots"
    httpx2.put(f"{path}/s", trust_env=False, timeout=30).raise_for_status()
    open_page(page, live, "kept-1", model="wave")
    wait_for_step(page, "kept-1", 1)
    click(page, "#snapshots")
    page.wait_for("document.querySelectorAll('#ask-items button').length === 2")
    click(page, "#ask-items button:last-child")
    page.wait_for("/^Delete snapshot/.test(document.getElementById('ask-title').textContent)")
    click(page, "#ask-yes")

    shown_message(page, "was deleted")
    assert httpx2.get(path, trust_env=False, timeout=30).json() == {"snapshots": []}


def test_a_tap_on_a_phone_scrolls_to_the_stream(page: Page, live: ServiceProcess) -> None:
    page.emulate_screen(390, 844)
    open_page(page, live, "dev-0003", model="wave")
    page.wait_for("document.querySelectorAll('[role=option]').length > 5")
    click(page, "[role=option]:nth-child(5)")

    assert page.wait_for("Math.abs(document.getElementById('view').getBoundingClientRect().top) < 60")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_rejected_requests_are_shown_with_their_reason(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0003", model="wave")
    wait_for_counts(page)
    refused = httpx2.post(
        f"{live.url}/v1/models/wave/streams/x/step", json={"inputs": [1, 2, 3]}, trust_env=False, timeout=30
    )
    assert refused.status_code == 422

    page.wait_for("!document.getElementById('refusals').hidden && document.querySelector('.refusal')")
    assert page.text(".refusal").split("\n")[:3] == ["1", "bad_input", "An input does not fit the model"]


def test_what_the_page_requests_of_a_missing_stream_is_no_rejected_request(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-9998", model="wave")
    missing(page)
    wait_for_counts(page)
    page.wait_for("performance.getEntriesByType('resource').filter(e => e.name.endsWith('/dev-9998')).length >= 3")
    before = page.evaluate("performance.now()")
    refused = httpx2.post(
        f"{live.url}/v1/models/wave/streams/x/step", json={"inputs": [1, 2, 3]}, trust_env=False, timeout=30
    )
    assert refused.status_code == 422
    page.wait_for(
        f"performance.getEntriesByType('resource').some(e => e.name.endsWith('/metrics') && e.startTime > {before})"
    )

    page.wait_for("document.querySelector('.refusal')")
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


def test_all_streams_are_above_the_list_on_a_phone(page: Page, live: ServiceProcess) -> None:
    page.emulate_screen(390, 844)
    page.open(f"{live.url}/#model=wave&view=fleet")
    page.wait_for("!document.getElementById('fleet').hidden && document.querySelectorAll('[role=option]').length")
    top = "document.querySelector('{}').getBoundingClientRect().top"

    assert page.evaluate(f"{top.format('#fleet')} < {top.format('.streams')}")


def test_a_tap_on_a_small_chart_on_a_phone_scrolls_to_the_stream(page: Page, live: ServiceProcess) -> None:
    page.emulate_screen(390, 844)
    page.open(f"{live.url}/#model=wave&view=fleet")
    page.wait_for("document.getElementById('state').textContent === 'Ready'")
    post(live, "wave/streams/dev-0150/step", {"inputs": [0.5]})
    page.wait_for("document.querySelectorAll('[role=option]').length > 150 && document.querySelector('.cell button')")
    click(page, ".cell button")

    assert page.wait_for("Math.abs(document.getElementById('view').getBoundingClientRect().top) < 60")
    assert page.evaluate("document.getElementById('stream-name').textContent") == "dev-0150"


def test_the_list_shows_the_row_of_the_stream_that_a_link_names(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "dev-0150", model="wave")

    page.wait_for("""(() => {
        const list = document.getElementById('stream-list').getBoundingClientRect();
        const row = document.querySelector('[aria-selected=true]').getBoundingClientRect();
        return row.top >= list.top - 1 && row.bottom <= list.bottom + 1;
    })()""")
