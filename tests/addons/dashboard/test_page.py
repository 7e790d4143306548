"""The dashboard in a real browser, with a real service."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from stepwell.addons.demo.recordings import MODELS, Recordings
from tests.addons.dashboard.browser import Page
from tests.graphs import total, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser
RECORDINGS = Recordings.load()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, and a running sum whose outputs are no probabilities."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(MODELS / "activity.onnx", folder)
    write_model(folder, "total", total)
    return folder


@pytest.fixture(scope="module")
def live(models: Path) -> Iterator[ServiceProcess]:
    """A service for all tests of this file; each uses its own streams."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder, service_process(models, Path(folder)) as one:
        yield one


@pytest.fixture
def own(models: Path, short_path: Path) -> Iterator[ServiceProcess]:
    """A service for one test alone."""
    with service_process(models, short_path) as one:
        yield one


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id for one test alone."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name.removeprefix("test_"))


def send(live: ServiceProcess, stream: str, timesteps: int = 1, *, recording: int = 0) -> None:
    """Send the first timesteps of a recording as single steps."""
    for row in RECORDINGS.x[recording, :timesteps]:
        post(live, f"activity/streams/{stream}/step", {"inputs": {"motion": row.tolist()}})


def post(live: ServiceProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx2.post(f"{live.url}/v1/models/{path}", json=body, trust_env=False, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def open_page(page: Page, live: ServiceProcess, stream: str | None = None, *, model: str = "activity") -> None:
    """Open the page, optionally at a stream, and wait until it has connected."""
    page.open(f"{live.url}/#model={model}" + (f"&stream={stream}" if stream else ""))
    page.wait_for("document.getElementById('state').textContent === 'Ready'")


def wait_for_step(page: Page, stream: str, step: int) -> None:
    """Wait until the page shows that a stream has reached a step."""
    page.wait_for(f"""!document.getElementById('view').hidden
        && document.getElementById('stream-name').textContent === '{stream}'
        && document.getElementById('stream-facts').textContent.split(',')[0] === 'step {step}'""")


def wait_for_counts(page: Page) -> None:
    """Wait until the page has read the service's counters: it shows what was rejected after that."""
    page.wait_for("document.getElementById('replays').textContent !== '–'")


def shown(page: Page, stream: str) -> str:
    """Wait until a stream is listed, and return the text of its row."""
    return str(page.wait_for(row(stream)))


def row(stream: str) -> str:
    return f"""[...document.querySelectorAll('[role=option]')].find(o => o.dataset.name === '{stream}')?.textContent"""


def test_a_stream_is_listed_with_its_first_prediction(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    send(live, stream)

    assert page.wait_for(f"/%/.test({row(stream)})")


def test_the_step_of_a_stream_is_updated(page: Page, live: ServiceProcess, stream: str) -> None:
    send(live, stream)
    open_page(page, live, stream)
    wait_for_step(page, stream, 1)

    send(live, stream, 6)
    wait_for_step(page, stream, 7)


def test_the_label_is_the_most_probable_class_of_the_last_prediction(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    post(live, f"activity/streams/{stream}/reset", {})
    open_page(page, live, stream)
    send(live, stream, 30, recording=15)
    wait_for_step(page, stream, 30)

    best = RECORDINGS.classes[int(np.argmax(RECORDINGS.expected[15, 29]))]
    assert page.text("#verdict-name") == best


def test_the_legend_shows_the_last_inputs_by_their_names(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}/reset", {})
    open_page(page, live, stream)
    send(live, stream, 3, recording=15)
    wait_for_step(page, stream, 3)

    name, value = page.text("#inputs-legend li").split("\n")
    assert name == "accel x"
    assert float(value) == pytest.approx(float(RECORDINGS.x[15, 2, 0]), abs=0.01)


def test_both_charts_are_painted(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}/reset", {})
    open_page(page, live, stream)
    send(live, stream, 20, recording=15)
    wait_for_step(page, stream, 20)

    for plot in ("#inputs-plot", "#outputs-plot"):
        page.wait_for(f"""(() => {{
            const canvas = document.querySelector('{plot} canvas');
            const {{data}} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            const lines = [...document.querySelectorAll('{plot} ~ .legend .swatch')]
                .map(swatch => getComputedStyle(swatch).backgroundColor.match(/\\d+/g).map(Number));
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4) seen.add((data[i] << 16) + (data[i + 1] << 8) + data[i + 2]);
            return lines.length > 3 && lines.every(([r, g, b]) => seen.has((r << 16) + (g << 8) + b));
        }})()""")


def test_the_filter_keeps_streams_whose_id_contains_the_text(page: Page, live: ServiceProcess) -> None:
    send(live, "pump-1")
    send(live, "fan-1")
    open_page(page, live)
    shown(page, "fan-1")
    page.evaluate("document.getElementById('filter').focus()")
    page.type("PUMP")

    assert page.wait_for(f"!({row('fan-1')}) && {row('pump-1')}")


def test_arrow_keys_select_the_next_stream(page: Page, live: ServiceProcess) -> None:
    send(live, "arrow-1")
    send(live, "arrow-2")
    open_page(page, live, "arrow-1")
    page.evaluate("document.getElementById('filter').value = 'arrow'")
    shown(page, "arrow-2")
    page.wait_for("document.querySelectorAll('[role=option]').length === 2")
    page.evaluate("document.getElementById('stream-list').focus()")
    page.press("ArrowDown")

    assert page.wait_for("document.querySelector('[aria-selected=true]')?.dataset.name") == "arrow-2"
    assert page.evaluate("location.hash") == "#model=activity&stream=arrow-2"


def test_a_paused_page_does_not_change_and_then_catches_up(page: Page, live: ServiceProcess, stream: str) -> None:
    send(live, stream)
    open_page(page, live, stream)
    send(live, stream)
    wait_for_step(page, stream, 2)
    page.evaluate("document.getElementById('pause').click()")
    send(live, stream, 5)
    page.wait_for("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
    assert page.text("#stream-facts") == "step 2"

    page.evaluate("document.getElementById('pause').click()")
    wait_for_step(page, stream, 7)


def test_the_command_of_the_empty_page_creates_the_first_stream(page: Page, own: ServiceProcess) -> None:
    open_page(page, own)
    page.wait_for("!document.getElementById('empty').hidden")
    _, url, _, header, _, body = shlex.split(page.text("#curl-line").replace("\\\n", " "))
    answer = httpx2.post(url, content=body, headers=dict([header.split(": ")]), trust_env=False, timeout=30)

    assert answer.status_code == 200, answer.text
    assert shown(page, "first")


def test_outputs_that_are_no_probabilities_have_no_label(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live, model="total")
    post(live, f"total/streams/{stream}/step", {"inputs": {"x": [2.5, 4]}})

    assert page.wait_for(f"/2[.]500/.test({row(stream)})")
    assert page.evaluate("document.getElementById('verdict').hidden") is True


def test_a_chunk_is_shown_as_its_timesteps(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}/reset", {})
    open_page(page, live, stream)
    post(live, f"activity/streams/{stream}/steps", {"inputs": {"motion": RECORDINGS.x[15, :40].tolist()}})

    wait_for_step(page, stream, 40)


def test_a_reset_restarts_the_steps(page: Page, live: ServiceProcess, stream: str) -> None:
    send(live, stream, 5)
    open_page(page, live, stream)
    send(live, stream)
    wait_for_step(page, stream, 6)

    post(live, f"activity/streams/{stream}/reset", {})
    send(live, stream)
    wait_for_step(page, stream, 1)


def test_streams_that_exist_when_the_page_opens_are_listed(page: Page, live: ServiceProcess, stream: str) -> None:
    send(live, stream)
    open_page(page, live)

    assert "idle" in shown(page, stream)


def test_the_page_reconnects_after_the_service_was_restarted(page: Page, own: ServiceProcess) -> None:
    open_page(page, own)
    send(own, "before")
    shown(page, "before")
    own.kill()
    assert page.wait_for("/lost|not respond/.test(document.getElementById('state').textContent)")

    own.start()
    page.wait_for("document.getElementById('state').textContent === 'Ready'")
    send(own, "after")
    assert shown(page, "after")


def test_the_page_asks_for_a_key_if_the_service_requires_one(page: Page, models: Path, short_path: Path) -> None:
    keys = short_path / "keys.json"
    digest = hashlib.sha256(b"sesame").hexdigest()
    scopes = ["step", "read", "models", "metrics"]
    keys.write_text(json.dumps({"keys": [{"id": "me", "sha256": digest, "tenant": "t", "scopes": scopes}]}))
    with service_process(models, short_path, "--api-keys-file", str(keys)) as one:
        page.open(one.url)
        page.wait_for("!document.getElementById('key-form').hidden")
        for key, selector in (
            ("wrong", "#key-form:not([hidden]) #key-problem:not(:empty)"),
            ("sesame", "#empty:not([hidden])"),
        ):
            page.evaluate("document.getElementById('key').focus()")
            page.type(key)
            page.press("Enter")
            assert page.wait_for(f"document.querySelector('{selector}')?.innerText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_errors_and_requests_nothing_from_elsewhere(
    page: Page, live: ServiceProcess, stream: str, scheme: str
) -> None:
    page.prefer_color_scheme(scheme)
    post(live, f"activity/streams/{stream}/reset", {})
    open_page(page, live, stream)
    send(live, stream, 10)
    wait_for_step(page, stream, 10)

    assert page.errors == []
    assert {url.split("/")[2] for url in page.requested} == {f"127.0.0.1:{live.port}"}
