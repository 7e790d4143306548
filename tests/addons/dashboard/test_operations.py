"""Operations on a stream from the dashboard, and what it shows of a stream besides predictions."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from stepwell.addons.demo.recordings import MODELS
from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.test_page import open_page, post, wait_for_step
from tests.addons.releases.fleet import wait_until
from tests.graphs import letters, wave, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model without a feedback rule, one with a deterministic forecast, and one with a sampled forecast."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(MODELS / "activity.onnx", folder)
    write_model(folder, "wave", wave)
    write_model(folder, "letters", letters)
    return folder


@pytest.fixture(scope="module")
def live(models: Path) -> Iterator[ServiceProcess]:
    """A service that requires preconditions or an idempotency key for every change."""
    with (
        tempfile.TemporaryDirectory(prefix="sw") as folder,
        service_process(models, Path(folder), "--require-preconditions") as one,
    ):
        yield one


def advance(
    live: ServiceProcess, stream: str, *, to: int, since: int = 0, model: str = "wave", x: Any = (0.5,)
) -> None:
    """Advance a stream from one step to another."""
    for seq in range(since + 1, to + 1):
        post(live, f"{model}/streams/{stream}/step", {"inputs": x, "seq": seq})


def get(live: ServiceProcess, path: str) -> Any:
    response = httpx2.get(f"{live.url}/v1/models/{path}", trust_env=False, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()


def open_at(page: Page, live: ServiceProcess, stream: str, at: int, *, model: str = "wave") -> None:
    """Open the page at an existing stream."""
    open_page(page, live, stream, model=model)
    wait_for_step(page, stream, at)
    page.wait_for("/^read at|too large/.test(document.getElementById('status-note').textContent)")  # not an error


def click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({selector!r}).click()")


def confirm(page: Page, button: str, name: str | None = None) -> None:
    """Press a button and confirm the dialog, optionally with a name."""
    click(page, button)
    page.wait_for("document.getElementById('ask').open")
    accept_dialog(page, name)


def accept_dialog(page: Page, name: str | None = None) -> None:
    if name is not None:
        page.evaluate(f"document.getElementById('ask-name').value = {name!r}")
    click(page, "#ask-yes")


def shown_message(page: Page, words: str) -> str:
    """Wait until the page shows a message that contains the words, and return it."""
    found = f"/{words}/.test(document.getElementById('message').textContent)"
    return str(page.wait_for(f"{found} && document.getElementById('message').textContent"))


def forecast(page: Page, horizon: int = 20) -> str:
    """Request a forecast, and return the message that the page shows."""
    page.evaluate(f"""(() => {{
        const select = document.getElementById('forecast');
        select.value = '{horizon}';
        select.dispatchEvent(new Event('change'));
    }})()""")
    return str(page.wait_for("document.getElementById('forecast-note').textContent"))


BAND = """(() => {
    const canvas = document.querySelector('#outputs-plot canvas');
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let painted = 0;
    for (let i = 3; i < data.length; i += 4) painted += data[i] === 0x2e;  // as opaque as an interval is
    return painted;
})()"""


def legend_at_the_end(page: Page) -> list[str]:
    """Point at the right end of the predictions' chart, and return the values in the legend."""
    script = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const over = document.querySelector('#outputs-plot .u-over');
        const {right, top} = over.getBoundingClientRect();
        const at = {clientX: right - 1, clientY: top + 9, bubbles: true, view: window};
        for (const type of ['mouseenter', 'mousemove']) over.dispatchEvent(new MouseEvent(type, at));
        requestAnimationFrame(() => requestAnimationFrame(() =>
            done([...document.querySelectorAll('#outputs-legend .series-value')].map(v => v.textContent))));
    })))"""
    return list(page.evaluate(script))


def numbers(values: list[str]) -> list[float]:
    """The values of a legend; NaN where it has none yet."""
    return [float("nan") if value == "–" else float(value) for value in values]


def fail_status_reads(page: Page, ms: int) -> None:
    """Let pages that are opened from now on fail to read the last prediction of a stream, for some milliseconds."""
    page.run_first(f"""(() => {{
        const send = window.fetch;
        window.fetch = async (url, options) => {{
            if (String(url).includes("outputs=true") && performance.now() < {ms}) throw new Error("lost");
            return send(url, options);
        }};
    }})()""")


# -------------------------------------------------------------------- shown values


def test_the_norms_of_the_states_and_the_last_prediction_are_shown(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    advance(live, stream, to=3)
    open_at(page, live, stream, 3)
    page.wait_for("document.querySelectorAll('#stream-status dd').length === 3")
    found = page.evaluate("[...document.querySelectorAll('#stream-status dd')].map(dd => Number(dd.textContent))")

    norm = np.linalg.norm(get(live, f"wave/streams/{stream}/state")["states"]["h"])
    outputs = get(live, f"wave/streams/{stream}?outputs=true")["outputs"]
    assert found == pytest.approx([norm, outputs["y"][0], outputs["spread"][0]], abs=0.001)
    assert page.text("#status-note").startswith("read at")


def test_the_legend_shows_the_last_prediction_of_an_existing_stream(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    advance(live, stream, to=2)
    open_at(page, live, stream, 2)
    y = get(live, f"wave/streams/{stream}?outputs=true")["outputs"]["y"][0]

    shown_y = page.wait_for("Number(document.querySelector('#outputs-legend .series-value').textContent)")
    assert shown_y == pytest.approx(y, abs=0.001)


# -------------------------------------------------------------------- forecasts


def test_a_forecast_is_drawn_where_the_rollout_leads(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=4)
    open_at(page, live, stream, 4)

    assert forecast(page) == "Forecast of 20 timesteps (deterministic)"
    assert page.evaluate(BAND) < 200
    rolled = post(live, f"wave/streams/{stream}/rollout", {"horizon": 20})["outputs"]
    expected = pytest.approx([rolled["y"][-1][0], rolled["spread"][-1][0]], abs=0.001)
    wait_until(lambda: numbers(legend_at_the_end(page)) == expected, within_s=60)
    assert page.errors == []


def test_a_forecast_is_drawn_once_a_status_that_was_lost_is_read(page: Page, live: ServiceProcess, stream: str) -> None:
    fail_status_reads(page, 6000)
    advance(live, stream, to=4)
    open_page(page, live, stream, model="wave")
    wait_for_step(page, stream, 4)

    assert forecast(page) == "Forecast of 20 timesteps (deterministic)"
    rolled = post(live, f"wave/streams/{stream}/rollout", {"horizon": 20})["outputs"]
    expected = pytest.approx([rolled["y"][-1][0], rolled["spread"][-1][0]], abs=0.001)
    wait_until(lambda: numbers(legend_at_the_end(page)) == expected, within_s=60)


def test_a_sampled_forecast_is_drawn_as_an_interval(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=2, model="letters", x=3)
    open_at(page, live, stream, 2, model="letters")

    assert forecast(page, 50) == "Forecast of 50 timesteps (median of 40 samples with 80% interval)"
    page.wait_for(f"({BAND}) > 200")
    assert get(live, f"letters/streams/{stream}")["step"] == 2


def test_a_model_without_a_feedback_rule_shows_the_reason(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=1, model="activity", x=[0] * 6)
    open_at(page, live, stream, 1, model="activity")

    assert page.evaluate("document.getElementById('forecast').disabled") is True
    assert page.evaluate("document.getElementById('forecast').selectedOptions[0].text") == "no feedback rule"


def test_a_rejected_forecast_shows_the_reason(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"wave/streams/{stream}/steps", {"inputs": [[1], [2]], "return": "none", "seq": 1})
    open_at(page, live, stream, 2)

    assert "inputs" in forecast(page)


def test_a_forecast_is_updated_as_the_stream_advances(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=2)
    open_at(page, live, stream, 2)
    forecast(page)
    advance(live, stream, since=2, to=5)
    wait_for_step(page, stream, 5)
    rolled = post(live, f"wave/streams/{stream}/rollout", {"horizon": 20})["outputs"]["y"][-1][0]

    legend_at_the_end(page)
    page.wait_for(f"Math.abs(document.querySelector('#outputs-legend .series-value').textContent - {rolled}) < 0.001")


# -------------------------------------------------------------------- fork, snapshots, reset


def test_a_fork_starts_at_the_state_of_the_stream_and_is_selected(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    advance(live, stream, to=3)
    open_at(page, live, stream, 3)
    confirm(page, "#fork", f"{stream}-b")
    wait_for_step(page, f"{stream}-b", 3)

    states = [get(live, f"wave/streams/{one}/state")["states"] for one in (stream, f"{stream}-b")]
    assert states[0] == states[1]
    assert shown_message(page, "created") == f"{stream}-b was created at step 3 as a copy of {stream}."


def test_a_fork_onto_an_existing_stream_shows_the_reason(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=1)
    advance(live, f"{stream}-b", to=2)
    open_at(page, live, stream, 1)
    confirm(page, "#fork", f"{stream}-b")

    assert f"{stream}-b" in page.wait_for("document.getElementById('ask-problem').textContent")
    assert page.evaluate("document.getElementById('ask').open") is True


def test_a_stream_can_be_reset_to_a_snapshot_taken_on_the_page(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=2)
    open_at(page, live, stream, 2)
    confirm(page, "#snapshots", "before")
    shown_message(page, "before was taken")
    advance(live, stream, since=2, to=5)
    wait_for_step(page, stream, 5)
    click(page, "#snapshots")
    page.wait_for("document.querySelector('#ask-items li .name').textContent === 'before'")
    click(page, "#ask-items button")
    page.wait_for("/Reset/.test(document.getElementById('ask-title').textContent)")
    assert get(live, f"wave/streams/{stream}")["step"] == 5  # the dialog is still open
    accept_dialog(page)

    shown_message(page, "reset to step 2")
    wait_for_step(page, stream, 2)
    assert get(live, f"wave/streams/{stream}")["step"] == 2


def test_a_snapshot_is_not_replaced_without_confirmation(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=2)
    httpx2.put(
        f"{live.url}/v1/models/wave/streams/{stream}/snapshots/s",
        headers={"idempotency-key": stream},
        trust_env=False,
        timeout=30,
    )
    advance(live, stream, since=2, to=3)
    open_at(page, live, stream, 3)
    confirm(page, "#snapshots", "s")
    page.wait_for("/Replace/.test(document.getElementById('ask-title').textContent)")
    assert get(live, f"wave/streams/{stream}/snapshots/s")["step"] == 2
    accept_dialog(page)

    shown_message(page, "at step 3")
    assert get(live, f"wave/streams/{stream}/snapshots/s")["step"] == 3


def test_a_reset_asks_for_confirmation_and_can_be_declined(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=3)
    open_at(page, live, stream, 3)
    click(page, "#reset")
    page.wait_for("document.getElementById('ask').open")
    page.press("Enter")  # the focus is on the button that declines
    page.wait_for("!document.getElementById('ask').open")
    assert get(live, f"wave/streams/{stream}")["step"] == 3

    confirm(page, "#reset")
    shown_message(page, "reset to step 0")
    wait_for_step(page, stream, 0)
    assert get(live, f"wave/streams/{stream}")["step"] == 0


def test_a_read_only_key_can_forecast_and_is_told_what_it_may_not_do(
    page: Page, models: Path, short_path: Path
) -> None:
    keys = short_path / "keys.json"
    digest = hashlib.sha256(b"sesame").hexdigest()
    scopes = ["step", "read"]
    keys.write_text(json.dumps({"keys": [{"id": "me", "sha256": digest, "tenant": "t", "scopes": scopes}]}))
    with service_process(models, short_path, "--api-keys-file", str(keys)) as one:
        httpx2.post(
            f"{one.url}/v1/models/wave/streams/a/step",
            json={"inputs": [0.5]},
            headers={"authorization": "Bearer sesame"},
            trust_env=False,
            timeout=30,
        ).raise_for_status()
        page.open(f"{one.url}/#model=wave&stream=a")
        page.wait_for("!document.getElementById('key-form').hidden")
        page.evaluate("document.getElementById('key').focus()")
        page.type("sesame")
        page.press("Enter")
        wait_for_step(page, "a", 1)

        assert "Forecast of 20 timesteps" in forecast(page)
        confirm(page, "#fork", "b")
        assert "admin" in page.wait_for("document.getElementById('ask-problem').textContent")
