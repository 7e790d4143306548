"""`stepwell streams` reads and changes the streams of a running service on a real store."""

from __future__ import annotations

import http.server
import json
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from typer.testing import Result

from stepwell.addons.embedded_store.server import EmbeddedStore
from stepwell.commands.streams import streams_app
from stepwell.store.keys import record_key
from stepwell_export.runtime.errors import StepwellError
from tests.commands.program import invoke
from tests.graphs import count, fold, fold_reference, wave, write_model
from tests.processes import ServiceProcess, free_port, service_process

KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with models and a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "fold", fold)
        write_model(Path(name) / "models", "count", count)
        write_model(Path(name) / "models", "wave", wave)
        yield Path(name)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServiceProcess]:
    with service_process(folder / "models", folder / "open", "--drain-s", "0") as one:
        yield one


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[ServiceProcess]:
    """A service that requires an API key; the key of the tests may read but not reset."""
    keys = [{"id": "t", "sha256": sha256(KEY.encode()).hexdigest(), "tenant": "t", "scopes": ["read", "metrics"]}]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    flags = ("--api-keys-file", str(folder / "keys.json"), "--drain-s", "0")
    with service_process(folder / "models", folder / "guarded", *flags) as one:
        yield one


def run_streams(url: str, *words: str, key: str | None = None, typed: str = "") -> Result:
    """Run `stepwell streams WORDS`; a `StepwellError` is in the result's `exception`."""
    return invoke(streams_app, words, typed=typed, STEPWELL_URL=url, STEPWELL_KEY=key)


def advance(running: ServiceProcess, stream: str, times: int = 1, model: str = "fold") -> str:
    """Step a stream and return its state id."""
    state_id = ""
    for _ in range(times):
        answer = httpx2.post(f"{running.url}/v1/models/{model}/streams/{stream}/step", json={"inputs": [1]}, timeout=30)
        state_id = answer.raise_for_status().json()["state_id"]
    return state_id


def step_of(running: ServiceProcess, stream: str) -> int | None:
    """Return the step of a stream, or None if it does not exist."""
    answer = httpx2.get(f"{running.url}/v1/models/fold/streams/{stream}", timeout=30)
    return None if answer.status_code == 404 else answer.json()["step"]


def listed_streams(result: Result) -> list[tuple[str, str, int]]:
    assert result.exit_code == 0
    return [(one["model"], one["stream"], one["step"]) for one in json.loads(result.stdout)["streams"]]


def error_of(result: Result) -> StepwellError:
    assert isinstance(result.exception, StepwellError)
    return result.exception


# -------------------------------------------------------------------- ls


def test_ls_prints_streams_and_their_steps_as_a_table(running: ServiceProcess) -> None:
    advance(running, "table-a", 3)
    result = run_streams(running.url, "ls", "fold", "--prefix", "table-")

    assert [line.split() for line in result.stdout.splitlines() if "table-" in line] == [["fold", "table-a", "3"]]


def test_ls_shows_a_stream_whose_record_cannot_be_read(running: ServiceProcess, folder: Path) -> None:
    advance(running, "torn")
    with redis.Redis.from_url(EmbeddedStore(folder / "open" / "data").url) as client:
        client.set(record_key("default", "fold", "torn"), b"")
    result = run_streams(running.url, "ls", "fold", "--prefix", "torn")

    assert [line.split() for line in result.stdout.splitlines() if "torn" in line] == [["fold", "torn", "unreadable"]]


def test_ls_without_a_model_lists_all_models(running: ServiceProcess) -> None:
    advance(running, "both")
    advance(running, "both", 2, model="count")
    advance(running, "other")

    assert listed_streams(run_streams(running.url, "ls", "--prefix", "both", "--json")) == [
        ("count", "both", 2),
        ("fold", "both", 1),
    ]


def test_ls_lists_the_first_streams_by_model_and_id(running: ServiceProcess) -> None:
    ids = [f"few-{n:02}" for n in range(40)]
    body = {"streams": ids[::-1], "inputs": {"x": [[1]] * 40}}
    httpx2.post(f"{running.url}/v1/models/fold/step", json=body, timeout=30).raise_for_status()
    advance(running, "few-99", model="count")
    words = ("ls", "--prefix", "few-")

    expected = [("count", "few-99"), *(("fold", one) for one in ids)]
    assert [one[:2] for one in listed_streams(run_streams(running.url, *words, "--json"))] == expected
    assert [one[:2] for one in listed_streams(run_streams(running.url, *words, "--limit", "3", "--json"))] == expected[
        :3
    ]
    lines = run_streams(running.url, *words).stdout.splitlines()
    assert [tuple(line.split()[:2]) for line in lines if "few-" in line] == expected


def test_a_model_that_is_not_there_gets_no_advice_about_streams(running: ServiceProcess) -> None:
    result = run_streams(running.url, "ls", "nope")

    assert isinstance(result.exception, StepwellError)
    assert "models are: count, fold, wave" in result.exception.problem
    assert result.exception.fix == ""


