"""A CSV file dropped onto the dashboard becomes timesteps of a stream; in a real browser."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stepwell.addons.demo.recordings import MODELS, Recordings
from tests.addons.dashboard.browser import Page
from tests.addons.dashboard.test_operations import click
from tests.addons.dashboard.test_page import open_page, post, stream, wait_for_step
from tests.processes import ServiceProcess, service_process
from tests.test_stream_ids import NO_IDS, SENT, STEPS

pytestmark = pytest.mark.browser
__all__ = ["stream"]  # the fixture
X = Recordings.load().x[3]
LABELS = ["accel x", "accel y", "accel z", "gyro x", "gyro y", "gyro z"]


@pytest.fixture(scope="module")
def live() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="sw") as name, service_process(MODELS, Path(name)) as one:
        yield one


def csv(n: int) -> str:
    """The first timesteps of a recording, with the columns in another order and one more."""
    lines = ["note," + ",".join(reversed(LABELS))]
    lines += ["-," + ",".join(f"{value}" for value in reversed(row.tolist())) for row in X[:n]]
    return "\n".join(lines) + "\n"


def drop(page: Page, text: str, name: str) -> None:
    """Drop a file onto the page."""
    page.evaluate(f"""(() => {{
        const files = new DataTransfer();
        files.items.add(new File([{json.dumps(text)}], {name!r}, {{type: 'text/csv'}}));
        for (const type of ['dragover', 'drop']) {{
            document.body.dispatchEvent(new DragEvent(type, {{dataTransfer: files, bubbles: true, cancelable: true}}));
        }}
    }})()""")
    page.wait_for("document.getElementById('csv').open")


def ready_to_send(page: Page) -> None:
    page.wait_for("!document.getElementById('csv-send').disabled")


def result(page: Page) -> str:
    return str(page.wait_for("document.getElementById('csv-result').textContent"))


def outputs(live: ServiceProcess, stream: str) -> Any:
    response = httpx2.get(f"{live.url}/v1/models/activity/streams/{stream}?outputs=true", trust_env=False, timeout=30)
    return response.json()["outputs"]["activity"]


def test_the_rows_are_applied_by_the_names_of_their_columns(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}-a/steps", {"inputs": X[:90].tolist()})
    open_page(page, live)
    drop(page, csv(90), f"{stream}.csv")
    ready_to_send(page)
    click(page, "#csv-send")

    assert result(page) == f"90 rows applied; {stream} is at step 90."
    wait_for_step(page, stream, 90)
    assert outputs(live, stream) == pytest.approx(outputs(live, f"{stream}-a"), abs=1e-5)


def test_an_existing_stream_is_not_changed_unless_chosen(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}/steps", {"inputs": X[:5].tolist()})
    open_page(page, live, stream)
    drop(page, csv(4), f"{stream}.csv")
    ready_to_send(page)
    click(page, "#csv-send")
    assert "exists" in result(page)
    page.evaluate("document.getElementById('csv-existing').value = 'continue'")
    ready_to_send(page)
    click(page, "#csv-send")

    page.wait_for(f"document.getElementById('csv-result').textContent === '4 rows applied; {stream} is at step 9.'")


def test_rows_can_be_sent_at_a_pace_and_stopped(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    drop(page, csv(100), f"{stream}.csv")
    ready_to_send(page)
    page.evaluate("document.getElementById('csv-pace').value = '10'")
    click(page, "#csv-send")
    page.wait_for("document.getElementById('csv-progress').value >= 2")
    click(page, "#csv-close")

    assert result(page).startswith("Stopped: ")
    assert (
        httpx2.get(f"{live.url}/v1/models/activity/streams/{stream}", trust_env=False, timeout=30).json()["step"] < 100
    )


def test_a_file_without_the_columns_is_refused_and_nothing_is_sent(
    page: Page, live: ServiceProcess, stream: str
) -> None:
    open_page(page, live)
    drop(page, "a,b\n1,2\n", f"{stream}.csv")

    assert "made of the columns accel x, accel y" in result(page)
    assert page.evaluate("document.getElementById('csv-send').disabled") is True


def test_a_bad_cell_is_named_before_anything_is_sent(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    drop(page, ",".join(LABELS) + "\n1,2,3,4,5,6\n1,2,oops,4,5,6\n", f"{stream}.csv")
    ready_to_send(page)
    click(page, "#csv-send")

    assert result(page) == "Row 2, column accel z: “oops” is not a number."
    assert httpx2.get(f"{live.url}/v1/models/activity/streams/{stream}", trust_env=False, timeout=30).status_code == 404


def test_a_column_of_ids_has_a_stream_for_each_id_as_it_stands(page: Page, live: ServiceProcess, stream: str) -> None:
    """The ids of `tests/test_stream_ids.py`, after a prefix: the tests of this file share a model."""
    ids = [f"{stream}-{end}" for end in SENT]
    lines = [f"{name},1,2,3,4,5,6" for name in ids]
    open_page(page, live)
    drop(page, "\n".join(["machine," + ",".join(LABELS), *lines]), "data.csv")
    ready_to_send(page)
    click(page, "#csv-send")

    assert result(page) == "8 rows applied to 5 streams."
    for end, step in STEPS.items():
        status = httpx2.get(f"{live.url}/v1/models/activity/streams/{stream}-{end}", trust_env=False, timeout=30)
        assert status.json()["step"] == step


@pytest.mark.parametrize("wrong", NO_IDS)
def test_an_id_that_no_stream_can_have_is_named_before_anything_is_sent(
    page: Page, live: ServiceProcess, stream: str, wrong: str
) -> None:
    lines = [f"{name},1,2,3,4,5,6" for name in (stream, wrong)]
    open_page(page, live)
    drop(page, "\n".join(["id," + ",".join(LABELS), *lines]), "data.csv")
    ready_to_send(page)
    click(page, "#csv-send")

    assert result(page).startswith(f"Row 2: The stream id is '{wrong}'; expected 1 to 128 of")
    assert httpx2.get(f"{live.url}/v1/models/activity/streams/{stream}", trust_env=False, timeout=30).status_code == 404


def test_an_id_may_be_made_of_columns(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    drop(
        page,
        "\n".join(["note," + ",".join(LABELS), *(f"{note},1,2,3,4,5,6" for note in ("a b", "7", "7"))]),
        "data.csv",
    )
    ready_to_send(page)
    page.evaluate(f"document.getElementById('csv-stream').value = '{stream}-{{note}}'")
    click(page, "#csv-send")

    assert result(page) == "3 rows applied to 2 streams."
    for end, step in (("a@20b", 1), ("7", 2)):
        status = httpx2.get(f"{live.url}/v1/models/activity/streams/{stream}-{end}", trust_env=False, timeout=30)
        assert status.json()["step"] == step
