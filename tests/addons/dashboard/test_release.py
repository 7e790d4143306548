"""The release card of the dashboard, in a real browser, with a real service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.addons.dashboard.actions import accept_dialog, call, confirm, get, open_page, post, wait_for_step
from tests.addons.dashboard.browser import Page
from tests.graphs import fold, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
MODELS = [f"pump{i}" for i in range(4)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("models")
    for model in MODELS:
        write_model(folder, model, lambda: fold(3), version=1)
        write_model(folder, model, lambda: fold(5), version=2)
    with tempfile.TemporaryDirectory(prefix="sw") as short, service_process(folder, Path(short)) as one:
        yield one


@pytest.fixture
def model() -> str:
    return MODELS.pop()


def start(live: ServiceProcess, model: str, **more: Any) -> None:
    """Pin version 1 and try version 2."""
    body = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 100, **more}
    call(live, "PUT", f"{model}/release", json=body).raise_for_status()


def step(live: ServiceProcess, model: str, stream: str, x: int = 1) -> None:
    post(live, f"{model}/streams/{stream}/step", {"inputs": [x]})


def facts(page: Page, words: str) -> str:
    """Wait until the card's sentence has these words, and return it."""
    found = "document.getElementById('release-facts').textContent"
    return str(page.wait_for(f"!document.getElementById('release').hidden && {found}.includes({words!r}) && {found}"))


def open_release(page: Page, live: ServiceProcess, model: str) -> None:
    start(live, model)
    open_page(page, live, model=model)
    facts(page, "version 2 is tried: shadow")


def versions(page: Page, fact: str) -> list[str]:
    """Wait until a fact about the rows of the versions holds, and return their texts."""
    rows = "[...document.querySelectorAll('#release-versions .version')].map(row => row.innerText)"
    return list(page.wait_for(f"(rows => {fact} && rows)({rows})"))


def test_versions_streams_and_the_share_are_shown(page: Page, live: ServiceProcess, model: str) -> None:
    step(live, model, "s")
    start(live, model, mode="ramp", percent=25)
    open_page(page, live, model=model)

    assert "version 1 is current" in facts(page, "version 2 is tried: ramp")
    assert page.text("#release-share") == "25% of the streams"
    assert page.evaluate("document.getElementById('release-percent').value") == 25
    rows = versions(page, "rows.some(row => /1 stream$/.test(row))")
    assert [row.split("\n")[:2] for row in rows] == [["Version 1", "current"], ["Version 2", "ramping"]]


def test_the_comparison_is_shown_with_the_streams_that_differ_most_which_can_be_chosen(
    page: Page, live: ServiceProcess, model: str
) -> None:
    open_release(page, live, model)
    page.wait_for("document.getElementById('candidate-note').textContent || document.getElementById('view').hidden")
    for x, stream in ((1, "quiet"), (100, "loud")):
        for _ in range(2):
            step(live, model, stream, x)
    page.wait_for("document.getElementById('release-steps').textContent.startsWith('4 timesteps')")
    cells = page.evaluate("[...document.querySelectorAll('#release-outputs tr > *')].map(cell => cell.textContent)")
    compared = get(live, f"{model}/release")["compared"]["outputs"]["y"]
    assert (cells[0], float(cells[1])) == ("y", compared["max_abs"])
    assert compared["max_abs"] == (5 * 101 + 101) - (3 * 101 + 101)  # of `loud` after two timesteps

    names = "[...document.querySelectorAll('#release-streams button')].map(one => one.textContent.split(' ')[0])"
    assert page.wait_for(f"{names}.length === 2 && {names}") == ["loud", "quiet"]
    page.click("#release-streams li:last-child button")
    wait_for_step(page, "quiet", 2)
    assert page.text("#candidate-note") == "dotted: the candidate, version 2"
    assert page.errors == []


def test_a_promotion_is_confirmed_with_a_reason_unless_the_release_was_changed_meanwhile(
    page: Page, live: ServiceProcess, model: str
) -> None:
    open_release(page, live, model)
    page.click("#promote")
    page.wait_for("document.getElementById('ask').open")
    asked = page.text("#ask-title")
    start(live, model, percent=99)
    accept_dialog(page)
    page.wait_for("document.getElementById('ask-problem').textContent.includes('revision')")
    assert get(live, f"{model}/release")["ended"] is None

    page.click("#ask-no")
    page.wait_for("document.getElementById('release-share').textContent === '99% of the streams'")
    confirm(page, "#promote", "better on every pump")
    assert asked == "Promote version 2?"
    assert "version 2 is current" in facts(page, "version 2 was promoted: better on every pump")
    assert page.evaluate("document.getElementById('promote').hidden && document.getElementById('abort').hidden")
    assert get(live, f"{model}/release")["ended"]["why"] == "better on every pump"


def test_an_abort_needs_no_reason(page: Page, live: ServiceProcess, model: str) -> None:
    open_release(page, live, model)
    confirm(page, "#abort")

    assert "version 1 is current" in facts(page, "version 2 was aborted")
    assert get(live, f"{model}/release")["ended"]["why"] is None
