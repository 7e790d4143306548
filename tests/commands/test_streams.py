"""`stepwell streams` looks at and tends the streams of a running service; a real one, on a real store."""

from __future__ import annotations

import http.server
import json
import tempfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from typer.testing import CliRunner, Result

from model_export.errors import StepwellError
from service.commands.streams import streams_app
from service.store.embedded import EmbeddedStore
from service.store.keys import record_key
from tests.graphs import count, fold, fold_reference, wave, write_model
from tests.processes import Service, free_port, service

KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with two models, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        write_model(Path(name) / "models", "fold", fold)
        write_model(Path(name) / "models", "count", count)
        write_model(Path(name) / "models", "wave", wave)
        yield Path(name)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Service]:
    with service(folder / "models", folder / "open", "--drain-s", "0") as one:
        yield one


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Service]:
    """A service that asks for a key; the tests' may read, not reset."""
    keys = [{"id": "t", "sha256": sha256(KEY.encode()).hexdigest(), "tenant": "t", "scopes": ["read", "metrics"]}]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    flags = ("--api-keys-file", str(folder / "keys.json"), "--drain-s", "0")
    with service(folder / "models", folder / "guarded", *flags) as one:
        yield one


def streams(url: str, *words: str, key: str | None = None, typed: str = "") -> Result:
    """Run `stepwell streams WORDS`; a `StepwellError` is kept in the result's `exception`."""
    env = {"COLUMNS": "200", "TERM": "dumb", "STEPWELL_URL": url, "STEPWELL_KEY": key}
    result = CliRunner().invoke(streams_app, words, env=env, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit | StepwellError):
        raise result.exception
    return result


def step(running: Service, stream: str, times: int = 1, model: str = "fold") -> str:
    """Move a stream and return its state id."""
    state_id = ""
    for _ in range(times):
        answer = httpx.post(f"{running.url}/v1/models/{model}/streams/{stream}/step", json={"inputs": [1]})
        state_id = answer.raise_for_status().json()["state_id"]
    return state_id


def at(running: Service, stream: str) -> int | None:
    """The step that a stream has, None where there is none."""
    answer = httpx.get(f"{running.url}/v1/models/fold/streams/{stream}")
    return None if answer.status_code == 404 else answer.json()["step"]


def listed(result: Result) -> list[tuple[str, str, int]]:
    assert result.exit_code == 0
    return [(one["model"], one["stream"], one["step"]) for one in json.loads(result.stdout)["streams"]]


def refusal(result: Result) -> StepwellError:
    assert isinstance(result.exception, StepwellError)
    return result.exception


# -------------------------------------------------------------------- ls


def test_ls_shows_streams_and_their_steps_as_a_table(running: Service) -> None:
    step(running, "table-a", 3)
    result = streams(running.url, "ls", "fold", "--prefix", "table-")

    assert [line.split() for line in result.stdout.splitlines() if "table-" in line] == [["fold", "table-a", "3"]]


def test_ls_shows_a_stream_whose_record_cannot_be_read(running: Service, folder: Path) -> None:
    step(running, "torn")
    with redis.Redis.from_url(EmbeddedStore(folder / "open" / "data").url) as client:
        client.set(record_key("default", "fold", "torn"), b"")
    result = streams(running.url, "ls", "fold", "--prefix", "torn")

    assert [line.split() for line in result.stdout.splitlines() if "torn" in line] == [
        ["fold", "torn", "cannot", "be", "read"]
    ]


def test_ls_takes_those_with_a_prefix(running: Service) -> None:
    step(running, "pre-a")
    step(running, "other")

    assert listed(streams(running.url, "ls", "fold", "--prefix", "pre-", "--json")) == [("fold", "pre-a", 1)]


def test_ls_without_a_model_goes_through_all(running: Service) -> None:
    step(running, "both")
    step(running, "both", 2, model="count")

    assert listed(streams(running.url, "ls", "--prefix", "both", "--json")) == [
        ("count", "both", 2),
        ("fold", "both", 1),
    ]


def test_ls_follows_the_pages_to_the_end(running: Service) -> None:
    names = [f"many-{n}" for n in range(1500)]  # a page has 1000
    for part in (names[:750], names[750:]):
        body = {"streams": part, "inputs": {"x": [[1]] * len(part)}}
        httpx.post(f"{running.url}/v1/models/fold/step", json=body).raise_for_status()
    found = [stream for _, stream, _ in listed(streams(running.url, "ls", "fold", "--prefix", "many-", "--json"))]

    assert sorted(found) == sorted(names)


def test_ls_stops_at_the_limit(running: Service) -> None:
    for n in range(5):
        step(running, f"few-{n}")

    assert len(listed(streams(running.url, "ls", "fold", "--prefix", "few-", "--limit", "3", "--json"))) == 3


