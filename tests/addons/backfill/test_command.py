"""`stepwell backfill`: every row is applied once, also after kills, and the predictions are those of the fold."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import typer
from typer.testing import Result

from stepwell.addons.backfill.command import backfill
from tests.addons.recorded.files import write_csv, write_fold_csv
from tests.commands.program import invoke
from tests.graphs import fold, fold_on_a_grid, fold_reference, last_seen, nan_at, write_models
from tests.processes import ServiceProcess, service_process
from tests.programs.start import Program, start_program

app = typer.Typer()
app.command()(backfill)

FOLD = ("--model", "fold", "--stream-column", "device", "--time-column", "time", "--input", "x=value")


@pytest.fixture(scope="module")
def running() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:  # short enough for a unix socket
        write_models(Path(name) / "models", fold, last_seen, grid=fold_on_a_grid, nan_at=lambda: nan_at(5))
        with service_process(Path(name) / "models", Path(name) / "one", "--drain-s", "0") as one:
            yield one


def run(service: ServiceProcess, *words: object) -> Result:
    return invoke(app, [str(word) for word in words], STEPWELL_URL=service.url)


def report_of(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def status(service: ServiceProcess, stream: str, model: str = "fold") -> dict[str, Any]:
    document: dict[str, Any] = httpx2.get(f"{service.url}/v1/models/{model}/streams/{stream}", timeout=30).json()
    return document


def next_prediction(service: ServiceProcess, stream: str, x: int) -> int:
    path = f"{service.url}/v1/models/fold/streams/{stream}/step"
    answer = httpx2.post(path, json={"inputs": [x], "create": "never"}, timeout=30).json()
    return int(answer["outputs"]["y"][0])


def predictions_of(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Return step and prediction of each line by stream."""
    found: dict[str, list[tuple[int, int]]] = {}
    with path.open() as file:
        for line in csv.DictReader(file):
            found.setdefault(line["stream"], []).append((int(line["step"]), int(line["y[0]"])))
    return found


def expected_of(streams: dict[str, list[int]]) -> dict[str, list[tuple[int, int]]]:
    return {name: list(enumerate(fold_reference(values), 1)) for name, values in streams.items()}


def write_streams(path: Path, prefix: str, n_streams: int, n_steps: int, *, seed: int) -> dict[str, list[int]]:
    """As `write_fold_csv`, with ids that no other test has."""
    streams = write_fold_csv(path, n_streams, n_steps, seed=seed)
    lines = path.read_text().replace(",s", f",{prefix}s")
    path.write_text(lines)
    return {f"{prefix}{name}": values for name, values in streams.items()}


def test_the_predictions_are_those_of_the_fold_and_live_steps_follow(running: ServiceProcess, tmp_path: Path) -> None:
    streams = write_streams(tmp_path / "data.csv", "a.", 300, 37, seed=1)

    report = report_of(
        run(running, tmp_path / "data.csv", *FOLD, "--predictions", tmp_path / "out.csv", "--json")
    )  # fmt: skip

    assert (report["streams"], report["applied"], report["skipped"]) == (300, 300 * 37, 0)
    assert predictions_of(tmp_path / "out.csv") == expected_of(streams)
    assert [file.name for file in tmp_path.glob("out*")] == ["out.csv"]
    assert next_prediction(running, "a.s7", 5) == fold_reference([*streams["a.s7"], 5])[-1]


def test_the_same_files_twice_change_nothing(running: ServiceProcess, tmp_path: Path) -> None:
    streams = write_streams(tmp_path / "data.csv", "b.", 20, 300, seed=2)
    run(running, tmp_path / "data.csv", *FOLD)
    before = status(running, "b.s3")["state_id"]

    result = run(running, tmp_path / "data.csv", *FOLD, "--json")

    assert (report_of(result)["applied"], report_of(result)["skipped"]) == (0, 6000)
    assert result.exit_code == 1
    assert "Nothing was applied: the streams had all 6,000 rows before." in str(result.exception)
    assert status(running, "b.s3")["state_id"] == before
    assert next_prediction(running, "b.s3", 1) == fold_reference([*streams["b.s3"], 1])[-1]


