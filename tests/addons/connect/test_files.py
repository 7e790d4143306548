"""`stepwell connect` from a file to a file: every timestep is applied once, and every prediction is written once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx2
import numpy as np
import pytest

from stepwell.addons.connect.broker_laws import BrokerLaws
from tests.addons.connect.connectors import (
    ConnectorProcess,
    Readings,
    connector,
    ended,
    kill_in_turn,
    lines_of,
    n_lines,
    run_once,
    wait_for,
    write_lines,
    written,
)
from tests.graphs import fold_reference
from tests.processes import ServiceProcess, service_process

PADDING = "p" * 10_000_000


def source_of(path: Path) -> str:
    """Return the id of the source that a file is."""
    first = path.read_bytes().splitlines()[0]
    return f"file:{path}@{hashlib.blake2b(first, digest_size=8).hexdigest()}"


class TestFiles(BrokerLaws):
    """The laws of every broker."""

    acknowledges = False

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        (tmp_path / "log.jsonl").touch()
        return f"file://{tmp_path}/log.jsonl"


def flags(service: ServiceProcess, out: Path, *, model: str = "fold") -> list[str]:
    return ["--model", model, "--stream", "stream", "--url", service.url, "--to", f"file://{out}"]


def test_a_file_of_messages_gives_the_predictions_of_the_fold(service: ServiceProcess, tmp_path: Path) -> None:
    readings = Readings(1, streams=50, steps=40)
    source = write_lines(tmp_path / "in.jsonl", readings.documents())

    counts = run_once(tmp_path, source, *flags(service, tmp_path / "out.jsonl"))

    assert written(lines_of(tmp_path / "out.jsonl")) == readings.expected()
    assert (counts["messages"], counts["timesteps"], counts["dead_letters"]) == (2000, 2000, 0)


def test_a_message_out_has_the_documented_fields(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "fields", "x": 1}, {"stream": "fields", "x": 2}])

    run_once(tmp_path, source, *flags(service, tmp_path / "out.jsonl"))

    first, last = lines_of(tmp_path / "out.jsonl")
    state_id = httpx2.get(f"{service.url}/v1/models/fold/streams/fields", timeout=30).json()["state_id"]
    place = {"id": source_of(tmp_path / "in.jsonl"), "at": 0}
    assert first == {
        "stream": "fields", "step": 1, "outputs": {"y": [2]}, "state_id": None, "source": place, "model": "fold",
        "version": 1,
    }  # fmt: skip
    assert (last["step"], last["source"]["at"], last["state_id"]) == (2, 1, state_id)


def test_bad_messages_are_dead_letters_and_the_others_are_applied(service: ServiceProcess, tmp_path: Path) -> None:
    bad = {
        "{oops": "bad_json",
        '{"stream": "bad", "x": ["1"]}': "bad_input",
        '{"stream": "bad", "x": [1, 2]}': "bad_input",
        '{"stream": "bad"}': "bad_input",
        '{"stream": "a/b", "x": [1]}': "bad_request",
        '{"x": [1]}': "bad_request",
        f'{{"stream": "bad", "x": [{2**63}]}}': "bad_input",
        f'{{"stream": "bad", "x": [1], "padding": "{PADDING}"}}': "too_large",
    }
    documents = [line for one in bad for line in (one, '{"stream": "good", "x": [1]}')]
    source = write_lines(tmp_path / "in.jsonl", documents)

    counts = run_once(
        tmp_path, source, *flags(service, tmp_path / "out.jsonl"),
        "--dead-letter", f"file://{tmp_path}/dead.jsonl", code=1,
    )  # fmt: skip

    letters = lines_of(tmp_path / "dead.jsonl")
    assert sorted(one["code"] for one in letters) == sorted(bad.values())
    assert all(
        one["reason"] and set(one) - {"size"} == {"reason", "code", "stream", "source", "message"} for one in letters
    )
    assert {one["source"]["at"] for one in letters} == {2 * i for i in range(len(bad))}
    assert next(one for one in letters if one["code"] == "bad_json")["message"] == "{oops"
    assert "the field 'stream' is missing; the message has x" in [one["reason"] for one in letters]
    assert [one["step"] for one in lines_of(tmp_path / "out.jsonl")] == list(range(1, len(bad) + 1))
    assert counts["dead_letters"] == len(bad)


def test_a_timestep_that_only_the_service_can_reject_is_a_dead_letter_alone(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """A sum that overflows: each input is finite, and the state would not be."""
    xs = [1.0, 3e38, 3e38, 2.0, 3e38, 4.0]
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "sum", "x": [x, 0.5]} for x in xs])

    counts = run_once(
        tmp_path, source, *flags(service, tmp_path / "out.jsonl", model="total"),
        "--dead-letter", f"file://{tmp_path}/dead.jsonl", code=1,
    )  # fmt: skip

    letters, out = lines_of(tmp_path / "dead.jsonl"), lines_of(tmp_path / "out.jsonl")
    assert [(one["source"]["at"], one["code"]) for one in letters] == [(2, "non_finite_state"), (4, "non_finite_state")]
    assert [one["step"] for one in out] == [1, 2, 3, 4]
    assert [one["source"]["at"] for one in out] == [0, 1, 3, 5]
    assert (counts["timesteps"], counts["skipped"]) == (4, 0)

    # As after a crash before anything was handed over: the rejected ones are before the position now
    again = run_once(tmp_path, source, *flags(service, tmp_path / "again.jsonl", model="total"))
    assert (again["timesteps"], again["skipped"]) == (0, 6)
    assert [one | {"state_id": None} for one in lines_of(tmp_path / "again.jsonl")] == [
        one | {"state_id": None} for one in out
    ]


def test_timesteps_with_a_seq_do_not_follow_one_that_the_service_rejects(
    service: ServiceProcess, tmp_path: Path
) -> None:
    xs = [1.0, 3e38, 3e38, 2.0, 4.0]
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "seq", "n": n, "x": [x, 0.5]} for n, x in enumerate(xs, 1)])

    run_once(
        tmp_path, source, *flags(service, tmp_path / "out.jsonl", model="total"), "--seq", "n",
        "--dead-letter", f"file://{tmp_path}/dead.jsonl", code=1,
    )  # fmt: skip

    letters, out = lines_of(tmp_path / "dead.jsonl"), lines_of(tmp_path / "out.jsonl")
    assert [(one["source"]["at"], one["code"]) for one in letters] == [
        (2, "non_finite_state"), (3, "seq_gap"), (4, "seq_gap")
    ]  # fmt: skip
    assert [(one["source"]["at"], one["step"]) for one in out] == [(0, 1), (1, 2)]


@pytest.mark.timeout(400)
def test_a_killed_connector_and_a_killed_service_lose_and_double_nothing(models: Path, short_path: Path) -> None:
    readings = Readings(2, streams=100, steps=200)
    source, out = write_lines(short_path / "in.jsonl", readings.documents()), short_path / "out.jsonl"
    kill_in_turn(
        short_path,
        models,
        lambda service: [source, *flags(service, out)],
        readings,
        add=lambda _: None,
        n_written=lambda: n_lines(out),
        victims=[0, None, 0],
    )

    assert written(lines_of(out)) == readings.expected()


def test_lines_that_are_appended_later_are_read(service: ServiceProcess, tmp_path: Path) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source = write_lines(path, [{"stream": "late", "x": 1}])
    with connector(tmp_path, source, *flags(service, out)) as one:
        wait_for(lambda: n_lines(out) == 1, what=one.text)
        with path.open("a") as file:
            file.write('{"stream": "late", "x"')
            file.flush()
            file.write(": 2}\n")
        wait_for(lambda: n_lines(out) == 2, what=one.text)

    assert [one["step"] for one in lines_of(out)] == [1, 2]


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_another_file_at_the_same_path_is_applied(service: ServiceProcess, tmp_path: Path, name: str) -> None:
    """Tomorrow's export under today's name: its rows are other rows, though they have the same numbers."""
    stream, path = f"tomorrow.{name}", tmp_path / name

    def write(xs: list[int]) -> str:
        if name.endswith(".jsonl"):
            return write_lines(path, [{"stream": stream, "x": x} for x in xs])
        return write_lines(path, ["stream,x", *(f"{stream},{x}" for x in xs)])

    words = [*flags(service, tmp_path / "out.jsonl"), "--input", "x=x"]
    today = run_once(tmp_path, write([1, 2, 3]), *words)
    grown = run_once(tmp_path, write([1, 2, 3, 4]), *words)
    tomorrow = run_once(tmp_path, write([5, 6, 7]), *words)

    assert [(one["timesteps"], one["skipped"]) for one in (today, grown, tomorrow)] == [(3, 0), (1, 3), (3, 0)]
    assert [one["outputs"]["y"] for one in lines_of(tmp_path / "out.jsonl")] == [
        [y] for y in fold_reference([1, 2, 3, 4, 5, 6, 7])
    ]


def test_positions_of_a_field_go_on_in_another_file_at_the_same_path(service: ServiceProcess, tmp_path: Path) -> None:
    """They are not the numbers of rows, so a file may be written anew with what has come since."""
    words = [*flags(service, tmp_path / "out.jsonl"), "--position", "n"]
    counts = [
        run_once(
            tmp_path, write_lines(tmp_path / "in.jsonl", [{"stream": "rotated", "n": n, "x": n} for n in ns]), *words
        )
        for ns in ([1, 2, 3], [3, 4, 5])
    ]

    assert [(one["timesteps"], one["skipped"]) for one in counts] == [(3, 0), (2, 1)]


def test_once_that_applies_and_writes_nothing_ends_with_1(service: ServiceProcess, tmp_path: Path) -> None:
    """The wrong file, or a source that was made anew under its old name: nobody would look for it behind a 0."""
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "wrong", "x": 1}, {"stream": "wrong", "x": 2}])
    words = [source, "--model", "fold", "--stream", "stream", "--url", service.url]
    run_once(tmp_path, *words)
    text = ended(tmp_path, *words, "--once", code=1)

    assert "Nothing was applied: all 2 timesteps were applied before, by their positions" in text
    assert f"file://{tmp_path}/in.jsonl" in text


def test_a_toml_file_maps_fields_constants_and_names(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"at": {"pump": 7}, "t": 1.5, "v": [2, 3.5], "n": 9}])
    (tmp_path / "c.toml").write_text(f"""
        [from]
        url = "{source}"
        stream = "at.pump"
        position = "n"
        [inputs]
        x = ["t", "v", 4]
        [service]
        url = "{service.url}"
        model = "lstm"
        [to]
        url = "file://{tmp_path}/out.jsonl"
    """)

    run_once(tmp_path, tmp_path / "c.toml")

    [out] = lines_of(tmp_path / "out.jsonl")
    peek = {"inputs": [1.5, 2, 3.5, 4]}
    expected = httpx2.post(f"{service.url}/v1/models/lstm/streams/other/peek", json=peek, timeout=30).json()["outputs"][
        "y"
    ]
    assert np.allclose(out["outputs"]["y"], expected, atol=1e-6)
    assert (out["stream"], out["source"]) == ("7", {"id": f"file:{tmp_path}/in.jsonl#n", "at": 9})


def test_check_shows_what_would_be_sent_and_changes_nothing(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "shown", "x": [i]} for i in range(20)] + ["{"])
    text = ended(tmp_path, source, "--model", "fold", "--stream", "stream", "--url", service.url, "--check", "--json")

    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["inputs"] for row in rows] == [{"x": [i]} for i in range(10)]
    assert httpx2.get(f"{service.url}/v1/models/fold/streams/shown", timeout=30).status_code == 404


def test_a_connector_waits_for_a_service_that_is_not_there_yet(models: Path, short_path: Path) -> None:
    readings, out = Readings(3, streams=3, steps=3), short_path / "out.jsonl"
    source = write_lines(short_path / "in.jsonl", readings.documents())
    service = ServiceProcess(models, short_path / "one")
    with connector(short_path, source, *flags(service, out)) as one:
        wait_for(lambda: "waiting for the service" in one.text(), what=one.text)
        service.start()
        try:
            wait_for(lambda: n_lines(out) == len(readings), what=one.text)
        finally:
            service.stop()

    assert written(lines_of(out)) == readings.expected()


def test_sigterm_hands_over_what_is_open_and_ends_with_0(service: ServiceProcess, tmp_path: Path) -> None:
    readings, out = Readings(4, streams=20, steps=1000), tmp_path / "out.jsonl"
    source = write_lines(tmp_path / "in.jsonl", readings.documents())
    one = ConnectorProcess(tmp_path, source, *flags(service, out)).start()
    wait_for(lambda: n_lines(out) > 0, what=one.text)

    assert one.stop() == 0, one.text()

    applied = sum(
        httpx2.get(f"{service.url}/v1/models/fold/streams/{name}", timeout=30).json().get("step", 0)
        for name in readings.xs
    )
    assert n_lines(out) == applied
    for name, answers in written(lines_of(out)).items():
        assert answers == readings.expected()[name][: len(answers)]


def test_sigterm_ends_a_connector_whose_service_is_away(models: Path, short_path: Path) -> None:
    """What is open cannot be handed over: that is reported, and the next start reads it again."""
    readings, out = Readings(5, streams=3, steps=400), short_path / "out.jsonl"
    source = write_lines(short_path / "in.jsonl", readings.documents())
    service = ServiceProcess(models, short_path / "one", "--drain-s", "0").start()
    one = ConnectorProcess(short_path, source, *flags(service, out)).start()
    wait_for(lambda: n_lines(out) > 0, what=one.text)
    service.kill()
    with (short_path / "in.jsonl").open("a") as file:
        file.write('{"stream": "r5.0", "x": 1}\n')
    wait_for(lambda: "waiting for the service" in one.text(), what=one.text)

    assert one.stop() == 1
    assert "read again" in one.text()


def test_the_metrics_are_served_for_prometheus(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "counted", "x": 1}, "{"])
    with connector(tmp_path, source, *flags(service, tmp_path / "out.jsonl"), "--metrics-port", 0) as one:
        wait_for(lambda: n_lines(tmp_path / "out.jsonl") == 1 and "/metrics" in one.text(), what=one.text)
        address = one.text().split("metrics: ")[1].split()[0]
        text = httpx2.get(address, timeout=30).text
        wait_for(lambda: "cannot be used" in one.text(), what=one.text)

    assert (
        f"--dead-letter is not set. The first one, at 1 of {source_of(tmp_path / 'in.jsonl')}: the message is not JSON"
        in one.text()
    )
    assert "stepwell_connect_messages_total 2.0" in text
    assert 'stepwell_connect_dead_letters_total{code="bad_json"} 1.0' in text


def test_a_service_with_small_limits_gets_small_messages(models: Path, short_path: Path) -> None:
    readings, out = Readings(6, streams=60, steps=10), short_path / "out.jsonl"
    source = write_lines(short_path / "in.jsonl", readings.documents())
    limits = ("--max-body-bytes", "4096", "--max-chunk-steps", "5")
    with service_process(models, short_path / "one", *limits) as service:
        counts = run_once(short_path, source, *flags(service, out))

    assert written(lines_of(out)) == readings.expected()
    assert (counts["dead_letters"], counts["retries"]) == (0, 0)


def csv_flags(service: ServiceProcess, out: Path, *, model: str = "fold") -> list[str]:
    return ["--model", model, "--stream", "machine", "--url", service.url, "--to", f"file://{out}"]


def test_a_csv_file_has_its_columns_by_name_and_its_ids_as_they_stand(service: ServiceProcess, tmp_path: Path) -> None:
    """The first line is no dead letter, and `0042` and `42` are two machines."""
    ids = ["0042", "42", "4_2", "48e2", "1.10"]
    source = write_lines(tmp_path / "in.csv", ["n;machine;x", *(f"{n};{one};{n}" for n, one in enumerate(ids))])

    counts = run_once(tmp_path, source, *csv_flags(service, tmp_path / "out.jsonl"))

    out = lines_of(tmp_path / "out.jsonl")
    assert [(one["stream"], one["step"], one["source"]["at"]) for one in out] == [
        (one, 1, n) for n, one in enumerate(ids, 1)
    ]
    assert counts["dead_letters"] == 0


def test_once_with_dead_letters_ends_with_1_and_their_number(service: ServiceProcess, tmp_path: Path) -> None:
    """A job that uses half of its file has not succeeded."""
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "half", "x": 1}, "{", {"stream": "half"}])
    text = ended(tmp_path, source, *flags(service, tmp_path / "out.jsonl"), "--once", code=1)

    assert "2 dead letters of 3 messages (bad_json: 1, bad_input: 1)" in text
    assert "--dead-letter" in text


def test_late_timesteps_are_counted_apart_from_repeated_ones(service: ServiceProcess, tmp_path: Path) -> None:
    """A greater position came before them, so they are lost: nobody would look for them among repetitions."""
    ats = [1, 3, 2, 3, 3, 5, 4]
    source = write_lines(tmp_path / "in.jsonl", [{"stream": "again", "at": at, "x": at} for at in ats])
    words = (source, *flags(service, tmp_path / "out.jsonl"), "--position", "at", "--once")

    texts = [ended(tmp_path, *words) for _ in range(2)]

    assert "3 timesteps applied, 2 applied before, 2 late and not applied" in texts[0]
    assert "0 timesteps applied, 5 applied before, 2 late and not applied" in texts[1]
    assert "stream 'again' has position 2 after a greater one" in texts[0]
    assert n_lines(tmp_path / "out.jsonl") == 3


@pytest.mark.parametrize("n_messages", [3, 150])
def test_a_field_that_no_message_has_is_an_error_before_anything_is_applied(
    service: ServiceProcess, tmp_path: Path, n_messages: int
) -> None:
    """A model that takes missing values would be stepped by NaN."""
    documents = [{"stream": f"typo{n_messages}", "temperature_c": 1.5, "pressure": 2} for _ in range(n_messages)]
    words = [
        *flags(service, tmp_path / "out.jsonl", model="lstm"),
        "--input",
        "x=temperatur_c,pressure,pressure,pressure",
    ]
    text = ended(tmp_path, write_lines(tmp_path / "in.jsonl", documents), *words, "--once", code=1)

    assert "had no field 'temperatur_c' (nearest: 'temperature_c')" in text
    assert httpx2.get(f"{service.url}/v1/models/lstm/streams/typo{n_messages}", timeout=30).status_code == 404


def test_a_field_that_no_message_has_is_reported_while_there_are_few(service: ServiceProcess, tmp_path: Path) -> None:
    """The next message may have it."""
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with connector(tmp_path, write_lines(path, [{"stream": "few", "X": 1}]), *flags(service, out)) as one:
        wait_for(lambda: "1 message had no field 'x'" in one.text(), what=one.text)
        with path.open("a") as file:
            file.write('{"stream": "few", "x": 2}\n')
        wait_for(lambda: n_lines(out) == 1, what=one.text)


def test_check_ends_with_1_if_no_message_has_a_field(service: ServiceProcess, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.csv", ["machine,temperature_c", "m1,1", "m2,2"])
    words = ["--input", "x=temperature_c", "--model", "fold", "--stream", "maschine", "--url", service.url, "--check"]
    text = ended(tmp_path, source, *words, code=1)

    assert "2 messages had no field 'maschine' (nearest: 'machine')" in text


def test_a_csv_file_without_the_columns_of_an_input_is_refused_with_the_names_that_it_has(
    service: ServiceProcess, tmp_path: Path
) -> None:
    """By the rules and in the words of `replay` and `backfill`."""
    source = write_lines(tmp_path / "in.csv", ["machine,temp", "m1,1"])
    text = ended(tmp_path, source, *csv_flags(service, tmp_path / "out.jsonl"), code=2)

    assert "input 'x' is made of x or x[0]" in text
    assert "has machine, temp" in text
