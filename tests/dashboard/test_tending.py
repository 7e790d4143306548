"""What can be done with a stream from the page, and what it tells of it beyond its predictions."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.demo.recordings import MODELS
from tests.dashboard.browser import Page
from tests.dashboard.test_page import open_page, post, wait_for_step
from tests.graphs import letters, wave, write_model
from tests.processes import Service, service

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model without a feedback rule, one that goes on in one way, and one by chance."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(MODELS / "activity.onnx", folder)
    write_model(folder, "wave", wave)
    write_model(folder, "letters", letters)
    return folder


@pytest.fixture(scope="module")
def live(models: Path) -> Iterator[Service]:
    """A service that asks every request to say how it is done once."""
    with (
        tempfile.TemporaryDirectory(prefix="sw") as folder,
        service(models, Path(folder), "--require-preconditions") as one,
    ):
        yield one


def step(live: Service, stream: str, *, to: int, since: int = 0, model: str = "wave", x: Any = (0.5,)) -> None:
    """Bring a stream from one step to another."""
    for seq in range(since + 1, to + 1):
        post(live, f"{model}/streams/{stream}/step", {"inputs": x, "seq": seq})


def get(live: Service, path: str) -> Any:
    answer = httpx.get(f"{live.url}/v1/models/{path}", trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def open_at(page: Page, live: Service, stream: str, at: int, *, model: str = "wave") -> None:
    """Open the page at a stream that was there before."""
    open_page(page, live, stream, model=model)
    wait_for_step(page, stream, at)
    page.wait_for("document.getElementById('standing-note').textContent")


def click(page: Page, selector: str) -> None:
    page.ask(f"document.querySelector({selector!r}).click()")


def answer(page: Page, button: str, name: str | None = None) -> None:
    """Ask for something with a button, and say yes to the question, with a name in it."""
    click(page, button)
    page.wait_for("document.getElementById('ask').open")
    say(page, name)


def say(page: Page, name: str | None = None) -> None:
    if name is not None:
        page.ask(f"document.getElementById('ask-name').value = {name!r}")
    click(page, "#ask-yes")


def told(page: Page, words: str) -> str:
    """Wait until the page tells something, and return it."""
    found = f"/{words}/.test(document.getElementById('told').textContent)"
    return str(page.wait_for(f"{found} && document.getElementById('told').textContent"))


def look_ahead(page: Page, horizon: int = 20) -> str:
    """Look ahead, and return what the page says of it."""
    page.ask(f"""(() => {{
        const ahead = document.getElementById('ahead');
        ahead.value = '{horizon}';
        ahead.dispatchEvent(new Event('change'));
    }})()""")
    return str(page.wait_for("document.getElementById('ahead-note').textContent"))


BAND = """(() => {
    const canvas = document.querySelector('#outputs-plot canvas');
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let painted = 0;
    for (let i = 3; i < data.length; i += 4) painted += data[i] === 0x2e;  // as opaque as an interval is
    return painted;
})()"""


def pointed_at_the_end(page: Page) -> list[str]:
    """Point at the right end of the predictions' chart, and return the values that the legend then tells."""
    script = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const over = document.querySelector('#outputs-plot .u-over');
        const {right, top} = over.getBoundingClientRect();
        const at = {clientX: right - 1, clientY: top + 9, bubbles: true, view: window};
        for (const type of ['mouseenter', 'mousemove']) over.dispatchEvent(new MouseEvent(type, at));
        requestAnimationFrame(() => requestAnimationFrame(() =>
            done([...document.querySelectorAll('#outputs-legend .series-value')].map(v => v.textContent))));
    })))"""
    return list(page.ask(script))


# -------------------------------------------------------------------- what is told


def test_the_norms_of_the_states_and_the_last_prediction_are_told(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=3)
    open_at(page, live, stream, 3)
    page.wait_for("document.querySelectorAll('#standing dd').length === 3")
    found = page.ask("[...document.querySelectorAll('#standing dd')].map(dd => Number(dd.textContent))")

    norm = np.linalg.norm(get(live, f"wave/streams/{stream}/state")["states"]["h"])
    outputs = get(live, f"wave/streams/{stream}?outputs=true")["outputs"]
    assert found == pytest.approx([norm, outputs["y"][0], outputs["spread"][0]], abs=0.001)
    assert page.text("#standing-note") == "at step 3"


def test_a_stream_from_before_shows_its_last_prediction_in_the_legend(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=2)
    open_at(page, live, stream, 2)
    y = get(live, f"wave/streams/{stream}?outputs=true")["outputs"]["y"][0]

    told_y = page.wait_for("Number(document.querySelector('#outputs-legend .series-value').textContent)")
    assert told_y == pytest.approx(y, abs=0.001)


# -------------------------------------------------------------------- looking ahead


def test_what_is_ahead_is_drawn_where_the_rollout_goes(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=4)
    open_at(page, live, stream, 4)

    assert "no chance" in look_ahead(page)
    assert page.ask(BAND) < 200
    rolled = post(live, f"wave/streams/{stream}/rollout", {"horizon": 20})["outputs"]
    shown = [float(value) for value in pointed_at_the_end(page)]
    assert shown == pytest.approx([rolled["y"][-1][0], rolled["spread"][-1][0]], abs=0.001)
    assert page.troubles == []


def test_where_chance_has_a_part_the_interval_of_many_ways_is_drawn(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=2, model="letters", x=3)
    open_at(page, live, stream, 2, model="letters")

    assert look_ahead(page, 50) == "50 ahead: median of 40 ways, 80% of them in the band"
    page.wait_for(f"({BAND}) > 200")
    assert get(live, f"letters/streams/{stream}")["step"] == 2


def test_a_model_without_a_feedback_rule_says_so(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=1, model="activity", x=[0] * 6)
    open_at(page, live, stream, 1, model="activity")

    assert page.ask("document.getElementById('ahead').disabled") is True
    assert page.ask("document.getElementById('ahead').selectedOptions[0].text") == "no feedback rule"


def test_where_the_service_cannot_look_ahead_its_reason_is_told(page: Page, live: Service, stream: str) -> None:
    post(live, f"wave/streams/{stream}/steps", {"inputs": [[1], [2]], "return": "none", "seq": 1})
    open_at(page, live, stream, 2)

    assert "inputs" in look_ahead(page)


def test_what_is_ahead_moves_on_with_the_stream(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=2)
    open_at(page, live, stream, 2)
    look_ahead(page)
    step(live, stream, since=2, to=5)
    wait_for_step(page, stream, 5)
    rolled = post(live, f"wave/streams/{stream}/rollout", {"horizon": 20})["outputs"]["y"][-1][0]

    pointed_at_the_end(page)
    page.wait_for(f"Math.abs(document.querySelector('#outputs-legend .series-value').textContent - {rolled}) < 0.001")


# -------------------------------------------------------------------- fork, snapshots, reset


def test_a_fork_begins_where_the_stream_is_and_is_shown(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=3)
    open_at(page, live, stream, 3)
    answer(page, "#fork", f"{stream}-b")
    wait_for_step(page, f"{stream}-b", 3)

    states = [get(live, f"wave/streams/{one}/state")["states"] for one in (stream, f"{stream}-b")]
    assert states[0] == states[1]
    assert told(page, "begins") == f"{stream}-b begins at step 3, as {stream} was."


def test_a_fork_onto_a_stream_that_is_there_says_why_not(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=1)
    step(live, f"{stream}-b", to=2)
    open_at(page, live, stream, 1)
    answer(page, "#fork", f"{stream}-b")

    assert f"{stream}-b" in page.wait_for("document.getElementById('ask-problem').textContent")
    assert page.ask("document.getElementById('ask').open") is True


def test_a_stream_goes_back_to_a_snapshot_that_was_taken_on_the_page(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=2)
    open_at(page, live, stream, 2)
    answer(page, "#snapshots", "before")
    told(page, "before is")
    step(live, stream, since=2, to=5)
    wait_for_step(page, stream, 5)
    click(page, "#snapshots")
    page.wait_for("document.querySelector('#ask-items li .name').textContent === 'before'")
    click(page, "#ask-items button")
    page.wait_for("/Reset/.test(document.getElementById('ask-title').textContent)")
    assert get(live, f"wave/streams/{stream}")["step"] == 5  # it has been asked only
    say(page)

    told(page, "back at step 2")
    wait_for_step(page, stream, 2)
    assert get(live, f"wave/streams/{stream}")["step"] == 2


def test_a_snapshot_of_that_name_is_not_replaced_unasked(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=2)
    httpx.put(
        f"{live.url}/v1/models/wave/streams/{stream}/snapshots/s", headers={"idempotency-key": stream}, trust_env=False
    )
    step(live, stream, since=2, to=3)
    open_at(page, live, stream, 3)
    answer(page, "#snapshots", "s")
    page.wait_for("/Replace/.test(document.getElementById('ask-title').textContent)")
    assert get(live, f"wave/streams/{stream}/snapshots/s")["step"] == 2
    say(page)

    told(page, "step 3")
    assert get(live, f"wave/streams/{stream}/snapshots/s")["step"] == 3


def test_a_reset_is_asked_for_and_a_no_leaves_the_stream_alone(page: Page, live: Service, stream: str) -> None:
    step(live, stream, to=3)
    open_at(page, live, stream, 3)
    click(page, "#reset")
    page.wait_for("document.getElementById('ask').open")
    page.press("Enter")  # the focus is on no
    page.wait_for("!document.getElementById('ask').open")
    assert get(live, f"wave/streams/{stream}")["step"] == 3

    answer(page, "#reset")
    told(page, "back at step 0")
    wait_for_step(page, stream, 0)
    assert get(live, f"wave/streams/{stream}")["step"] == 0


def test_a_key_looks_ahead_and_is_told_what_it_may_not(page: Page, models: Path, short_path: Path) -> None:
    keys = short_path / "keys.json"
    digest = hashlib.sha256(b"sesame").hexdigest()
    scopes = ["step", "read"]
    keys.write_text(json.dumps({"keys": [{"id": "me", "sha256": digest, "tenant": "t", "scopes": scopes}]}))
    with service(models, short_path, "--api-keys-file", str(keys)) as one:
        httpx.post(
            f"{one.url}/v1/models/wave/streams/a/step",
            json={"inputs": [0.5]},
            headers={"authorization": "Bearer sesame"},
            trust_env=False,
        ).raise_for_status()
        page.open(f"{one.url}/#model=wave&stream=a")
        page.wait_for("!document.getElementById('key-form').hidden")
        page.ask("document.getElementById('key').focus()")
        page.type("sesame")
        page.press("Enter")
        wait_for_step(page, "a", 1)

        assert "20 ahead" in look_ahead(page)
        answer(page, "#fork", "b")
        assert "admin" in page.wait_for("document.getElementById('ask-problem').textContent")