def test_predictions_that_are_not_known_any_more_are_empty_and_reported(
    running: ServiceProcess, tmp_path: Path
) -> None:
    write_streams(tmp_path / "data.csv", "c.", 3, 300, seed=3)
    run(running, tmp_path / "data.csv", *FOLD)

    result = run(running, tmp_path / "data.csv", *FOLD, "--predictions", tmp_path / "out.csv")

    assert result.exit_code == 1
    assert "their predictions are not known any more" in str(result.exception)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 901


def test_after_kills_no_row_is_missing_doubled_or_torn(running: ServiceProcess, tmp_path: Path) -> None:
    """The command is killed with -9 in the middle, again and again; a last run ends by itself."""
    streams = write_streams(tmp_path / "data.csv", "killed.", 800, 100, seed=4)
    out = tmp_path / "out.csv"
    words = ["backfill", str(tmp_path / "data.csv"), *FOLD, "--predictions", str(out), "--url", running.url, "--json"]
    log = tmp_path / "log"
    kills = 0

    for _ in range(4):
        known = _n_marked(out)
        process = _start(words, log)
        while process.poll() is None and _n_marked(out) <= known + 1_000:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    was_finished = out.exists()
    code = _start(words, log).wait()

    assert kills >= 2
    assert not was_finished
    assert code == 0, log.read_text()
    assert predictions_of(out) == expected_of(streams)
    name = "killed.s5"
    assert status(running, name)["step"] == 100
    assert next_prediction(running, name, 9) == fold_reference([*streams[name], 9])[-1]


def test_a_service_that_is_killed_meanwhile_and_starts_again_has_every_row_once(tmp_path: Path) -> None:
    streams = write_streams(tmp_path / "data.csv", "k.", 300, 100, seed=7)
    out = tmp_path / "out.csv"
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        models = write_models(Path(name) / "models", fold)
        with service_process(models, Path(name) / "one", "--drain-s", "0") as service:
            words = ["backfill", str(tmp_path / "data.csv"), *FOLD, "--predictions", str(out), "--url", service.url]
            process = _start(words, tmp_path / "log")
            while process.poll() is None and _n_marked(out) == 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
            was_running = process.poll() is None
            service.kill()
            service.start()

            assert process.wait(120) == 0
            assert was_running
            assert predictions_of(out) == expected_of(streams)
            assert next_prediction(service, "k.s7", 5) == fold_reference([*streams["k.s7"], 5])[-1]


def _start(words: list[str], log: Path) -> Program:
    with log.open("wb") as file:
        return start_program(words, env=os.environ, out=file)


def _n_marked(out: Path) -> int:
    """Return the rows that an unfinished run has written."""
    partial = out.with_name(f"{out.name}.partial")
    if not partial.exists():
        return 0
    raw = np.fromfile(partial, np.uint8)[4096:]
    return int((raw.reshape(-1, 1 + 4 + 8 + 8)[:, 0] != 0).sum())


def test_what_is_wrong_late_in_the_data_is_reported_before_anything_is_sent(
    running: ServiceProcess, tmp_path: Path
) -> None:
    first = [(1, "e.good", 1), (1, "e.bad", 7)]
    late = {
        "'no spaces please' is not a stream id": (1, "no spaces please", 8),
        "the value is missing": ("", "e.good", 8),
        "'e.bad' is not sorted by 'time'": (1, "e.bad", 6),
    }
    for said, row in late.items():
        file = write_csv(tmp_path / "data.csv", ["value", "device", "time"], [*first, row])
        result = run(running, file, *FOLD)

        assert result.exit_code == 1
        assert said in str(result.exception)
        assert status(running, "e.good")["code"] == "stream_not_found"


def test_missing_values_reach_a_model_that_takes_them(running: ServiceProcess, tmp_path: Path) -> None:
    rows = [(1, 2, 3), ("", 5, ""), (7, "", "")]
    file = write_csv(tmp_path / "f.csv", ["a[0]", "a[1]", "b"], rows)

    run(running, file, "--model", "last_seen", "--predictions", tmp_path / "out.csv")

    with (tmp_path / "out.csv").open() as lines:
        numbers = [[float(line[name]) for name in ("y[0]", "y[1]", "z")] for line in csv.DictReader(lines)]
    assert numbers == [[1, 2, 3], [1, 5, 3], [7, 5, 3]]