def test_ls_reads_all_pages(running: ServiceProcess) -> None:
    names = [f"many-{n}" for n in range(1500)]  # a page has 1000
    for part in (names[:750], names[750:]):
        body = {"streams": part, "inputs": {"x": [[1]] * len(part)}}
        httpx2.post(f"{running.url}/v1/models/fold/step", json=body, timeout=30).raise_for_status()
    found = [
        stream for _, stream, _ in listed_streams(run_streams(running.url, "ls", "fold", "--prefix", "many-", "--json"))
    ]

    assert sorted(found) == sorted(names)


def test_ls_of_no_streams_is_an_empty_list(running: ServiceProcess) -> None:
    assert listed_streams(run_streams(running.url, "ls", "fold", "--prefix", "nobody", "--json")) == []


# -------------------------------------------------------------------- show


def test_show_prints_position_norms_and_the_last_prediction(running: ServiceProcess) -> None:
    state_id = advance(running, "shown", 2)
    found = json.loads(run_streams(running.url, "show", "fold", "shown", "--json").stdout)
    lines = [line.split() for line in run_streams(running.url, "show", "fold", "shown").stdout.splitlines()]
    [y] = fold_reference([1, 1])[1:]

    assert (found["model"], found["stream"], found["step"], found["state_id"]) == ("fold", "shown", 2, state_id)
    assert (found["outputs"], found["state_norms"]) == ({"y": [y]}, {"h": pytest.approx(abs(y))})
    assert [
        words for words in (["stream", "shown"], ["step", "2"], ["state", "id", state_id]) if words not in lines
    ] == []
    assert {"norm of state h", "last y"} <= {" ".join(line[:-1]) for line in lines}


# -------------------------------------------------------------------- reset


def test_reset_asks_for_confirmation_and_names_what_would_be_lost_on_standard_error(running: ServiceProcess) -> None:
    advance(running, "asked", 4)
    result = run_streams(running.url, "reset", "fold", "asked", "--json", typed="y\n")

    assert "asked of fold is at step 4" in result.stderr
    assert "initial state?" in result.stderr
    assert "initial state?" not in result.stdout
    assert step_of(running, "asked") == 0


def test_reset_does_nothing_without_confirmation(running: ServiceProcess) -> None:
    advance(running, "declined", 1)
    for typed in ("n\n", "\n", ""):
        assert run_streams(running.url, "reset", "fold", "declined", typed=typed).exit_code == 1
    assert step_of(running, "declined") == 1


def test_reset_does_not_discard_a_step_that_was_applied_meanwhile(running: ServiceProcess) -> None:
    old = advance(running, "moving")
    advance(running, "moving")
    error = error_of(run_streams(running.url, "reset", "fold", "moving", "--after", old, "--yes"))

    assert "state_changed" in error.problem
    assert step_of(running, "moving") == 2


class _StepBeforeReset(http.server.BaseHTTPRequestHandler):
    """A proxy that steps the stream once before it forwards a reset."""

    running: ServiceProcess

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.command == "POST":
            advance(self.running, "overtaken")
        headers = {"content-type": "application/json"}
        answer = httpx2.request(self.command, self.running.url + self.path, content=body, headers=headers, timeout=30)
        self.send_response(answer.status_code)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = _forward  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: Any) -> None:
        """Silence the log."""


@pytest.fixture
def step_before_reset(running: ServiceProcess) -> Iterator[str]:
    handler = type("Handler", (_StepBeforeReset,), {"running": running})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_reset_applies_to_the_state_at_the_time_of_the_question(
    running: ServiceProcess, step_before_reset: str
) -> None:
    advance(running, "overtaken")
    error = error_of(run_streams(step_before_reset, "reset", "fold", "overtaken", "--yes"))

    assert "state_changed" in error.problem
    assert step_of(running, "overtaken") == 2


# -------------------------------------------------------------------- rm


def test_rm_deletes_streams(running: ServiceProcess) -> None:
    advance(running, "gone-a")
    advance(running, "gone-b")

    assert run_streams(running.url, "rm", "fold", "gone-a", "gone-b", "--yes").exit_code == 0
    assert (step_of(running, "gone-a"), step_of(running, "gone-b")) == (None, None)


def test_rm_does_nothing_without_confirmation(running: ServiceProcess) -> None:
    advance(running, "stays")

    assert run_streams(running.url, "rm", "fold", "stays", typed="n\n").exit_code == 1
    assert step_of(running, "stays") == 1


def test_rm_of_a_missing_stream_is_no_error(running: ServiceProcess) -> None:
    result = run_streams(running.url, "rm", "fold", "never-was", "--yes", "--json")

    assert json.loads(result.stdout) == {"forgotten": ["never-was"]}


def test_rm_deletes_nothing_if_one_name_is_invalid(running: ServiceProcess) -> None:
    advance(running, "first")

    assert run_streams(running.url, "rm", "fold", "first", "..", "--yes").exit_code == 2
    assert step_of(running, "first") == 1


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "code"),
    [(["reset", "fold", "nobody", "--yes"], "stream_not_found"), (["rm", "nothing", "a", "--yes"], "model_not_found")],
)
def test_an_error_has_a_message_and_a_code(running: ServiceProcess, words: list[str], code: str) -> None:
    error = error_of(run_streams(running.url, *words))

    assert error.problem.endswith(f"(404 {code})")
    assert repr(words[1]) in error.problem or repr(words[2]) in error.problem


