"""The drift card of the dashboard, in a real browser, with a real service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.addons.dashboard.actions import open_page, post, wait_for_step
from tests.addons.dashboard.browser import Page
from tests.addons.drift.live import normal, write_reference_model
from tests.graphs import total, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("models")
    write_reference_model(folder, "pump", normal(40, 50, 3))
    write_model(folder, "total", total)
    with tempfile.TemporaryDirectory(prefix="sw") as short, service_process(folder, Path(short)) as one:
        yield one


@pytest.mark.slow
def test_the_features_are_listed_by_their_drift(page: Page, live: ServiceProcess) -> None:
    xs = normal(20, 30, 3)
    xs[:, :, 1] += 1
    post(live, "pump/steps", {"streams": [f"s{i}" for i in range(20)], "inputs": {"x": xs.tolist()}})
    open_page(page, live, model="pump")
    rows = (
        "[...document.querySelectorAll('#drift tbody tr')].map(row => [...row.children].map(cell => cell.textContent))"
    )
    found = page.wait_for(f"!document.getElementById('drift').hidden && {rows}.length === 5 && {rows}")

    psis = {name: float(psi) for name, psi, *_ in found}
    assert list(psis.values()) == sorted(psis.values(), reverse=True)
    assert psis["x[1]"] > 0.2 > max(psis["x[0]"], psis["x[2]"])
    assert "above 0.2" in page.text("#drift .note")
    assert page.errors == []


def test_a_model_without_a_reference_and_without_a_second_version_has_no_cards(
    page: Page, live: ServiceProcess
) -> None:
    post(live, "total/streams/s/step", {"inputs": [1, 2]})
    open_page(page, live, "s", model="total")
    wait_for_step(page, "s", 1)

    assert page.evaluate("document.getElementById('drift').hidden && document.getElementById('release').hidden")