def test_a_stream_that_is_rejected_fails_alone_and_nothing_follows_its_gap(
    running: ServiceProcess, tmp_path: Path
) -> None:
    """The model's state becomes NaN at the fifth timestep, which only one stream has."""
    rows = [(stream, n) for stream, n_rows in (("g.short", 4), ("g.long", 300)) for n in range(n_rows)]
    file = write_csv(tmp_path / "data.csv", ["device", "value"], rows)
    out = tmp_path / "out.csv"

    result = run(running, file, "--model", "nan_at", *FOLD[2:4], *FOLD[6:], "--predictions", out)

    assert result.exit_code == 1
    assert "1 stream failed (non_finite_state: 1): g.long" in str(result.exception)
    assert not out.exists()
    assert status(running, "g.short", "nan_at")["step"] == 4
    assert status(running, "g.long", "nan_at").get("step", 0) <= 4


def test_a_service_that_is_not_there_is_reported(tmp_path: Path) -> None:
    write_fold_csv(tmp_path / "data.csv", 2, 3)

    result = invoke(app, [str(tmp_path / "data.csv"), *FOLD, "--url", "http://127.0.0.1:9"])

    assert result.exit_code == 1
    assert "No Stepwell service responds" in str(result.exception)


# ------------------------------------------------------------- other, grown and repeated data


def write_rows(path: Path, rows: list[tuple[str, int]]) -> Path:
    return write_csv(path, ["value", "device", "time"], [(x, name, n) for n, (name, x) in enumerate(rows)])


def rows_of(prefix: str, values: range, n_streams: int = 3) -> list[tuple[str, int]]:
    return [(f"{prefix}{x % n_streams}", x) for x in values]


def reset(service: ServiceProcess, stream: str) -> None:
    httpx2.post(f"{service.url}/v1/models/fold/streams/{stream}/reset", timeout=30).raise_for_status()


def test_another_file_of_the_same_name_and_size_is_applied(running: ServiceProcess, tmp_path: Path) -> None:
    first, second = range(100, 160), range(300, 360)
    size = write_rows(tmp_path / "data.csv", rows_of("l.", first)).stat().st_size
    run(running, tmp_path / "data.csv", *FOLD)
    assert write_rows(tmp_path / "data.csv", rows_of("l.", second)).stat().st_size == size

    report = report_of(run(running, tmp_path / "data.csv", *FOLD, "--json"))

    assert (report["applied"], report["skipped"]) == (60, 0)
    values = [x for x in [*first, *second] if x % 3 == 1]
    assert next_prediction(running, "l.1", 5) == fold_reference([*values, 5])[-1]
    assert [source["id"].split(":")[:2] for source in status(running, "l.1")["sources"]] == [["rows", "60"]] * 2


@pytest.mark.parametrize("as_a_second_file", [False, True])
def test_grown_data_goes_on_where_it_grew(running: ServiceProcess, tmp_path: Path, as_a_second_file: bool) -> None:
    prefix = f"m{as_a_second_file}."
    write_rows(tmp_path / "data.csv", rows_of(prefix, range(60)))
    run(running, tmp_path / "data.csv", *FOLD)
    grown = rows_of(prefix, range(100), 4)  # with a stream more, from row 60 on
    grown[:60] = rows_of(prefix, range(60))
    files = [write_rows(tmp_path / "data.csv", grown)]
    if as_a_second_file:
        files = [write_rows(tmp_path / "data.csv", grown[:60])]
        files += [write_csv(tmp_path / "more.csv", ["value", "device", "time"], [(x, n, x) for n, x in grown[60:]])]

    report = report_of(run(running, *files, *FOLD, "--predictions", tmp_path / "out.csv", "--json"))

    assert (report["applied"], report["skipped"]) == (40, 60)
    expected = expected_of({f"{prefix}{n}": [x for name, x in grown if name == f"{prefix}{n}"] for n in range(4)})
    new = {name: {x for one, x in grown[60:] if one == name} for name in expected}
    assert predictions_of(tmp_path / "out.csv") == {name: expected[name][-len(new[name]) :] for name in expected}
    assert status(running, f"{prefix}0")["step"] == len(expected[f"{prefix}0"])


