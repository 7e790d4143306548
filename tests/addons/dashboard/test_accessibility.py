"""The pages pass the automatic checks of axe-core, in a real browser, light and dark."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell.addons.demo.recordings import MODELS
from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.test_operations import click
from tests.addons.dashboard.test_page import open_page, send, wait_for_step
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
AXE = "axe-core@4"
FOUND = """axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations
    .filter(({impact}) => impact === 'serious' || impact === 'critical')
    .map(({id, nodes}) => `${id}: ${nodes.map(({target}) => target.join(' ')).join(', ')}`))"""


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, installed with npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm: apt-get install npm")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", AXE]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install {AXE} did not end within 90 s: is there a network?")
    if done.returncode:
        pytest.skip(f"npm install {AXE} failed: {done.stderr[-300:]}")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.fixture(scope="module")
def live() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="sw") as name, service_process(MODELS, Path(name)) as one:
        send(one, "pump-1", 3)
        yield one


def serious(page: Page, axe: str) -> list[str]:
    page.evaluate(f"{axe}; null")
    return list(page.evaluate(FOUND))


@pytest.mark.many
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("dialog", [None, "#reset", "#keys-open"])
def test_a_stream_has_no_serious_finding(
    page: Page, live: ServiceProcess, axe: str, scheme: str, dialog: str | None
) -> None:
    page.prefer_color_scheme(scheme)
    open_page(page, live, "pump-1")
    wait_for_step(page, "pump-1", 3)
    if dialog:
        click(page, dialog)
        page.wait_for("document.querySelector('dialog[open]')")

    assert serious(page, axe) == []


@pytest.mark.parametrize(
    "address",
    [
        "#model=activity&view=fleet",
        "#model=activity&view=compare&compare=pump-1,pump-2",
        "#model=activity&stream=none",
        "#model=none",
    ],
)
def test_the_other_views_have_no_serious_finding(page: Page, live: ServiceProcess, axe: str, address: str) -> None:
    page.open(f"{live.url}/{address}")
    page.wait_for("document.getElementById('state').textContent === 'Ready'")

    assert serious(page, axe) == []


@pytest.mark.parametrize("path", ["docs", "docs/errors"])
def test_the_pages_of_the_api_have_no_serious_finding(page: Page, live: ServiceProcess, axe: str, path: str) -> None:
    page.open(f"{live.url}/{path}")
    page.wait_for("document.querySelector('main').children.length > 1")

    assert serious(page, axe) == []
