"""`stepwell replay` on the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import typer
from typer.testing import Result

from stepwell.addons.replay.command import replay
from stepwell.addons.replay.predictions import ReplayPredictions
from stepwell_client import Client, Event
from stepwell_client.protocol.decoding import TensorInfo
from tests.api.running import Service, running_service
from tests.commands.program import invoke
from tests.graphs import fold, fold_on_a_grid, fold_reference, lstm, nan_at, total, write_model, write_models
from tests.processes import free_port
from tests.servers import Server

ROWS = 600  # several chunks


@pytest.fixture(scope="module")
def service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = write_models(tmp_path_factory.mktemp("models"), fold, lstm, nan_at=lambda: nan_at(5))
    with running_service(shared_redis.url, folder, history=["64"]) as made:
        yield made


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{service.port}") as made:
        yield made


def run(service: Service, *words: object, url: str = "") -> Result:
    app = typer.Typer()
    app.command()(replay)
    return invoke(app, [*map(str, words), "--url", url or f"http://127.0.0.1:{service.port}"])


def write(path: Path, header: str, rows: Any) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def numbers(count: int = ROWS) -> list[list[int]]:
    return [[x] for x in range(count)]


def test_a_recording_is_replayed_and_its_predictions_are_written(service: Service, tmp_path: Path, stream: str) -> None:
    data, out = write(tmp_path / "data.csv", "x[0]", numbers()), tmp_path / "out.csv"

    done = run(service, "fold", data, "--stream", stream, "-o", out, "--json")

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["rows"], report["streams"], report["output"]) == (ROWS, [stream], str(out))
    with out.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["y[0]"]) for row in rows] == fold_reference(range(ROWS))
    assert [(int(row["row"]), int(row["step"])) for row in rows] == [(n, n) for n in range(1, ROWS + 1)]


def test_columns_can_be_chosen(service: Service, tmp_path: Path, stream: str) -> None:
    data = write(tmp_path / "data.csv", "a,level", [[9, x] for x in range(5)])
    out = tmp_path / "out.csv"

    refused = run(service, "fold", data)
    done = run(service, "fold", data, "--stream", stream, "--input", "x=level", "-o", out)

    assert refused.exit_code == 1
    assert "has a, level" in str(refused.exception)
    assert done.exit_code == 0
    assert [int(line.rsplit(",", 1)[1]) for line in out.read_text().split()[1:]] == fold_reference(range(5))


def test_rows_may_be_of_many_streams(service: Service, client: Client, tmp_path: Path, stream: str) -> None:
    rows = [[f"{stream}{n % 3}", n // 3] for n in range(ROWS)]

    done = run(service, "fold", write(tmp_path / "d.csv", "pump,x[0]", rows), "--stream-column", "pump", "--json")

    assert json.loads(done.stdout)["streams"] == [f"{stream}{n}" for n in range(3)]
    assert [client.model("fold").stream(f"{stream}{n}").status().step for n in range(3)] == [ROWS // 3] * 3


def test_a_stream_that_exists_is_reset_or_continued_only_if_that_is_said(
    service: Service, client: Client, tmp_path: Path, stream: str
) -> None:
    data = write(tmp_path / "data.csv", "x[0]", numbers(3))
    command = (service, "fold", data, "--stream", stream)
    run(*command)
    handle = client.model("fold").stream(stream)

    refused, appended = run(*command), run(*command, "--append")
    step = handle.status().step
    begun = run(*command, "--reset")

    assert (refused.exit_code, appended.exit_code, begun.exit_code) == (1, 0, 0)
    assert "is at step 3" in str(refused.exception)
    assert (step, handle.status().step) == (6, 3)


def test_rows_are_sent_at_their_times(service: Service, client: Client, tmp_path: Path, stream: str) -> None:
    """Ten rows a second apart at 20 times the speed, or at 20 rows per second: no row is early."""
    data = write(tmp_path / "data.csv", "t,x[0]", [[100 + n, n] for n in range(10)])
    runs = {"times": ("--time-column", "t", "--speed", 20), "rate": ("--rate", 20)}

    seconds = {}
    for name, flags in runs.items():
        done = run(service, "fold", data, "--stream", f"{stream}-{name}", *flags, "--json")
        seconds[name] = json.loads(done.stdout)["seconds"]

    assert min(seconds.values()) >= 9 / 20
    events = client.model("fold").stream(f"{stream}-times").watch(since=0)
    steps = [next(events) for _ in range(10)]
    assert [event.step for event in steps if isinstance(event, Event)] == list(range(1, 11))


def test_the_predictions_are_drawn(service: Service, tmp_path: Path, stream: str) -> None:
    data, picture = write(tmp_path / "data.csv", "x[0]", numbers()), tmp_path / "out.svg"

    assert run(service, "fold", data, "--stream", stream, "--plot", picture).exit_code == 0

    texts = [text.text for text in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {f"y of {stream}", "step 1", "600"} <= set(texts)


def test_a_model_file_is_run_in_this_process(service: Service, tmp_path: Path) -> None:
    data = write(tmp_path / "data.csv", "x[0]", numbers(3))

    done = run(service, write_model(tmp_path, "sum", fold), data, "--json")

    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert (report["model"], report["rows"]) == ("sum", 3)
    assert report["streams"][0].startswith("data-")


@pytest.mark.parametrize(
    ("header", "rows", "flags", "words"),
    [
        ("x[0]", [[1], ["two"]], (), "row 2: 'two' is not a number"),
        ("x[0]", [[1]], ("--time-column", "t"), "has no column 't'"),
        ("x[0]", [[1]], ("-o", "/absent/out.csv"), "cannot be written"),
    ],
)
def test_what_cannot_be_replayed_is_an_error_with_its_reason(
    service: Service, tmp_path: Path, header: str, rows: Any, flags: tuple[str, ...], words: str
) -> None:
    done = run(service, "fold", write(tmp_path / "data.csv", header, rows), *flags)

    assert done.exit_code == 1
    assert words in str(done.exception)


@pytest.mark.parametrize("pace", [(), ("--rate", "1000")])
def test_a_row_that_the_service_rejects_ends_its_stream_alone(
    service: Service, client: Client, tmp_path: Path, stream: str, pace: tuple[str, ...]
) -> None:
    rows = [[f"{stream}.{n % 2}", n] for n in range(7)]
    data = write(tmp_path / "d.csv", "pump,x[0]", [*rows, [f"{stream}.0", 9], [f"{stream}.0", 9]])

    done = run(service, "nan_at", data, "--stream-column", "pump", *pace)

    assert done.exit_code == 1
    assert f"1 stream failed (non_finite_state: 1): {stream}.0. Stream '{stream}.0': " in str(done.exception)
    assert "This was in row" in str(done.exception)
    assert [client.model("nan_at").stream(f"{stream}.{n}").resume() for n in range(2)] == [4, 3]


def test_an_id_that_no_stream_can_have_is_named_before_anything_is_sent(
    service: Service, client: Client, tmp_path: Path, stream: str
) -> None:
    data = write(tmp_path / "data.csv", "device,x[0]", [[stream, 1], [stream, 2], ["no id", 3]])

    done = run(service, "fold", data, "--stream-column", "device")

    assert done.exit_code == 1
    assert "data.csv, row 3: 'no id' is not a stream id" in str(done.exception)
    assert client.model("fold").stream(stream).resume() == 0


def test_chunks_have_as_many_rows_as_the_service_takes(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    """Rows of 2 KiB, inputs and outputs, and bodies of 64 KiB; or chunks of 7 timesteps at most."""
    folder = write_models(tmp_path / "models", total=lambda: total(256))
    data, header = tmp_path / "data.csv", ",".join(f"x[{n}]" for n in range(256))
    write(data, header, [[1] * 256 for _ in range(100)])
    cases: list[dict[str, Any]] = [{"max_body_bytes": 64 << 10}, {"max_chunk_steps": 7}]
    for limits in cases:
        with running_service(shared_redis.url, folder, **limits) as small:
            done = run(small, "total", data, "--stream", f"{stream}{next(iter(limits))}", "--json")

        assert done.exit_code == 0, done.output


def test_predictions_are_kept_in_memory_for_a_picture_alone(stream: str) -> None:
    streams = [f"{stream}.{n}" for n in range(3)]
    outputs = [TensorInfo("y", "int64", [1])]
    ys = {"y": np.array([[[5]], [[6]]])}
    for kept in (0, 1):
        one = ReplayPredictions(streams, outputs, kept_streams=kept)
        one.write(np.array([[0], [1]]), np.array([0, 1]), np.array([1, 1]), np.zeros(2), ys)
        assert [name in one.picture() for name in streams] == [kept > 0, False, False]


def test_the_column_that_is_missing_is_named(service: Service, tmp_path: Path) -> None:
    done = run(service, "lstm", write(tmp_path / "data.csv", "x[0],x[1],x[3]", [[1, 2, 3]]))

    assert done.exit_code == 1
    assert "data.csv has no column x[2] for the input 'x'" in str(done.exception)


def test_arrays_are_replayed_a_stream_each(service: Service, client: Client, tmp_path: Path, stream: str) -> None:
    data = tmp_path / "data.npz"
    arrays: dict[str, Any] = {"x:x": np.arange(6).reshape(2, 3, 1), "streams": [f"{stream}-a", f"{stream}-b"]}
    np.savez(data, **arrays)

    done = run(service, "fold", data, "--json")

    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["streams"] == [f"{stream}-a", f"{stream}-b"]
    assert client.model("fold").stream(f"{stream}-b").status().step == 3


@pytest.mark.parametrize(
    "flags",
    [
        ("--rate", "1", "--time-column", "t"),
        ("--speed", "2"),
        ("--stream", "a", "--stream-column", "b"),
        ("--stream", "a b"),
        ("--reset", "--append"),
        ("-o", "predictions.parquet"),
        ("--plot", "predictions.png"),
    ],
)
def test_flags_that_contradict_each_other_or_a_files_name_are_wrong_usage(
    service: Service, tmp_path: Path, flags: Any
) -> None:
    assert run(service, "fold", write(tmp_path / "data.csv", "x[0]", [[1]]), *flags).exit_code == 2


def test_without_a_service_the_command_ends_at_once(service: Service, tmp_path: Path) -> None:
    data = write(tmp_path / "data.csv", "x[0]", [[1]])

    done = run(service, "fold", data, url=f"http://127.0.0.1:{free_port()}")

    assert done.exit_code == 1
    assert "No Stepwell service responds" in str(done.exception)


def test_rows_by_their_times_are_sent_as_fast_as_possible_and_late_ones_counted(
    service: Service, tmp_path: Path, stream: str
) -> None:
    data = write(tmp_path / "data.csv", "x,at", [[1, 1], [2, 90_000], [3, 0]])
    words = (data, "--stream", stream, "--time", "at", "--order", "1s", "--rate", "100", "--json")

    report = json.loads(run(service, "fold", *words).stdout)

    assert (report["rows"], report["late"], report["left_out"]) == (2, 1, 0)


def test_a_model_file_is_replayed_on_its_own_grid(tmp_path: Path) -> None:
    model = write_model(tmp_path, "grid", fold_on_a_grid)
    data, out = write(tmp_path / "data.csv", "x[0],at", [[1, 0.2], [2, 0.9], [3, 3]]), tmp_path / "out.csv"
    app = typer.Typer()
    app.command()(replay)

    done = invoke(app, [str(model), str(data), "--time", "at", "-o", str(out)])

    assert done.exit_code == 0, done.output
    assert [int(row["y[0]"]) for row in csv.DictReader(out.open())] == fold_reference([2, 2, 3])
