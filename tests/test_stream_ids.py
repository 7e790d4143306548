"""A stream's id on every road: `connect`, `replay` and `backfill` step the same streams.

The last two read files alike, so that each has half of the formats here.

The page's CSV has the same table in `tests/addons/dashboard/test_csv.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import typer

from stepwell.addons.backfill.command import backfill
from stepwell.addons.replay.command import replay
from tests.addons.connect.connectors import run_once
from tests.addons.recorded.files import write_csv, write_npz
from tests.commands.program import invoke
from tests.graphs import fold, write_models
from tests.processes import ServiceProcess, free_port, service_process
from tests.servers import Server, server

IDS = ["0042", "42", "4_2", "48e2", "1.10"]
"""Texts that Python reads as three numbers, and that are five streams."""

SENT = [*IDS, "42", "0042", "0042"]
STEPS = {"0042": 3, "42": 2, "4_2": 1, "48e2": 1, "1.10": 1}
NO_IDS = ["+42", " 42", "42 ", "\uff14\uff12"]
"""Texts that Python reads as 42, and that are no ids."""

MADE_OF = ["0042", "42", "+42", "pump 7", "a@b", "\uff14\uff12", "42"]
MADE = {
    "pump-0042": 1, "pump-42": 2, "pump-@2B42": 1, "pump-pump@207": 1, "pump-a@40b": 1, "pump-@EF@BC@94@EF@BC@92": 1,
}  # fmt: skip
"""The streams of the template `pump-{machine}`, with their steps."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where data lies and who reads it."""

    folder: Path
    service: ServiceProcess
    model: str
    port: int = 0
    broker: Server | None = None
    stream: str = "machine"


Refused = list[str]
"""Why ids were refused, a text for each; with dead letters there may be several."""


def connected(place: Place, source: str, *words: str) -> Refused:
    """Run `connect` to its end; the reasons are those of its dead letters."""
    dead = place.folder / "dead.jsonl"
    flags = ["--model", place.model, "--stream", place.stream, "--url", place.service.url, *words]
    ends = ["--to", f"file://{place.folder}/out.jsonl", "--dead-letter", f"file://{dead}"]
    counts = run_once(place.folder, source, *flags, *ends, code=None)
    letters = [json.loads(line) for line in dead.read_text().splitlines()] if dead.exists() else []
    assert counts["dead_letters"] == len(letters)
    return [one["reason"] for one in letters]


def json_lines(place: Place, ids: Sequence[str]) -> Refused:
    file = place.folder / "in.jsonl"
    file.write_text("".join(json.dumps({"machine": one, "x": 1}) + "\n" for one in ids))
    return connected(place, f"file://{file}")


def csv_file(place: Place, ids: Sequence[str]) -> Refused:
    return connected(place, f"file://{table(place, ids, 'csv')}")


def quoted_csv_file(place: Place, ids: Sequence[str]) -> Refused:
    return connected(place, f"file://{table(place, ids, 'quoted csv')}")


def redis_fields(place: Place, ids: Sequence[str]) -> Refused:
    return redis(place, [{"machine": one, "x": 1} for one in ids])


def redis_json(place: Place, ids: Sequence[str]) -> Refused:
    return redis(place, [{"data": json.dumps({"machine": one, "x": 1})} for one in ids])


def redis(place: Place, entries: Sequence[dict[str, Any]]) -> Refused:
    assert place.broker is not None
    client: Any = place.broker.client()
    for entry in entries:
        client.xadd(place.model, entry)
    return connected(place, f"redis://127.0.0.1:{place.port}/0?stream={place.model}&group=g")


def table(place: Place, ids: Sequence[str], form: str) -> Path:
    """Write a file of recorded data with a column of ids."""
    file = place.folder / f"data.{form.rsplit(maxsplit=1)[-1]}"
    ones = np.ones(len(ids), np.int64)
    if form == "npz":
        return write_npz(file, machine=np.array(ids), x=ones)
    if form == "parquet":
        pa = pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install 'stepwell[arrow]'")
        from pyarrow import parquet

        parquet.write_table(pa.table({"machine": list(ids), "x": ones}), file)
        return file
    if form == "quoted csv":
        file.write_text("machine,x\n" + "".join(f'"{one}",1\n' for one in ids))
        return file
    return write_csv(file, ["machine", "x"], [(one, 1) for one in ids])


