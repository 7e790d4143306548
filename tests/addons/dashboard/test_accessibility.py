"""The pages pass the automatic checks of axe-core, in a real browser, light and dark."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.addons.dashboard.actions import open_address, open_at, send
from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess

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


def serious(page: Page, axe: str) -> list[str]:
    page.evaluate(f"{axe}; null")
    return list(page.evaluate(FOUND))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_stream_and_its_dialogs_have_no_serious_finding(
    page: Page, live: ServiceProcess, axe: str, scheme: str
) -> None:
    send(live, scheme, 3)
    page.prefer_color_scheme(scheme)
    for dialog in (None, "#reset", "#keys-open"):
        open_at(page, live, scheme, 3, model="activity")
        if dialog:
            page.click(dialog)
            page.wait_for("document.querySelector('dialog[open]')")
        assert serious(page, axe) == [], dialog


def test_the_other_views_have_no_serious_finding(page: Page, live: ServiceProcess, axe: str) -> None:
    for address in ("activity&view=fleet", "activity&view=compare&compare=pump-1,b", "activity&stream=none", "none"):
        open_address(page, live, f"#model={address}")
        assert serious(page, axe) == [], address


def test_the_pages_of_the_api_have_no_serious_finding(page: Page, live: ServiceProcess, axe: str) -> None:
    for path in ("docs", "docs/errors"):
        page.open(f"{live.url}/{path}")
        page.wait_for("document.querySelector('main').children.length > 1")
        assert serious(page, axe) == [], path
