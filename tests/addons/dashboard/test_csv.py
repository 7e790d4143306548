"""A CSV file dropped onto the dashboard becomes timesteps of a stream; in a real browser."""

from __future__ import annotations

import pytest

from tests.addons.dashboard.actions import RECORDINGS, call, get, open_page, post, wait_for_step
from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess
from tests.test_stream_ids import NO_IDS, SENT, STEPS

pytestmark = pytest.mark.browser
X = RECORDINGS.x[3]
LABELS = ["accel x", "accel y", "accel z", "gyro x", "gyro y", "gyro z"]


def csv(n: int) -> str:
    """The first timesteps of a recording, with the columns in another order and one more."""
    lines = ["note," + ",".join(reversed(LABELS))]
    lines += ["-," + ",".join(f"{value}" for value in reversed(row.tolist())) for row in X[:n]]
    return "\n".join(lines) + "\n"


def drop_rows(page: Page, text: str, name: str) -> None:
    """Drop a file onto the page, and wait until its rows can be sent."""
    page.drop(text, name)
    ready_to_send(page)


def ready_to_send(page: Page) -> None:
    page.wait_for("document.getElementById('csv').open && !document.getElementById('csv-send').disabled")


def result(page: Page) -> str:
    return str(page.wait_for("document.getElementById('csv-result').textContent"))


def test_the_rows_are_applied_by_the_names_of_their_columns(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}-a/steps", {"inputs": X[:90].tolist()})
    open_page(page, live)
    drop_rows(page, csv(90), f"{stream}.csv")
    page.click("#csv-send")

    assert result(page) == f"90 rows applied; {stream} is at step 90."
    wait_for_step(page, stream, 90)
    found, expected = (
        get(live, f"activity/streams/{one}?outputs=true")["outputs"]["activity"] for one in (stream, f"{stream}-a")
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_an_existing_stream_is_not_changed_unless_chosen(page: Page, live: ServiceProcess, stream: str) -> None:
    post(live, f"activity/streams/{stream}/steps", {"inputs": X[:5].tolist()})
    open_page(page, live, stream)
    drop_rows(page, csv(4), f"{stream}.csv")
    page.click("#csv-send")
    assert "exists" in result(page)
    page.evaluate("document.getElementById('csv-existing').value = 'continue'")
    ready_to_send(page)
    page.click("#csv-send")

    page.wait_for(f"document.getElementById('csv-result').textContent === '4 rows applied; {stream} is at step 9.'")


def test_rows_can_be_sent_at_a_pace_and_stopped(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    drop_rows(page, csv(100), f"{stream}.csv")
    page.evaluate("document.getElementById('csv-pace').value = '10'")
    page.click("#csv-send")
    page.wait_for("document.getElementById('csv-progress').value >= 2")
    page.click("#csv-close")

    assert result(page).startswith("Stopped: ")
    assert get(live, f"activity/streams/{stream}")["step"] < 100


def test_a_column_of_ids_has_a_stream_for_each_id_as_it_stands(page: Page, live: ServiceProcess, stream: str) -> None:
    """The ids of `tests/test_stream_ids.py`, after a prefix: the tests of this file share a model."""
    ids = [f"{stream}-{end}" for end in SENT]
    lines = [f"{name},1,2,3,4,5,6" for name in ids]
    open_page(page, live)
    drop_rows(page, "\n".join(["machine," + ",".join(LABELS), *lines]), "data.csv")
    page.click("#csv-send")

    assert result(page) == "8 rows applied to 5 streams."
    for end, step in STEPS.items():
        assert get(live, f"activity/streams/{stream}-{end}")["step"] == step


def test_a_bad_row_is_named_before_anything_is_sent(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    header = ",".join(["id", *LABELS])
    ids = {wrong: f"Row 2: The stream id is '{wrong}'; expected 1 to 128 of" for wrong in NO_IDS}
    cell = "Row 2, column accel z: “oops” is not a number."
    for rows, words in [([f"{one},1,2,3,4,5,6"], said) for one, said in ids.items()] + [(["a,1,2,oops,4,5,6"], cell)]:
        drop_rows(page, "\n".join([header, f"{stream},1,2,3,4,5,6", *rows]), "data.csv")
        page.click("#csv-send")
        assert result(page).startswith(words), rows
        page.click("#csv-close")

    assert call(live, "GET", f"activity/streams/{stream}").status_code == 404


def test_an_id_may_be_made_of_columns(page: Page, live: ServiceProcess, stream: str) -> None:
    open_page(page, live)
    drop_rows(
        page,
        "\n".join(["note," + ",".join(LABELS), *(f"{note},1,2,3,4,5,6" for note in ("a b", "7", "7"))]),
        "data.csv",
    )
    page.evaluate(f"document.getElementById('csv-stream').value = '{stream}-{{note}}'")
    page.click("#csv-send")

    assert result(page) == "3 rows applied to 2 streams."
    for end, step in (("a@20b", 1), ("7", 2)):
        assert get(live, f"activity/streams/{stream}-{end}")["step"] == step
