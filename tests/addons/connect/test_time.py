"""`stepwell connect --order` and `--every`: timesteps in the order of their times, and by the ticks of a clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.connect.config import FromSection
from stepwell.addons.connect.dead_letters import undelivered_letter
from stepwell.addons.connect.messages import OutMessage
from stepwell.addons.connect.time_rules import TimeRules
from stepwell.addons.event_time.times import iso
from tests.addons.connect.connectors import connector, ended, lines_of, n_lines, run_once, wait_for, write_lines
from tests.graphs import fold_reference
from tests.processes import ServiceProcess

SECOND = 1_000_000
_IN_AN_ID = str.maketrans({"[": "_", "]": "_", ",": "_", " ": None, "-": "r"})


def flags(service: ServiceProcess, folder: Path, *more: str) -> list[str]:
    words = ["--model", "fold", "--stream", "stream", "--url", service.url, "--time", "t", *more]
    return [*words, "--to", f"file://{folder}/out.jsonl", "--dead-letter", f"file://{folder}/dead.jsonl"]


def outs(folder: Path) -> list[tuple[int, int, int, str | None]]:
    """Return the step, the prediction, the position and the time of each message out."""
    found = lines_of(folder / "out.jsonl")
    return [(one["step"], one["outputs"]["y"][0], one["source"]["at"], one.get("time")) for one in found]


def test_a_message_out_has_the_time_of_its_message_and_what_is_no_time_is_a_dead_letter(
    service: ServiceProcess, tmp_path: Path
) -> None:
    times: list[dict[str, Any]] = [{"t": "1970-01-01T01:00:01+01:00"}, {"t": 0.5}, {"t": "soon"}, {"t": -1}, {}]
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "plain", "x": 1} | one for one in times])
    run_once(tmp_path, source, *flags(service, tmp_path), code=1)
    assert [one[2:] for one in outs(tmp_path)] == [(0, iso(SECOND)), (1, iso(SECOND // 2))]
    assert [one["code"] for one in lines_of(tmp_path / "dead.jsonl")] == ["bad_time"] * 3


@pytest.mark.parametrize("rules", [("--seq", "n"), ("--order", "5s"), ("--every", "1s")])
def test_a_dead_letter_has_the_time_of_its_message(
    service: ServiceProcess, tmp_path: Path, rules: tuple[str, ...]
) -> None:
    """Also that of a timestep which the service refuses, as it does a gap before `n`."""
    documents = [{"stream": "dead", "t": 1, "n": 1}, {"stream": "dead", "x": "no", "t": 2, "n": 1}]
    documents += [{"stream": "", "x": 1, "t": 3, "n": 1}, {"stream": f"dead{rules[0]}", "x": 1, "t": 4, "n": 1}]
    documents += [{"stream": "dead--seq", "x": 1, "t": 5, "n": 5}] * (rules[0] == "--seq")
    source = write_lines(tmp_path / "in.jsonl", documents)
    run_once(tmp_path, source, *flags(service, tmp_path, *rules), code=1)
    letters = lines_of(tmp_path / "dead.jsonl")
    assert [one["time"] for one in letters] == [iso(t * SECOND) for t in (1, 2, 3, 5)[: len(documents) - 1]]
    assert [one["code"] for one in letters[3:]] == ["seq_gap"] * (rules[0] == "--seq")


def test_the_dead_letter_of_a_prediction_has_its_time() -> None:
    document = {"source": {"id": "log", "at": 1}, "time": iso(SECOND)}
    assert undelivered_letter(OutMessage("s", "log", 1, document), "no topic").document["time"] == iso(SECOND)


def test_one_duration_in_two_ways_is_one_source() -> None:
    sections = [FromSection(url="file:///in.jsonl", stream="key", time="t", every=every) for every in ("60s", "1m")]
    rules = [TimeRules.of(one) for one in sections]
    assert [one and one.suffix for one in rules] == ["#every=1m"] * 2


def test_timesteps_are_applied_in_the_order_of_their_times_and_late_ones_are_dead_letters(
    service: ServiceProcess, tmp_path: Path
) -> None:
    times = [10, 8, 12, 8, 20, 3, 19, 21]
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "ord", "x": at * 7, "t": at} for at in times])

    counts = run_once(tmp_path, source, *flags(service, tmp_path, "--order", "5s"), code=1)

    applied = [8, 10, 12, 19, 20, 21]
    steps = [
        (n, y, at * SECOND, iso(at * SECOND))
        for n, (y, at) in enumerate(zip(fold_reference([at * 7 for at in applied]), applied, strict=True), 1)
    ]
    assert outs(tmp_path) == steps
    letters = lines_of(tmp_path / "dead.jsonl")
    assert [(one["code"], one["time"]) for one in letters] == [("late", iso(8 * SECOND)), ("late", iso(3 * SECOND))]
    assert lines_of(tmp_path / "out.jsonl")[0]["source"]["id"].endswith("#time")
    assert (counts["late"], counts["timesteps"], counts["waiting"]) == (2, 6, 0)


@pytest.mark.parametrize(
    ("times", "applied", "late"),
    [
        ([10, -20, 25, 30, 15, 40], [10, 25, 30, 40], [15]),
        ([10, -20, 40, 15, 15, 12, -18, 17], [10, 15, 17, 40], [15, 12]),
        ([10, -20, -21, 40, 15, 14], [10, 15, 40], [14]),
    ],
)
def test_a_message_is_late_for_what_its_stream_has_applied_and_not_for_what_the_service_refused(
    service: ServiceProcess, tmp_path: Path, times: list[int], applied: list[int], late: list[int]
) -> None:
    """Times below 0 are of timesteps with which a sum overflows."""
    documents = [
        {"stream": f"refused{times}".translate(_IN_AN_ID), "t": abs(t), "x": [3.4e38 if t < 0 else 1e37 * (t == 10), t]}
        for t in times
    ]
    source = write_lines(tmp_path / "in.jsonl", documents)

    run_once(tmp_path, source, *flags(service, tmp_path, "--order", "2s", "--model", "total"), code=1)

    found = lines_of(tmp_path / "out.jsonl")
    assert [(one["step"], one["source"]["at"] // SECOND) for one in found] == list(enumerate(applied, 1))
    letters = lines_of(tmp_path / "dead.jsonl")
    refused = [-t for t in times if t < 0]
    assert [json.loads(one["message"])["t"] for one in letters if one["code"] == "non_finite_state"] == refused
    assert [json.loads(one["message"])["t"] for one in letters if one["code"] == "late"] == late


def test_a_stream_of_which_the_service_refuses_all_backwards_has_a_dead_letter_for_each(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """Each is late for the one before it, until that is refused."""
    first = [{"stream": "backwards", "t": 0, "x": [1e37, 0.0]}]
    first += [{"stream": "others", "t": t / 10, "x": [0.0, 0.0]} for t in range(1, 1401)]  # the next poll has all
    first += [{"stream": "backwards", "t": 2000, "x": [3.4e38, 0.0]}]
    refused = [{"stream": "backwards", "t": t, "x": [3.4e38, 0.0]} for t in range(1999, 1500, -1)]
    source = write_lines(tmp_path / "in.jsonl", [*first, {"stream": "others", "t": 3000, "x": [0.0, 0.0]}, *refused])

    counts = run_once(tmp_path, source, *flags(service, tmp_path, "--order", "1s", "--model", "total"), code=1)

    letters = lines_of(tmp_path / "dead.jsonl")
    assert {one["code"] for one in letters} == {"non_finite_state"}
    assert [json.loads(one["message"])["t"] for one in letters] == list(range(2000, 1500, -1))
    assert (counts["timesteps"], counts["late"]) == (1402, 0)


def test_a_file_that_is_read_again_is_decided_as_before(service: ServiceProcess, tmp_path: Path) -> None:
    documents = [{"stream": "grown", "x": at, "t": at} for at in (10, 9, 30, 3)]
    source = write_lines(tmp_path / "in.jsonl", documents)
    run_once(tmp_path, source, *flags(service, tmp_path, "--order", "5s"), code=1)
    write_lines(tmp_path / "in.jsonl", [*documents, {"stream": "grown", "x": 31, "t": 31}])
    counts = run_once(tmp_path, source, *flags(service, tmp_path, "--order", "5s"), code=1)
    assert [one[:2] for one in outs(tmp_path)] == list(enumerate(fold_reference([9, 10, 30, 31]), 1))
    assert (counts["timesteps"], counts["skipped"], counts["late"]) == (1, 3, 1)


@pytest.mark.parametrize(
    ("times", "more", "late"), [([9, 10], [9.5, 8], [8, 9.5]), ([10], [8, 20], [8])], ids=["between", "and a new one"]
)
def test_a_line_of_a_grown_file_that_the_record_cannot_have_is_late(
    service: ServiceProcess, tmp_path: Path, times: list[float], more: list[float], late: list[float]
) -> None:
    documents = [{"stream": f"cannot.{len(times)}.{len(more)}", "x": 1, "t": at} for at in (*times, *more)]
    source = write_lines(tmp_path / "in.jsonl", documents[: len(times)])
    words = flags(service, tmp_path, "--order", "5s")
    run_once(tmp_path, source, *words)
    write_lines(tmp_path / "in.jsonl", documents)
    counts = run_once(tmp_path, source, *words, code=1)
    letters = lines_of(tmp_path / "dead.jsonl")
    assert [(one["code"], json.loads(one["message"])["t"]) for one in letters] == [("late", at) for at in late]
    assert (counts["skipped"], counts["late"]) == (len(times), len(late))


def test_what_waits_goes_on_once_nothing_comes(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "idle", "x": at, "t": at} for at in (5, 4)])
    with connector(tmp_path, source, *flags(service, tmp_path, "--order", "1h", "--idle", "100ms")) as one:
        wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 2, what=one.text)
    assert [one[2] for one in outs(tmp_path)] == [4 * SECOND, 5 * SECOND]


def test_the_oldest_go_on_when_too_many_wait_and_it_is_said(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "many", "x": at, "t": at} for at in (5, 4, 3)])
    with connector(tmp_path, source, *flags(service, tmp_path, "--order", "1h", "--order-messages", "2")) as one:
        wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 1, what=one.text)
        wait_for(lambda: "the oldest go on" in one.text(), what=one.text)
    assert [one[2] for one in outs(tmp_path)] == [3 * SECOND]


def test_a_time_ahead_of_the_clock_is_a_dead_letter(service: ServiceProcess, tmp_path: Path) -> None:
    documents = [{"stream": "ahead", "x": 1, "t": t} for t in (5, "2999-01-01", 20)]
    source = write_lines(tmp_path / "in.jsonl", documents)
    run_once(tmp_path, source, *flags(service, tmp_path, "--order", "5s"), code=1)
    [letter] = lines_of(tmp_path / "dead.jsonl")
    assert (letter["code"], letter["time"]) == ("bad_time", "2999-01-01T00:00:00Z")
    assert len(outs(tmp_path)) == 2


def test_a_connector_ends_if_all_first_messages_are_ahead_of_its_clock(service: ServiceProcess, tmp_path: Path) -> None:
    documents = [{"stream": "clock", "x": 1, "t": 1_800_000_000_000 + at} for at in range(100)]
    source = write_lines(tmp_path / "in.jsonl", documents)
    one = connector(tmp_path, source, *flags(service, tmp_path, "--order", "5s", "--ahead", "10m"))
    with one as running:
        assert running.process.wait(60) == 1
    assert "--time-unit" in running.text()
    assert not lines_of(tmp_path / "out.jsonl")


def test_there_is_one_timestep_for_each_tick(service: ServiceProcess, tmp_path: Path) -> None:
    times = [(0.2, 1), (1.0, 2), (0.7, 3), (4.5, 4), (90.2, 5), (90.1, 6)]
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "tick", "x": x, "t": t} for t, x in times])

    counts = run_once(tmp_path, source, *flags(service, tmp_path, "--every", "1s", "--gap", "2"))

    ticks = {1: 2, 2: 2, 3: 2, 5: 4, 6: 4, 7: 4, 91: 5}
    ys = fold_reference(list(ticks.values()))
    assert outs(tmp_path) == [(n, y, at, iso(at * SECOND)) for n, (y, at) in enumerate(zip(ys, ticks, strict=True), 1)]
    out = lines_of(tmp_path / "out.jsonl")
    assert [one.get("gap") for one in out] == [None, None, None, 1, None, None, 83]
    assert out[0]["source"]["id"].endswith("#every=1s")
    assert counts["gaps"] == 2


def test_the_grid_of_a_model_is_the_clock(service: ServiceProcess, tmp_path: Path) -> None:
    documents = [{"stream": "own", "x": x, "t": t} for t, x in [(0.2, 1), (0.9, 2), (3, 3)]]
    source = write_lines(tmp_path / "in.jsonl", documents)

    run_once(tmp_path, source, *flags(service, tmp_path, "--gap", "1", "--model", "grid"))

    assert [one[:3] for one in outs(tmp_path)] == [
        (n, y, at) for n, (y, at) in enumerate(zip(fold_reference([2, 2, 3]), (1, 2, 3), strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("given", "told"), [(["--every", "2s"], "--every is 2s"), (["--seq", "n"], "here each message is one")]
)
def test_a_connector_that_leaves_the_grid_of_its_model_says_so(
    service: ServiceProcess, tmp_path: Path, given: list[str], told: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": told, "x": 1, "t": 1, "n": 1}])
    words = flags(service, tmp_path, *given, "--model", "grid", "--stream", "o{n}", "--check")
    text = ended(tmp_path, source, *words)
    assert f"the model was trained with a timestep every 1s; {told}" in text


def test_a_tick_that_the_service_refuses_is_one_dead_letter_with_its_messages(
    service: ServiceProcess, tmp_path: Path
) -> None:
    words = flags(service, tmp_path, "--every", "1s", "--take", "sum", "--model", "lstm")
    big = [3e38, 0.0, 0.0, 0.0]
    documents = [{"stream": "huge", "x": big, "t": 0.5}, {"stream": "huge", "x": big, "t": 0.7}]
    source = write_lines(tmp_path / "in.jsonl", documents)
    run_once(tmp_path, source, *words, code=1)
    [letter] = lines_of(tmp_path / "dead.jsonl")
    assert letter["code"] == "non_finite"
    assert [json.loads(one) for one in letter["message"]] == documents


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (("--order", "5s"), ["after message 2", "once the newest time is 1970-01-01T00:00:25Z", "never: it is late"]),
        (
            ("--every", "1s"),
            [
                "in the tick of 1970-01-01T00:00:10Z, after message 2",
                "in the tick of 1970-01-01T00:00:20Z, once the newest time is later than 1970-01-01T00:00:21Z",
                "in the tick of 1970-01-01T00:00:03Z, never: it is late",
            ],
        ),
    ],
)
def test_check_says_when_the_oldest_messages_would_be_applied(
    service: ServiceProcess, tmp_path: Path, rules: tuple[str, ...], expected: list[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "check", "x": at, "t": at} for at in (10, 20, 3)])
    text = ended(tmp_path, source, *flags(service, tmp_path, *rules), "--check", "--json")
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert [row["applied"] for row in rows] == expected
    assert rows[0]["time"] == iso(10 * SECOND)
    assert "at most 100,000 messages wait" in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--every", "1s", "--take", "mean"], "cannot be the mean"),
        (["--every", "1s", "--fill", "nan"], "cannot be filled with NaN"),
        (["--every", "1s", "--take", "y=last"], "the model has the inputs x"),
        (["--order", "5"], "expected a duration"),
        (["--order", "5s", "--seq", "n"], "contradicts --order"),
        (["--take", "mean"], "rules of --order and --every"),
    ],
)
def test_rules_that_cannot_be_are_refused_at_the_start(
    service: ServiceProcess, tmp_path: Path, words: list[str], reason: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "rules", "x": 1, "t": 1}])
    with connector(tmp_path, source, *flags(service, tmp_path, *words)) as one:
        assert one.process.wait(60) != 0
    assert reason in " ".join(one.text().split())