def test_grown_data_of_an_interrupted_run_goes_on_after_what_was_applied(
    running: ServiceProcess, tmp_path: Path
) -> None:
    """One of the streams was not there when the first run ended: all of its rows are applied."""
    write_rows(tmp_path / "data.csv", rows_of("n.", range(60)))
    run(running, tmp_path / "data.csv", *FOLD)
    httpx2.delete(f"{running.url}/v1/models/fold/streams/n.1", timeout=30).raise_for_status()
    write_rows(tmp_path / "data.csv", rows_of("n.", range(90)))

    report = report_of(run(running, tmp_path / "data.csv", *FOLD, "--json"))

    assert (report["applied"], report["skipped"]) == (10 + 30 + 10, 40)
    for n in range(3):
        values = [x for x in range(90) if x % 3 == n]
        assert next_prediction(running, f"n.{n}", 5) == fold_reference([*values, 5])[-1]


def test_a_stream_that_was_reset_is_named_and_takes_its_rows_again(running: ServiceProcess, tmp_path: Path) -> None:
    write_rows(tmp_path / "data.csv", rows_of("o.", range(60)))
    run(running, tmp_path / "data.csv", *FOLD)
    for _ in range(2):  # as often as it is reset
        reset(running, "o.1")
        write_rows(tmp_path / "data.csv", rows_of("o.", range(60)))

        refused = run(running, tmp_path / "data.csv", *FOLD, "--json")

        assert refused.exit_code == 1
        assert "1 stream had these rows and were reset since: o.1." in str(refused.exception)
        assert (report_of(refused)["applied"], report_of(refused)["reset"]) == (0, ["o.1"])
        assert status(running, "o.1")["step"] == 0

        again = run(running, tmp_path / "data.csv", *FOLD, "--again", "--json")

        assert again.exit_code == 0
        assert (report_of(again)["applied"], report_of(again)["skipped"]) == (20, 40)
        assert status(running, "o.1")["step"] == 20

    assert run(running, tmp_path / "data.csv", *FOLD, "--again").exit_code == 1
    assert next_prediction(running, "o.1", 5) == fold_reference([*range(1, 60, 3), 5])[-1]


def test_the_rows_of_a_stream_that_was_reset_are_applied_once_also_after_more_rows(
    running: ServiceProcess, tmp_path: Path
) -> None:
    write_rows(tmp_path / "data.csv", rows_of("p.", range(60)))
    run(running, tmp_path / "data.csv", *FOLD)
    reset(running, "p.1")
    run(running, tmp_path / "data.csv", *FOLD, "--again")
    write_rows(tmp_path / "data.csv", rows_of("p.", range(90)))

    report = report_of(run(running, tmp_path / "data.csv", *FOLD, "--json"))

    assert (report["applied"], report["skipped"]) == (30, 60)
    assert status(running, "p.1")["step"] == 30


# ------------------------------------------------------------- rows by their times


def write_times(path: Path, rows: list[tuple[str, float, int]]) -> Path:
    return write_csv(path, ["value", "device", "time"], [(x, name, at) for name, at, x in rows])


JITTERED = [("1", 1.0, 1), ("2", 1.4, 2), ("1", 3.0, 3), ("1", 2.0, 4), ("2", 3.5, 5), ("2", 2.5, 6), ("1", 4.0, 7)]
MORE = [("2", 3.8, 8), ("1", 4.5, 9), ("2", 5.0, 10), ("1", 0.5, 11)]
"""What follows: the first one is between timesteps of the other stream, the last one is late."""