def test_ls_of_no_streams_is_an_empty_list(running: Service) -> None:
    assert listed(streams(running.url, "ls", "fold", "--prefix", "nobody", "--json")) == []


# -------------------------------------------------------------------- show


def test_show_tells_where_a_stream_stands(running: Service) -> None:
    state_id = step(running, "shown", 2)
    found = json.loads(streams(running.url, "show", "fold", "shown", "--json").stdout)

    assert (found["model"], found["stream"], found["step"], found["state_id"]) == ("fold", "shown", 2, state_id)


def test_show_is_a_table_for_people(running: Service) -> None:
    state_id = step(running, "shown-too", 2)
    lines = [line.split() for line in streams(running.url, "show", "fold", "shown-too").stdout.splitlines()]

    assert ["stream", "shown-too"] in lines
    assert ["step", "2"] in lines
    assert ["state", "id", state_id] in lines


# -------------------------------------------------------------------- reset


def test_reset_brings_a_stream_to_its_initial_state(running: Service) -> None:
    step(running, "again", 4)

    assert streams(running.url, "reset", "fold", "again", "--yes").exit_code == 0
    assert at(running, "again") == 0


def test_reset_asks_and_tells_what_would_be_lost(running: Service) -> None:
    step(running, "asked", 4)
    result = streams(running.url, "reset", "fold", "asked", typed="y\n")

    assert "asked of fold is at step 4" in result.stderr
    assert at(running, "asked") == 0


@pytest.mark.parametrize("typed", ["n\n", "\n", ""])
def test_reset_does_nothing_without_a_yes(running: Service, typed: str) -> None:
    step(running, "kept", 1)
    before = at(running, "kept")

    assert streams(running.url, "reset", "fold", "kept", typed=typed).exit_code == 1
    assert at(running, "kept") == before


def test_reset_asks_beside_what_can_be_piped_on(running: Service) -> None:
    step(running, "piped")
    result = streams(running.url, "reset", "fold", "piped", "--json", typed="y\n")

    assert "initial state?" in result.stderr
    assert "initial state?" not in result.stdout


def test_reset_does_not_wipe_a_step_that_came_meanwhile(running: Service) -> None:
    old = step(running, "moving")
    step(running, "moving")
    told = refusal(streams(running.url, "reset", "fold", "moving", "--after", old, "--yes"))

    assert "state_changed" in told.problem
    assert at(running, "moving") == 2


class _Overtaken(http.server.BaseHTTPRequestHandler):
    """Passes a reset on only after the stream was stepped once more."""

    running: Service

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.command == "POST":
            step(self.running, "overtaken")
        headers = {"content-type": "application/json"}
        answer = httpx.request(self.command, self.running.url + self.path, content=body, headers=headers)
        self.send_response(answer.status_code)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = _pass_on  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def overtaken(running: Service) -> Iterator[str]:
    handler = type("Handler", (_Overtaken,), {"running": running})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_reset_goes_from_where_the_stream_stood_when_it_was_asked_about(running: Service, overtaken: str) -> None:
    step(running, "overtaken")
    told = refusal(streams(overtaken, "reset", "fold", "overtaken", "--yes"))

    assert "state_changed" in told.problem
    assert at(running, "overtaken") == 2


# -------------------------------------------------------------------- rm


def test_rm_forgets_streams(running: Service) -> None:
    step(running, "gone-a")
    step(running, "gone-b")

    assert streams(running.url, "rm", "fold", "gone-a", "gone-b", "--yes").exit_code == 0
    assert (at(running, "gone-a"), at(running, "gone-b")) == (None, None)


def test_rm_does_nothing_without_a_yes(running: Service) -> None:
    step(running, "stays")

    assert streams(running.url, "rm", "fold", "stays", typed="n\n").exit_code == 1
    assert at(running, "stays") == 1


def test_rm_of_what_is_not_there_is_no_error(running: Service) -> None:
    result = streams(running.url, "rm", "fold", "never-was", "--yes", "--json")

    assert json.loads(result.stdout) == {"forgotten": ["never-was"]}


def test_rm_forgets_nothing_when_one_name_cannot_be(running: Service) -> None:
    step(running, "first")

    assert streams(running.url, "rm", "fold", "first", "..", "--yes").exit_code == 2
    assert at(running, "first") == 1


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "fold", "nobody"], "stream_not_found"),
        (["reset", "fold", "nobody", "--yes"], "stream_not_found"),
        (["show", "nothing", "a"], "model_not_found"),
        (["ls", "nothing"], "model_not_found"),
        (["rm", "nothing", "a", "--yes"], "model_not_found"),
    ],
)
def test_a_refusal_says_what_was_found_and_its_code(running: Service, words: list[str], code: str) -> None:
    told = refusal(streams(running.url, *words))

    assert told.problem.endswith(f"(404 {code})")
    assert repr(words[1]) in told.problem or repr(words[2]) in told.problem


