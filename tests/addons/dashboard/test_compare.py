"""Several streams in one chart of the dashboard, and the ground truth beside predictions; in a real browser."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.addons.dashboard.actions import (
    advance,
    get,
    open_address,
    open_at,
    open_page,
    post,
    wait_for_step,
)
from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.conftest import FILES
from tests.processes import ServiceProcess

pytestmark = pytest.mark.browser
CONTRAST = 3.0  # of graphics on their background: WCAG 2.1, success criterion 1.4.11
LINES = "[...document.querySelectorAll('#compare-legend .series-name')].map(({textContent}) => textContent)"
VALUES = "[...document.querySelectorAll('#compare-legend .series-value')].map(({textContent}) => Number(textContent))"


# -------------------------------------------------------------------- comparison


def test_streams_that_are_selected_in_the_list_are_compared(page: Page, live: ServiceProcess, stream: str) -> None:
    names = [f"{stream}-{which}" for which in "ab"]
    advance(live, names[0], to=1, x=[0.5])
    open_page(page, live, names[0], model="wave")
    wait_for_step(page, names[0], 1)
    post(live, f"wave/streams/{names[0]}/reset", {})
    for name, x in zip(names, (0.5, -0.5), strict=True):
        advance(live, name, to=4, x=[x])
    wait_for_step(page, names[0], 4)
    page.choose("show", "compare")
    page.evaluate(f"document.querySelector('[data-name={names[1]}]').click()")

    assert page.wait_for(f"{LINES}.length === 2 && {LINES}") == names
    page.wait_for("document.querySelectorAll('.compared').length === 2")
    expected = [get(live, f"wave/streams/{name}?outputs=true")["outputs"]["y"][0] for name in names]
    page.wait_for(f"{VALUES}.every((value, i) => Math.abs(value - {expected}[i]) < 0.001)")
    assert page.evaluate("location.hash").endswith(f"compare={'%2C'.join(names)}")
    assert page.errors == []


def test_a_link_shows_the_comparison_that_it_was_copied_from(page: Page, live: ServiceProcess, stream: str) -> None:
    names = [f"{stream}-{which}" for which in "abc"]
    for name in names:
        advance(live, name, to=1)
    open_address(page, live, f"#model=wave&view=compare&compare={','.join(names)}&field=inputs:x:0&align=step")
    for i, name in enumerate(names):
        advance(live, name, since=1, to=3, x=[i + 0.25])

    page.wait_for(f"String({VALUES}) === '0.25,1.25,2.25'")
    assert page.evaluate(LINES) == names
    page.click("#compare-streams button")
    assert page.wait_for(f"{LINES}.length === 2 && {LINES}") == names[1:]


def test_a_ninth_stream_is_not_added(page: Page, live: ServiceProcess, stream: str) -> None:
    names = [f"{stream}-{i}" for i in range(9)]
    for name in names:
        advance(live, name, to=1)
    page.open(f"{live.url}/#model=wave&view=compare&compare={','.join(names[:8])}")
    page.wait_for(f"document.querySelector('[data-name={names[8]}]')")
    page.evaluate(f"document.querySelector('[data-name={names[8]}]').click()")

    assert page.wait_for("/^At most 8/.test(document.getElementById('compare-note').textContent)")
    assert page.evaluate(LINES) == names[:8]


def test_the_colours_of_compared_streams_stand_out_from_the_panel_and_their_lines_differ_without_colour() -> None:
    css = (FILES / "style.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        [panel] = re.findall(r"--panel: (#\w{6})", scheme)
        colours = re.findall(r"--cmp-\d: (#\w{6})", scheme)
        assert len(set(colours)) == 6
        assert min(contrast(colour, panel) for colour in colours) > CONTRAST
    [dashes] = re.findall(r"const DASHES = \[(.*)\];", (FILES / "charts" / "plot.js").read_text())
    patterns = re.findall(r"undefined|\[[^\]]*\]", dashes)
    assert len(set(patterns)) == 4
    assert len({(i % 6, i % 4) for i in range(8)}) == 8


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours `#rrggbb`. Source: WCAG 2.1, relative luminance."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# -------------------------------------------------------------------- ground truth


def test_the_next_input_is_shown_as_what_came_and_the_error_over_time(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    inputs = [0.5, -0.25, 1.0, 0.0, 0.75]
    open_page(page, live, stream, model="wave")
    found = [post(live, f"wave/streams/{stream}/step", {"inputs": [x]})["outputs"]["y"][0] for x in inputs]
    wait_for_step(page, stream, 5)

    errors = [abs(y - x) for y, (_, x) in zip(found, pairwise(inputs), strict=False)]
    mean = page.wait_for("/mean (.*) over 4 predictions/.exec(document.getElementById('error-note').textContent)?.[1]")
    assert float(mean) == pytest.approx(sum(errors) / 4, abs=0.001)
    assert page.text("#truth-note") == "wide: ground truth, from the next timestep"
    page.choose("truth", "off")
    assert page.wait_for("document.getElementById('error').hidden")
    assert page.evaluate("location.hash").endswith("truth=off")


def test_ground_truth_from_a_file_belongs_to_its_stream(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=3)
    advance(live, f"{stream}-b", to=3)
    open_at(page, live, stream, 3)
    y = get(live, f"wave/streams/{stream}?outputs=true")["outputs"]["y"][0]
    page.evaluate(f"""(() => {{
        const files = new DataTransfer();
        files.items.add(new File(['y,step\\n{y + 0.5},3\\n'], 'measured.csv', {{type: 'text/csv'}}));
        document.getElementById('truth-file').files = files.files;
        document.getElementById('truth-file').dispatchEvent(new Event('change'));
    }})()""")

    page.wait_for("document.getElementById('error-note').textContent === 'mean 0.500 over 1 prediction'")
    assert page.text("#truth-note") == "wide: ground truth, from measured.csv"
    assert page.text("#message") == f"1 row of ground truth was read for {stream}."
    page.evaluate(f"document.querySelector('[data-name={stream}-b]').click()")
    wait_for_step(page, f"{stream}-b", 3)
    assert page.wait_for("document.getElementById('error').hidden")