def recorded(command: Callable[..., Any], form: str) -> Callable[[Place, Sequence[str]], Refused]:
    """Return a road through a command of recorded data, which refuses a file before it sends anything."""
    app = typer.Typer()
    app.command()(command)

    def send(place: Place, ids: Sequence[str]) -> Refused:
        file = table(place, ids, form)
        model = ["--model", place.model] if command is backfill else [place.model]
        words = [*model, str(file), "--stream-column", place.stream, "--input", "x=x", "--url", place.service.url]
        done = invoke(app, words if command is replay else [str(file), *model, *words[-6:]])
        return [] if done.exit_code == 0 else [str(done.exception)]

    return send


ROADS: dict[str, Callable[[Place, Sequence[str]], Refused]] = {
    "connect JSON": json_lines,
    "connect CSV": csv_file,
    "connect quoted CSV": quoted_csv_file,
    "connect Redis fields": redis_fields,
    "connect Redis JSON": redis_json,
    **{f"replay {form}": recorded(replay, form) for form in ("csv", "npz")},
    **{f"backfill {form}": recorded(backfill, form) for form in ("quoted csv", "parquet")},
}


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ServiceProcess, Server, int]]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:  # short enough for a unix socket
        folder, port = Path(name), free_port()
        names = [f"{what}{n}" for n in range(len(ROADS)) for what in ("good", "bad", "made")]
        write_models(folder / "models", **dict.fromkeys(names, fold))
        with (
            server(folder / "broker", "--port", str(port)) as broker,
            service_process(folder / "models", folder / "one", "--drain-s", "0") as one,
        ):
            yield one, broker, port


def place_of(running: tuple[ServiceProcess, Server, int], folder: Path, road: str, what: str) -> Place:
    """A model for each road and kind of ids: all have the same ids."""
    service, broker, port = running
    return Place(folder, service, f"{what}{list(ROADS).index(road)}", port, broker)


def steps_of(place: Place) -> dict[str, int]:
    """Return the steps of all streams of a model."""
    listed = httpx2.get(f"{place.service.url}/v1/models/{place.model}/streams?limit=1000", timeout=30).json()
    return {one["stream"]: one["step"] for one in listed["streams"]}


@pytest.mark.parametrize("road", ROADS)
def test_each_id_is_a_stream_of_its_own(running: tuple[ServiceProcess, Server, int], tmp_path: Path, road: str) -> None:
    place = place_of(running, tmp_path, road, "good")

    assert ROADS[road](place, SENT) == []
    assert steps_of(place) == STEPS


@pytest.mark.parametrize("road", ROADS)
def test_what_is_no_id_is_refused_with_its_reason(
    running: tuple[ServiceProcess, Server, int], tmp_path: Path, road: str
) -> None:
    """It never is the stream 42. A connector goes on with the other messages; recorded data is refused as a whole."""
    place = place_of(running, tmp_path, road, "bad")
    at_once = [NO_IDS] if road.startswith("connect") else [[one] for one in NO_IDS]
    reasons = [reason for ids in at_once for reason in ROADS[road](place, ["42", *ids])]

    assert len(reasons) == len(NO_IDS)
    for one, reason in zip(NO_IDS, reasons, strict=True):
        assert ascii(one) in reason
        assert "stream id" in reason
    assert steps_of(place) == ({"42": 1} if road.startswith("connect") else {})


@pytest.mark.parametrize("road", ROADS)
def test_a_template_makes_ids_of_any_texts(
    running: tuple[ServiceProcess, Server, int], tmp_path: Path, road: str
) -> None:
    place = replace(place_of(running, tmp_path, road, "made"), stream="pump-{machine}")

    assert ROADS[road](place, MADE_OF) == []
    assert steps_of(place) == MADE
