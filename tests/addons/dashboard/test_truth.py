"""What the page shows of a release that is judged by the truth, and what stays in view beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.test_page import open_page, post, wait_for_step
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
    with tempfile.TemporaryDirectory(prefix="sw") as short, service_process(folder, Path(short)) as one:
        body = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 100}
        assert httpx2.put(f"{one.url}/v1/models/pump/release", json=body, trust_env=False, timeout=30).is_success
        for n, rows in enumerate(walks(4, 30).tolist()):
            post(one, f"pump/streams/s{n}/steps", {"inputs": rows})
        yield one


def errors(live: ServiceProcess) -> dict[str, Any]:
    found = httpx2.get(f"{live.url}/v1/models/pump/release", trust_env=False, timeout=30).json()
    return dict(found["compared"]["error"]["next"])


def test_the_errors_are_those_of_the_release(page: Page, live: ServiceProcess) -> None:
    open_page(page, live, model="pump")
    rows = "[...document.querySelectorAll('#release-errors tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    found = page.wait_for(f"(rows => rows.length === 2 && rows.every(row => row[5] === '{N}') && rows)({rows})")

    released = errors(live)
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
