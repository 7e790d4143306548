"""What the page shows of a release that is judged by the truth, and what stays in view beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.dashboard.actions import call, get, open_page, post, wait_for_step
from tests.addons.dashboard.browser import Page
from tests.exactly_once.test_learned import timesteps, write_learning_model
from tests.forecasters import new_version, old_version, walks
from tests.graphs import write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
N = 4 * 29


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A release whose candidate is better in vibration and worse in rpm, after 30 timesteps of four streams."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "pump", old_version, version=1)
    write_model(folder, "pump", new_version, version=2)
    write_learning_model(folder)
    with tempfile.TemporaryDirectory(prefix="sw") as short, service_process(folder, Path(short)) as one:
        body = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 100}
        call(one, "PUT", "pump/release", json=body).raise_for_status()
        for n, rows in enumerate(walks(4, 30).tolist()):
            post(one, f"pump/streams/s{n}/steps", {"inputs": rows})
        yield one


def test_the_errors_are_those_of_the_release(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="pump")
    rows = (
        "[...document.querySelectorAll('#release-errors tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    found = page.wait_for(f"(rows => rows.length === 2 && rows.every(row => row[5] === '{N}') && rows)({rows})")

    released = get(live, "pump/release")["compared"]["error"]["next"]
    for (name, current, candidate, ratio, interval, _, verdict), label, expected in zip(
        found, ("vibration", "rpm"), ("better", "worse"), strict=True
    ):
        of = released[label]
        assert (name, verdict) == (f"next[{label}]", expected)
        assert [float(text) for text in (current, candidate, ratio)] == pytest.approx(
            [of["current"], of["candidate"], of["ratio"]], rel=1e-2
        )
        assert [float(text) for text in interval.split(" to ")] == pytest.approx([of["low"], of["high"]], rel=1e-2)


def test_a_stream_and_its_chart_are_on_the_first_screen_and_the_release_is_one_click_away(
    page: Page, live: ServiceProcess
) -> None:
    page.emulate_screen(1440, 1000, mobile=False)
    open_page(page, live, "s1", model="pump")
    post(live, "pump/streams/s1/step", {"inputs": [3.0, 3000.0]})
    wait_for_step(page, "s1", 31)
    link = "[...document.querySelectorAll('#card-links button')].find(one => one.textContent.startsWith('Release'))"
    page.wait_for(link)
    bottoms = [
        page.evaluate(f"document.querySelector('{one}').getBoundingClientRect().bottom + scrollY")
        for one in ("#stream-list [role=option]", "#outputs-plot", "#inputs-plot")
    ]
    page.evaluate(f"{link}.click()")

    assert max(bottoms) <= 1000
    assert page.wait_for("document.getElementById('release').getBoundingClientRect().top < innerHeight")


def test_each_unit_has_an_axis_of_its_own(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "axes", model="pump")
    post(live, "pump/streams/axes/step", {"inputs": [3.0, 3000.0]})
    wait_for_step(page, "axes", 1)

    assert page.evaluate("document.querySelectorAll('#inputs-plot .u-axis').length") == 3  # time, mm/s, 1/min


def test_what_stages_have_learned_is_drawn(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, "a", model="machine")
    post(live, "machine/streams/a/step", {"inputs": {"x": [1.0, 1.0]}})
    wait_for_step(page, "a", 1)
    rows = [[None if value != value else value for value in row] for row in timesteps(40).tolist()]  # noqa: PLR0124
    post(live, "machine/streams/a/steps", {"inputs": {"x": rows}})
    wait_for_step(page, "a", 41)
    note = page.wait_for("document.getElementById('coverage-note').textContent")
    page.wait_for("!document.getElementById('weights').hidden")

    n = sum(row[0] is not None for row in rows[1:])
    assert str(note).startswith("interval of y: ")
    assert str(note).endswith(f"% of {n} truths inside")
    names = page.evaluate("[...document.querySelectorAll('#weights-legend .series-name')].map(one => one.textContent)")
    assert names == ["h 0", "h 1"]
    dashed = "[...document.querySelectorAll('#outputs-legend .swatch.dashed')].length"
    assert page.evaluate(dashed) == 6  # low, high, two thresholds; and the numbers of `exceeds`, beyond six colours
    assert [
        one for one in page.errors if "Failed to load resource" not in one
    ] == []  # of a stream that is not there yet
