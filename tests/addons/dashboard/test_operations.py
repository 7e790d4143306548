"""Operations on a stream from the dashboard, and what it shows of a stream besides predictions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.addons.dashboard.actions import (
    accept_dialog,
    advance,
    call,
    confirm,
    enter_key,
    get,
    open_at,
    open_page,
    post,
    shown_message,
    wait_for_step,
)
from tests.addons.dashboard.browser import Page
from tests.addons.releases.fleet import wait_until
from tests.processes import ServiceProcess, service_process
from tests.requests.test_api_keys import bearer, key, write_keys_file

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def live(models: Path) -> Iterator[ServiceProcess]:
    """A service that requires preconditions or an idempotency key for every change."""
    with (
        tempfile.TemporaryDirectory(prefix="sw") as folder,
        service_process(models, Path(folder), "--require-preconditions") as one,
    ):
        yield one


def forecast(page: Page, horizon: int = 20) -> str:
    """Request a forecast, and return the message that the page shows."""
    page.choose("forecast", str(horizon))
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
    shown_y = page.wait_for("Number(document.querySelector('#outputs-legend .series-value').textContent)")
    assert shown_y == pytest.approx(outputs["y"][0], abs=0.001)


# -------------------------------------------------------------------- forecasts


def test_a_forecast_is_drawn_where_the_rollout_leads_also_after_a_status_that_was_lost(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    page.replace_fetch(
        """if (String(url).includes("outputs=true") && !window.lost) { window.lost = true; throw new Error("lost"); }
            return send(url, options);""",
    )
    advance(live, stream, to=4)
    open_page(page, live, stream, model="wave")
    wait_for_step(page, stream, 4)

    assert forecast(page) == "Forecast of 20 timesteps (deterministic)"
    assert page.evaluate(BAND) < 200
    rolled = post(live, f"wave/streams/{stream}/rollout", {"horizon": 20})["outputs"]
    expected = pytest.approx([rolled["y"][-1][0], rolled["spread"][-1][0]], abs=0.001)
    wait_until(lambda: numbers(legend_at_the_end(page)) == expected, within_s=60)
    assert page.errors == []

    advance(live, stream, since=4, to=5)
    wait_for_step(page, stream, 5)
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


def test_a_snapshot_can_be_taken_replaced_restored_and_deleted(page: Page, live: ServiceProcess, stream: str) -> None:
    path = f"wave/streams/{stream}"
    advance(live, stream, to=2)
    open_at(page, live, stream, 2)
    confirm(page, "#snapshots", "s")
    shown_message(page, "s was taken")
    advance(live, stream, since=2, to=3)
    wait_for_step(page, stream, 3)
    confirm(page, "#snapshots", "s")
    page.wait_for("/Replace/.test(document.getElementById('ask-title').textContent)")
    assert get(live, f"{path}/snapshots/s")["step"] == 2  # the dialog is still open
    accept_dialog(page)
    shown_message(page, "at step 3")
    assert get(live, f"{path}/snapshots/s")["step"] == 3

    advance(live, stream, since=3, to=5)
    wait_for_step(page, stream, 5)
    page.click("#snapshots")
    page.wait_for("document.querySelector('#ask-items li .name').textContent === 's'")
    page.click("#ask-items button")
    page.wait_for("/Reset/.test(document.getElementById('ask-title').textContent)")
    assert get(live, path)["step"] == 5
    accept_dialog(page)
    shown_message(page, "reset to step 3")
    wait_for_step(page, stream, 3)

    page.click("#snapshots")
    page.wait_for("document.querySelectorAll('#ask-items button').length === 2")
    page.click("#ask-items button:last-child")
    page.wait_for("/^Delete snapshot/.test(document.getElementById('ask-title').textContent)")
    accept_dialog(page)
    shown_message(page, "was deleted")
    assert get(live, f"{path}/snapshots") == {"snapshots": []}


def test_a_reset_asks_for_confirmation_and_can_be_declined(page: Page, live: ServiceProcess, stream: str) -> None:
    advance(live, stream, to=3)
    open_at(page, live, stream, 3)
    page.click("#reset")
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
    keys = write_keys_file(short_path / "keys.json", key("sesame", scopes=["step", "read"]))
    with service_process(models, short_path, "--api-keys-file", str(keys)) as one:
        headers = bearer("sesame")
        call(one, "POST", "wave/streams/a/step", json={"inputs": [0.5]}, headers=headers).raise_for_status()
        page.open(f"{one.url}/#model=wave&stream=a")
        enter_key(page, "sesame")
        wait_for_step(page, "a", 1)

        assert "Forecast of 20 timesteps" in forecast(page)
        confirm(page, "#fork", "b")
        assert "admin" in page.wait_for("document.getElementById('ask-problem').textContent")
        assert page.evaluate("document.getElementById('ask').open") is True