@pytest.mark.parametrize("rules", [("--order", "1s"), ("--every", "500ms", "--gap", "0")])
def test_grown_data_by_its_times_goes_on_where_it_grew(
    running: ServiceProcess, tmp_path: Path, rules: tuple[str, str]
) -> None:
    prefix = f"u{rules[0]}."
    rows = [(prefix + name, at, x) for name, at, x in JITTERED]
    run(running, write_times(tmp_path / "data.csv", rows), *FOLD, *rules)
    more = [(prefix + name, at, x) for name, at, x in MORE]
    write_times(tmp_path / "data.csv", rows + more)

    report = report_of(run(running, tmp_path / "data.csv", *FOLD, *rules, "--json"))

    assert (report["applied"], report["skipped"], report["late"]) == (3, 7, 1)
    assert next_prediction(running, f"{prefix}1", 5) == fold_reference([1, 4, 3, 7, 9, 5])[-1]
    assert next_prediction(running, f"{prefix}2", 5) == fold_reference([2, 6, 5, 8, 10, 5])[-1]


@pytest.mark.parametrize(
    ("rules", "more"),
    [(("--order", "2s"), (3.5, 9)), (("--every", "1s"), (3.9, 9))],
    ids=["a row between applied ones", "a tick with another value"],
)
def test_rows_that_change_what_was_applied_are_refused(
    running: ServiceProcess, tmp_path: Path, rules: tuple[str, str], more: tuple[float, int]
) -> None:
    name = f"v{rules[0]}.1"
    rows = [(name, 1.0, 1), (name, 4.0, 3), (name, 3.0, 2)] if rules[0] == "--order" else [(name, 1, 1), (name, 3.5, 2)]
    run(running, write_times(tmp_path / "data.csv", rows), *FOLD, *rules)
    before = status(running, name)["state_id"]

    result = run(running, write_times(tmp_path / "data.csv", [*rows, (name, *more)]), *FOLD, *rules)

    assert result.exit_code == 1
    assert f"1 stream had other timesteps by these rules before: {name}." in str(result.exception)
    assert "--again" in str(result.exception)
    assert status(running, name)["state_id"] == before


def test_changed_rows_by_their_times_are_refused_and_applied_once_with_again(
    running: ServiceProcess, tmp_path: Path
) -> None:
    words = (tmp_path / "data.csv", *FOLD, "--order", "1s")
    run(running, write_times(words[0], [("w.1", 1.0, 1), ("w.1", 2.0, 2)]), *words[1:])
    write_times(words[0], [("w.1", 1.0, 7), ("w.1", 2.0, 2), ("w.1", 3.0, 3)])

    assert "had other timesteps" in str(run(running, *words).exception)
    reset(running, "w.1")
    assert report_of(run(running, *words, "--again", "--json"))["applied"] == 3
    write_times(words[0], [("w.1", 1.0, 7), ("w.1", 2.0, 2), ("w.1", 3.0, 3), ("w.1", 4.0, 4)])
    assert report_of(run(running, *words, "--json"))["applied"] == 1

    assert next_prediction(running, "w.1", 5) == fold_reference([7, 2, 3, 4, 5])[-1]


def test_the_grid_of_a_model_is_that_of_its_history(running: ServiceProcess, tmp_path: Path) -> None:
    words = ["--model", "grid", "--stream-column", "device", "--input", "x=value", "--time", "time"]
    data = write_times(tmp_path / "data.csv", [("g.1", 0.2, 1), ("g.1", 0.9, 2), ("g.1", 3, 3)])

    done = run(running, data, *words, "--json")

    assert report_of(done)["applied"] == 3
    assert status(running, "g.1", "grid")["sources"][0]["id"].endswith("#every=1s")
    told = run(running, data, *words, "--every", "2s").stderr
    assert "The model was trained with a timestep every 1s; --every is 2s." in told


@pytest.mark.parametrize(
    "words", [("--every", "1s", "--fill", "x"), ("--every", "1s", "--take", "x"), ("--take", "min")]
)
def test_a_rule_that_is_none_is_wrong_usage(running: ServiceProcess, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run(running, write_times(tmp_path / "data.csv", [("x.1", 1, 1)]), *FOLD, *words).exit_code == 2