def test_a_missing_key_is_reported_with_how_to_pass_one(guarded: ServiceProcess) -> None:
    error = error_of(run_streams(guarded.url, "ls", "fold"))

    assert "unauthenticated" in error.problem
    assert "STEPWELL_KEY" in error.fix


def test_the_key_in_the_environment_is_sent_and_in_no_error(guarded: ServiceProcess) -> None:
    assert listed_streams(run_streams(guarded.url, "ls", "fold", "--json", key=KEY)) == []
    assert "forbidden" in error_of(run_streams(guarded.url, "rm", "fold", "a", "--yes", key=KEY)).problem
    assert "wrong-key" not in str(error_of(run_streams(guarded.url, "ls", "fold", key="wrong-key")))


def test_an_unreachable_service_is_reported_with_how_to_start_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = error_of(run_streams(url, "ls", "fold"))

    assert error.problem.startswith(f"No Stepwell service responds at {url}: ")
    assert "stepwell serve" in error.fix


class _HtmlErrorPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(502)
        self.end_headers()
        self.wfile.write(b"<html>Bad Gateway</html>")

    def log_message(self, *_: Any) -> None:
        """Silence the log."""


@pytest.fixture
def gateway() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _HtmlErrorPage) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_error_page_of_a_gateway_is_reported(gateway: str) -> None:
    assert "502 Bad Gateway came from another server" in error_of(run_streams(gateway, "ls", "fold")).problem


def test_ls_filters_by_a_part_of_the_id(running: ServiceProcess) -> None:
    for stream in ("filter-Pump-1", "filter-fan-1"):
        advance(running, stream)
    result = run_streams(running.url, "ls", "fold", "--prefix", "filter-", "--filter", "pump", "--json")

    assert [one["stream"] for one in json.loads(result.stdout)["streams"]] == ["filter-Pump-1"]


def test_fork_creates_another_stream(running: ServiceProcess) -> None:
    advance(running, "forked", 3)
    result = run_streams(running.url, "fork", "fold", "forked", "fork-of-it")

    assert result.stdout == "fork-of-it starts at step 3\n"
    assert step_of(running, "fork-of-it") == 3
    advance(running, "taken")
    assert "stream_exists" in str(run_streams(running.url, "fork", "fold", "forked", "taken").exception)


def test_a_snapshot_that_is_not_there_is_reported_with_how_to_list_them(running: ServiceProcess) -> None:
    advance(running, "bare")

    result = run_streams(running.url, "reset", "fold", "bare", "--to", "nope", "--yes")

    assert isinstance(result.exception, StepwellError)
    assert "has no snapshot 'nope'" in result.exception.problem
    assert result.exception.fix == "List the stream's snapshots with `stepwell streams snapshot ls`."


def test_a_name_that_no_snapshot_can_have_is_wrong_usage_and_deletes_no_stream(running: ServiceProcess) -> None:
    advance(running, "kept")
    before = step_of(running, "kept")
    for words in (("put", "fold", "kept", ".."), ("rm", "fold", "kept", "..", "--yes")):
        result = run_streams(running.url, "snapshot", *words)

        assert result.exit_code == 2
        assert "snapshot's name is" in result.stderr
    assert step_of(running, "kept") == before


def test_snapshots_can_be_created_listed_restored_and_deleted(running: ServiceProcess) -> None:
    advance(running, "copied", 2)
    assert run_streams(running.url, "snapshot", "put", "fold", "copied", "two").stdout == "two is copied at step 2\n"
    advance(running, "copied", 3)
    listed_streams = json.loads(run_streams(running.url, "snapshot", "ls", "fold", "copied", "--json").stdout)[
        "snapshots"
    ]
    assert [(one["name"], one["step"]) for one in listed_streams] == [("two", 2)]
    assert "two" in run_streams(running.url, "snapshot", "ls", "fold", "copied").stdout
    assert run_streams(running.url, "reset", "fold", "copied", "--to", "two", "--yes").stdout == "copied is at step 2\n"
    assert run_streams(running.url, "snapshot", "rm", "fold", "copied", "two", "--yes").stdout == "two deleted\n"
    assert json.loads(run_streams(running.url, "snapshot", "ls", "fold", "copied", "--json").stdout) == {
        "snapshots": []
    }


def test_rollout_prints_a_forecast(running: ServiceProcess) -> None:
    advance(running, "ahead", 2, model="wave")
    found = json.loads(run_streams(running.url, "rollout", "wave", "ahead", "3", "--json").stdout)

    assert found["step"] == 5
    assert len(found["outputs"]["y"]) == 3
    assert run_streams(running.url, "rollout", "wave", "ahead", "3").stdout.count("\n") >= 4


def test_rollout_of_a_model_without_a_feedback_rule_is_reported(running: ServiceProcess) -> None:
    advance(running, "no-rule")

    assert "feedback" in str(run_streams(running.url, "rollout", "fold", "no-rule", "3").exception)