def test_without_a_key_it_says_how_to_give_one(guarded: Service) -> None:
    told = refusal(streams(guarded.url, "ls", "fold"))

    assert "unauthenticated" in told.problem
    assert "STEPWELL_KEY" in told.fix


def test_the_key_of_the_environment_is_sent(guarded: Service) -> None:
    assert listed(streams(guarded.url, "ls", "fold", "--json", key=KEY)) == []


def test_a_key_without_the_scope_is_told(guarded: Service) -> None:
    assert "forbidden" in refusal(streams(guarded.url, "rm", "fold", "a", "--yes", key=KEY)).problem


def test_a_refusal_never_repeats_the_key(guarded: Service) -> None:
    assert "wrong-key" not in str(refusal(streams(guarded.url, "ls", "fold", key="wrong-key")))


def test_where_nothing_listens_it_says_how_to_start_a_service() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    told = refusal(streams(url, "ls", "fold"))

    assert told.problem.startswith(f"No Stepwell answers at {url}: ")
    assert "stepwell serve" in told.fix


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://[", ""])
def test_an_address_that_is_none_is_told(url: str) -> None:
    result = streams(url or "http://", "ls", "fold")

    assert result.exit_code in (1, 2)


class _Html(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(502)
        self.end_headers()
        self.wfile.write(b"<html>Bad Gateway</html>")

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def gateway() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Html) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_gateway_that_answers_for_a_service_that_is_down_is_told(gateway: str) -> None:
    assert "502 Bad Gateway came from something else" in refusal(streams(gateway, "ls", "fold")).problem


def test_ls_takes_those_whose_id_has_a_text(running: Service) -> None:
    for stream in ("filter-Pump-1", "filter-fan-1"):
        step(running, stream)
    result = streams(running.url, "ls", "fold", "--prefix", "filter-", "--filter", "pump", "--json")

    assert [one["stream"] for one in json.loads(result.stdout)["streams"]] == ["filter-Pump-1"]


def test_show_has_the_norms_of_the_states_and_the_last_prediction(running: Service) -> None:
    step(running, "norms", 2)
    found = json.loads(streams(running.url, "show", "fold", "norms", "--json").stdout)
    [y] = fold_reference([1, 1])[1:]

    assert (found["outputs"], found["state_norms"]) == ({"y": [y]}, {"h": pytest.approx(abs(y))})
    table = streams(running.url, "show", "fold", "norms").stdout
    assert "norm of state h" in table
    assert "last y" in table


def test_fork_begins_another_stream(running: Service) -> None:
    step(running, "forked", 3)
    result = streams(running.url, "fork", "fold", "forked", "fork-of-it")

    assert result.stdout == "fork-of-it begins at step 3\n"
    assert at(running, "fork-of-it") == 3
    step(running, "taken")
    assert "stream_exists" in str(streams(running.url, "fork", "fold", "forked", "taken").exception)


def test_snapshots_are_taken_listed_gone_back_to_and_forgotten(running: Service) -> None:
    step(running, "copied", 2)
    assert streams(running.url, "snapshot", "put", "fold", "copied", "two").stdout == "two is copied at step 2\n"
    step(running, "copied", 3)
    listed = json.loads(streams(running.url, "snapshot", "ls", "fold", "copied", "--json").stdout)["snapshots"]
    assert [(one["name"], one["step"]) for one in listed] == [("two", 2)]
    assert "two" in streams(running.url, "snapshot", "ls", "fold", "copied").stdout
    assert streams(running.url, "reset", "fold", "copied", "--to", "two", "--yes").stdout == "copied is at step 2\n"
    assert streams(running.url, "snapshot", "rm", "fold", "copied", "two", "--yes").stdout == "two forgotten\n"
    assert json.loads(streams(running.url, "snapshot", "ls", "fold", "copied", "--json").stdout) == {"snapshots": []}


def test_rollout_looks_ahead(running: Service) -> None:
    step(running, "ahead", 2, model="wave")
    found = json.loads(streams(running.url, "rollout", "wave", "ahead", "3", "--json").stdout)

    assert found["step"] == 5
    assert len(found["outputs"]["y"]) == 3
    assert streams(running.url, "rollout", "wave", "ahead", "3").stdout.count("\n") >= 4


def test_rollout_of_a_model_without_a_rule_is_told(running: Service) -> None:
    step(running, "no-rule")

    assert "feedback" in str(streams(running.url, "rollout", "fold", "no-rule", "3").exception)
