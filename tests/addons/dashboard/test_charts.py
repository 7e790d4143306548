"""The charts of a stream, and those of all streams, in a real browser."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.test_operations import advance, click, confirm
from tests.addons.dashboard.test_page import open_page, post, stream, wait_for_step
from tests.graphs import wave, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
__all__ = ["stream"]  # the fixture

SAVED = """(() => {
    globalThis.saved = [];
    const create = URL.createObjectURL;
    URL.createObjectURL = (blob) => (saved.push(blob), create(blob));
})()"""


@pytest.fixture(scope="module")
def live() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "wave", wave)
        with service_process(Path(name) / "models", Path(name) / "data") as one:
            yield one


def open_live(page: Page, live: ServiceProcess, stream: str, to: int) -> None:
    """Open a stream, and advance it while the page is watching."""
    advance(live, stream, to=1)
    open_page(page, live, stream, model="wave")
    wait_for_step(page, stream, 1)
    advance(live, stream, since=1, to=to)
    wait_for_step(page, stream, to)


def choose(page: Page, select: str, value: str) -> None:
    page.evaluate(f"""(() => {{
        const select = document.getElementById({select!r});
        select.value = {value!r};
        select.dispatchEvent(new Event('change'));
    }})()""")


def test_a_stream_is_saved_as_csv(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 4)
    page.evaluate(SAVED)
    click(page, "#save-csv")
    lines = page.evaluate("saved[0].text()").splitlines()

    assert lines[0].startswith("step,time,")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert lines[4].split(",")[2] == "0.5"


def test_the_charts_are_saved_as_a_picture(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 4)
    page.evaluate(SAVED)
    click(page, "#save-png")

    page.wait_for("saved.length === 1")
    assert page.evaluate("saved[0].type") == "image/png"
    assert page.evaluate("createImageBitmap(saved[0]).then(({width}) => width)") > 300


def test_the_time_axis_shows_the_time_of_day_and_is_kept_in_the_address(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    open_live(page, live, stream, 2)
    choose(page, "axis", "time")

    assert page.evaluate("location.hash").endswith("&axis=time")
    page.open(page.evaluate("location.href"))
    assert page.wait_for("document.getElementById('axis').value") == "time"


def test_a_shorter_range_is_kept_in_the_address(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 40)
    choose(page, "last", "30")

    assert page.evaluate("location.hash").endswith("&last=30")
    page.wait_for("/last 30 timesteps/.test(document.getElementById('inputs-plot').getAttribute('aria-label'))")


def test_dragging_over_a_chart_zooms_and_can_be_left(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 40)
    page.drag("#inputs-plot .u-over", 0.5, 0.75)
    page.wait_for("!document.getElementById('unzoom').hidden")
    click(page, "#unzoom")

    assert page.wait_for("document.getElementById('unzoom').hidden")


def test_pointing_at_a_chart_shows_the_step(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 21)
    page.hover("#outputs-plot .u-over", 0.999)

    assert page.wait_for("document.getElementById('point-note').textContent").startswith("at step 21, received at")


def test_a_fork_shows_the_line_of_its_parent(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 4)
    confirm(page, "#fork", f"{stream}-b")
    wait_for_step(page, f"{stream}-b", 4)
    page.evaluate(SAVED)
    click(page, "#save-csv")

    assert [line.split(",")[0] for line in page.evaluate("saved[0].text()").splitlines()[1:]] == ["1", "2", "3", "4"]


def test_the_list_and_the_chosen_stream_show_one_step(page: Page, live: ServiceProcess, stream: str) -> None:
    open_live(page, live, stream, 9)

    assert page.evaluate("document.querySelector('[aria-selected=true] .step').textContent") == "9"
    assert re.fullmatch(r"read at [\d:.]+( [AP]M)?", page.text("#status-note"))  # without a step of its own


def test_all_streams_are_shown_with_those_that_changed_most_first(page: Page, live: ServiceProcess) -> None:
    page.open(f"{live.url}/#model=wave&view=fleet")
    page.wait_for("document.getElementById('state').textContent === 'Ready'")
    names = [f"fleet-{i}" for i in range(4)]
    for i in range(40):
        inputs = [[3.0 if name == "fleet-2" and i >= 25 else 0.5] for name in names]
        post(live, "wave/step", {"streams": names, "inputs": inputs})
    first = "document.querySelector('.cell .name')?.textContent === 'fleet-2'"
    page.wait_for(first)
    click(page, ".cell button")

    wait_for_step(page, "fleet-2", 40)
    assert page.evaluate("document.getElementById('show').value") == "streams"
