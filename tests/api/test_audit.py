"""Each operation that changes or deletes streams, models or keys leaves one audit line: who, what, and state ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stepwell.errors import OutcomeUnknownError
from stepwell.logs import JsonFormatter
from tests.api.running import Service, running_service
from tests.graphs import fold, total, write_model, write_models
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import Server

Lines = Callable[[], list[dict[str, Any]]]
STREAM = "/v1/models/fold/streams/s"
OWN = logging.getLogger("stepwell.audit")
STANDARD = {*vars(logging.makeLogRecord({})), "message", "taskName"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """The fields of the audit lines so far."""

    def read() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == OWN.name]
        return [{k: v for k, v in vars(record).items() if k not in STANDARD} for record in records]

    with caplog.at_level(logging.INFO, OWN.name):
        yield read


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys_file(tmp_path / "keys.json", key("ops", tenant="plant"), key("device", scopes=["step"]))


@pytest.fixture
def own(redis_server: Server, tmp_path: Path, keys: Path) -> Iterator[Service]:
    """A service with keys, as tenant `plant` with the key `ops`."""
    models = write_models(tmp_path / "models", fold)
    with running_service(redis_server.url, models, api_keys_file=keys) as one:
        one.http.headers["authorization"] = "Bearer ops"
        yield one


def send(own: Service, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
    found = own.http.request(method, path, json=body, headers=headers)
    assert found.is_success, found.text
    return found


def state_id(own: Service) -> Any:
    return own.http.get(STREAM).json()["state_id"]


WHO = {"key_id": "ops", "tenant": "plant", "outcome": "yes"}
ABOUT = {"model": "fold", "stream": "s"}


def test_each_operation_and_its_retry_leave_one_line(own: Service, lines: Lines) -> None:
    ids = [own.step("fold", "s", [1]).json()["state_id"]]

    def apply(method: str, path: str, body: Any = None, **headers: str) -> None:
        send(own, method, f"{STREAM}/{path}", body, **headers)
        ids.append(state_id(own))

    apply("POST", "reset", {"after": ids[0]})
    apply("POST", "reset", {"after": ids[0]})
    apply("PUT", "snapshots/monday", {})
    apply("POST", "reset", {"to": {"snapshot": "monday"}})
    apply("DELETE", "snapshots/monday")
    forked = send(own, "POST", f"{STREAM}/fork", {"to": "copy"}, **{"x-request-id": "r-1"}).json()["state_id"]
    apply("PUT", "state", own.http.get(f"{STREAM}/state").json())
    for _ in range(2):
        send(own, "DELETE", STREAM)
    send(own, "POST", "/v1/models/fold/reset")

    monday = {**WHO, **ABOUT, "snapshot": "monday"}
    assert lines() == [
        {"action": "reset", **WHO, **ABOUT, "state_id_before": ids[0], "state_id_after": ids[1]},
        {"action": "reset", **WHO, **ABOUT, "state_id_after": ids[1], "replayed": True},
        {"action": "put_snapshot", **monday, "state_id": ids[1]},
        {"action": "reset", **monday, "state_id_before": ids[1], "state_id_after": ids[4]},
        {"action": "delete_snapshot", **monday},
        {"action": "fork", **WHO, **ABOUT, "to": "copy", "state_id_after": forked, "request_id": "r-1"},
        {"action": "put_state", **WHO, **ABOUT, "state_id_before": ids[5], "state_id_after": ids[6]},
        {"action": "delete", **WHO, **ABOUT, "state_id_before": ids[6]},
        {"action": "delete", **WHO, **ABOUT},
        {"action": "reset_all", **WHO, "model": "fold", "streams": 1},
    ]


def test_an_import_whole_and_cut_off(own: Service, lines: Lines) -> None:
    own.step("fold", "a", [1])
    savepoint = own.http.get("/v1/models/fold/streams/export").content
    target = "/v1/models/fold/streams/import"
    whole = own.http.post(f"{target}?overwrite=true", content=savepoint)
    cut_off = own.http.post(target, content=savepoint[:-1])

    assert (whole.status_code, cut_off.status_code) == (200, 400)
    assert lines() == [{"action": "import", **WHO, "model": "fold", "overwrite": True, "loaded": 1, "refused": 0}]


def test_a_reload_and_changed_keys(own: Service, lines: Lines, tmp_path: Path, keys: Path) -> None:
    write_models(tmp_path / "models", total)
    send(own, "POST", "/v1/models/reload")
    write_keys_file(keys, key("ops", tenant="plant", scopes=["admin", "read"]), key("new"))
    own.http.get(STREAM)

    assert lines() == [
        {"action": "reload", **WHO, "loaded": "total/1"},
        {"action": "keys", "added": "new", "removed": "device", "changed": "ops", "outcome": "yes"},
    ]


def test_what_is_refused_leaves_no_line(own: Service, lines: Lines) -> None:
    own.step("fold", "s", [1])
    refused = [
        own.http.post(f"{STREAM}/reset", json={"after": "A" * 22}),
        own.http.post(f"{STREAM}/fork", json={"to": "s"}),
        own.http.delete(STREAM, headers={"authorization": "Bearer device"}),
        own.http.put(f"{STREAM}/state", json={}),
    ]

    assert [answer.status_code for answer in refused] == [409, 409, 403, 400]
    assert lines() == []


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (RuntimeError("broken"), {"outcome": "unknown"}),
        (OutcomeUnknownError("No reply."), {"outcome": "unknown", "code": "outcome_unknown"}),
    ],
)
def test_an_operation_that_may_have_been_applied_is_logged(
    own: Service, lines: Lines, monkeypatch: pytest.MonkeyPatch, error: Exception, fields: dict[str, str]
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(own.app.state.engine.streams, "delete", broken)

    assert own.http.delete(STREAM).status_code >= 500
    assert lines() == [{"action": "delete", **WHO, **ABOUT, **fields}]


@pytest.mark.parametrize("audit_log", [True, False])
def test_without_keys_there_is_no_key_id_and_it_can_be_switched_off(
    shared_redis: Server, tmp_path: Path, lines: Lines, *, audit_log: bool
) -> None:
    with running_service(shared_redis.url, write_models(tmp_path, fold), audit_log=audit_log) as one:
        one.http.delete("/v1/models/fold/streams/never")

    line = {"action": "delete", "tenant": "default", "model": "fold", "stream": "never", "outcome": "yes"}
    assert lines() == ([line] if audit_log else [])


def test_a_line_is_json_with_its_fields(own: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, OWN.name):
        send(own, "DELETE", STREAM)
    [record] = [record for record in caplog.records if record.name == OWN.name]
    text = JsonFormatter().format(record)

    assert '"logger": "stepwell.audit"' in text
    assert '"action": "delete"' in text
    assert '"key_id": "ops"' in text


def test_changes_of_a_release_and_moves_are_logged_with_their_reason(
    own: Service, lines: Lines, tmp_path: Path
) -> None:
    for version, factor in ((1, 3), (2, 5)):
        write_model(tmp_path / "models", "pump", lambda factor=factor: fold(factor), version=version)  # type: ignore[misc]
    own.http.post("/v1/models/reload")
    release, stream = "/v1/models/pump/release", "/v1/models/pump/streams/s"
    body = {"current": 1, "candidate": 2, "mode": "ramp", "percent": 5}
    own.http.post(f"{stream}/step", params={"version": 1}, json={"inputs": [1]})
    before = own.http.get(stream).json()["state_id"]
    n_lines = len(lines())
    moved = [send(own, "POST", f"{stream}/move", {"version": 2, "after": before}).json() for _ in range(2)]
    send(own, "PUT", release, body)
    send(own, "POST", f"{release}/promote", {"why": "better"})
    send(own, "POST", f"{release}/move", {"limit_per_s": 5})
    own.http.post(f"{release}/abort")  # refused

    who = {**WHO, "model": "pump"}
    about = {"action": "move", **who, "stream": "s", "version": 2, "take": "keep"}
    after = {"state_id_after": moved[0]["state_id"]}
    assert lines()[n_lines:] == [
        {**about, "state_id_before": before, **after},
        {**about, **after, "replayed": True},
        {**who, "action": "release", **body, "percent": "0:5", "revision": 1},
        {**who, "action": "promote", "why": "better", "revision": 2},
        {**who, "action": "move_all", "limit_per_s": 5},
    ]
