"""The charts of a stream, and those of all streams, in a real browser."""

from __future__ import annotations

import pytest

from tests.addons.dashboard.actions import open_address, open_live, post, wait_for_step
from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess

pytestmark = pytest.mark.browser

SAVED = """(() => {
    globalThis.saved = [];
    const create = URL.createObjectURL;
    URL.createObjectURL = (blob) => (saved.push(blob), create(blob));
})()"""


def test_a_stream_is_saved_as_csv(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 4)
    page.evaluate(SAVED)
    page.click("#save-csv")
    lines = page.evaluate("saved[0].text()").splitlines()

    assert lines[0].startswith("step,time,")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert lines[4].split(",")[2] == "0.5"


def test_the_charts_are_saved_as_a_picture(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 4)
    page.evaluate(SAVED)
    page.click("#save-png")

    page.wait_for("saved.length === 1")
    assert page.evaluate("saved[0].type") == "image/png"
    assert page.evaluate("createImageBitmap(saved[0]).then(({width}) => width)") > 300


def test_the_time_axis_and_a_shorter_range_are_kept_in_the_address(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    open_live(page, live, stream, 40)
    page.choose("axis", "time")
    page.choose("last", "30")

    assert page.evaluate("location.hash").endswith("&axis=time&last=30")
    page.wait_for("/last 30 timesteps/.test(document.getElementById('inputs-plot').getAttribute('aria-label'))")
    page.open(page.evaluate("location.href"))
    assert page.wait_for("document.getElementById('axis').value") == "time"


def test_dragging_over_a_chart_zooms_and_can_be_left(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 40)
    page.drag("#inputs-plot .u-over", 0.5, 0.75)
    page.wait_for("!document.getElementById('unzoom').hidden")
    page.click("#unzoom")

    assert page.wait_for("document.getElementById('unzoom').hidden")


def test_pointing_at_a_chart_shows_the_step(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 21)
    page.hover("#outputs-plot .u-over", 0.999)

    assert page.wait_for("document.getElementById('point-note').textContent").startswith("at step 21, received at")


def test_all_streams_are_shown_with_those_that_changed_most_first(page: Page, live: ServiceProcess) -> None:
    open_address(page, live, "#model=wave&view=fleet")
    names = [f"fleet-{i}" for i in range(4)]
    for i in range(40):
        inputs = [[3.0 if name == "fleet-2" and i >= 25 else 0.5] for name in names]
        post(live, "wave/step", {"streams": names, "inputs": inputs})
    first = "document.querySelector('.cell .name')?.textContent === 'fleet-2'"
    page.wait_for(first)
    page.click(".cell button")

    wait_for_step(page, "fleet-2", 40)
    assert page.evaluate("document.getElementById('show').value") == "streams"
