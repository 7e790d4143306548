"""The dashboard in a real browser, with a real service."""

from __future__ import annotations

import shlex

import httpx2
import numpy as np
import pytest

from tests.addons.dashboard.actions import READY, RECORDINGS, open_page, post, row, send, shown, wait_for_step
from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess

pytestmark = pytest.mark.browser


def test_a_stream_is_listed_with_its_first_prediction(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    send(live, stream)

    assert page.wait_for(f"/%/.test({row(stream)})")


def test_a_stream_is_drawn_with_its_label_its_last_inputs_and_each_line(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    post(live, f"activity/streams/{stream}/reset", {})
    page.prefer_color_scheme("dark")
    open_page(page, live, stream)
    send(live, stream, 30, recording=15)
    wait_for_step(page, stream, 30)

    assert page.text("#verdict-name") == RECORDINGS.classes[int(np.argmax(RECORDINGS.expected[15, 29]))]
    name, value = page.text("#inputs-legend li").split("\n")
    assert name == "accel x"
    assert float(value) == pytest.approx(float(RECORDINGS.x[15, 29, 0]), abs=0.01)
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
    assert page.errors == []
    assert {url.split("/")[2] for url in page.requested} == {f"127.0.0.1:{live.port}"}


def test_the_filter_keeps_streams_whose_id_contains_the_text(page: Page, live: ServiceProcess) -> None:
    send(live, "pump-1")
    send(live, "fan-1")
    open_page(page, live)
    assert "idle" in shown(page, "fan-1")
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


def test_a_reset_restarts_the_steps_and_a_chunk_is_shown_as_its_timesteps(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    send(live, stream, 5)
    open_page(page, live, stream)
    send(live, stream)
    wait_for_step(page, stream, 6)
    post(live, f"activity/streams/{stream}/reset", {})
    send(live, stream)
    wait_for_step(page, stream, 1)

    post(live, f"activity/streams/{stream}/steps", {"inputs": {"motion": RECORDINGS.x[15, :40].tolist()}})
    wait_for_step(page, stream, 41)


def test_the_command_of_the_empty_page_creates_the_first_stream(page: Page, own: ServiceProcess) -> None:
    open_page(page, own)
    page.wait_for("!document.getElementById('empty').hidden")
    _, url, _, header, _, body = shlex.split(page.text("#curl-line").replace("\\\n", " "))
    answer = httpx2.post(url, content=body, headers=dict([header.split(": ")]), trust_env=False, timeout=30)

    assert answer.status_code == 200, answer.text
    assert shown(page, "first")


def test_the_page_reconnects_after_the_service_was_restarted(page: Page, own: ServiceProcess) -> None:
    open_page(page, own)
    send(own, "before")
    shown(page, "before")
    own.kill()
    page.wait_for("/lost|not respond/.test(document.getElementById('state').textContent)")

    own.start()
    page.wait_for(READY)
    send(own, "after")
    assert shown(page, "after")
    words = page.wait_for("document.getElementById('skipped').textContent")
    assert words == "At least 1 timestep not received: the connection was lost, or this page was too slow."
