"""API keys: what each scope allows, which tenant's streams a key reaches, and how a changed keys file takes effect."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stepwell.errors import ServiceError
from stepwell.requests.auth.api_keys import ANYONE, ApiKeys
from stepwell.requests.auth.reloaded_keys_file import KeysFileError
from tests.api.running import Service, running_service
from tests.api.test_streams import code_of
from tests.graphs import fold, write_models
from tests.servers import Server

ALL = ["step", "read", "admin", "models", "metrics"]


def key(name: str, *, tenant: str = "a", scopes: list[str] | None = None) -> dict[str, Any]:
    return {
        "id": name,
        "sha256": sha256(name.encode()).hexdigest(),
        "tenant": tenant,
        "scopes": ALL if scopes is None else scopes,
    }


def write_keys_file(file: Path, *keys: dict[str, Any]) -> Path:
    """Write a keys file and move it into place, as an operator's tool does."""
    partial = file.with_suffix(".new")
    partial.write_text(json.dumps({"keys": list(keys)}))
    partial.replace(file)
    return file


@pytest.fixture(scope="module")
def keyed(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys: `full` and `other` of two tenants, `none` without scopes, and one for each single scope."""
    folder = tmp_path_factory.mktemp("keyed")
    file = write_keys_file(
        folder / "keys.json",
        key("full"),
        key("other", tenant="b"),
        key("none", scopes=[]),
        *(key(f"only-{scope}", scopes=[scope]) for scope in ALL),
    )
    models = write_models(folder / "models", fold, spare=fold)
    with running_service(shared_redis.url, models, api_keys_file=file) as one:
        yield one


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def step(service: Service, name: str, stream: str, x: int = 1, **more: Any) -> httpx2.Response:
    body = {"inputs": [x], **more}
    return service.http.post(service.path("fold", stream, "step"), json=body, headers=bearer(name))


# ------------------------------------------------------------------- keys


def test_without_a_keys_file_everyone_may_do_anything_as_the_default_tenant() -> None:
    assert ApiKeys(None).caller("Bearer whatever") is ANYONE
    assert ApiKeys(None).caller(None).tenant == "default"


def test_anything_but_a_valid_key_is_unauthenticated(tmp_path: Path) -> None:
    keys = ApiKeys(write_keys_file(tmp_path / "keys.json", key("full")))
    bad = ("", "Bearer", "Bearer ", "Bearer wrong", "Basic full", "full", "Bearer full extra", "Bearer FULL")
    for header in (None, *bad, "Bearer f\xfcll"):
        with pytest.raises(ServiceError) as caught:
            keys.caller(header)

        assert caught.value.code == "unauthenticated", header
        assert "full" not in str(caught.value)


def test_a_valid_key_identifies_its_caller(tmp_path: Path) -> None:
    keys = ApiKeys(write_keys_file(tmp_path / "keys.json", key("full", tenant="acme", scopes=["step"])))
    for header in ("Bearer full", "bearer full", "BEARER   full "):
        caller = keys.caller(header)

        assert (caller.tenant, caller.scopes, caller.key_id) == ("acme", frozenset({"step"}), "full")


def test_a_key_is_found_as_fast_among_many_as_among_few(tmp_path: Path) -> None:
    """Each request that is not cached looks up its key, and each WebSocket once a second."""
    seconds = []
    for count in (10, 10_000):
        keys = ApiKeys(write_keys_file(tmp_path / f"{count}.json", *(key(f"key{n}") for n in range(count))))
        keys.caller(f"Bearer key{count - 1}")
        began = time.thread_time()
        found = {keys.caller(f"Bearer key{count - 1}").key_id for _ in range(500)}
        seconds.append(time.thread_time() - began)
        assert found == {f"key{count - 1}"}

    assert seconds[1] < 10 * seconds[0]


def test_a_changed_file_is_reloaded(tmp_path: Path) -> None:
    """Moved into place, or changed in it: then only the modification time differs."""
    file = write_keys_file(tmp_path / "keys.json", key("old"))
    keys = ApiKeys(file)
    write_keys_file(file, key("mid"))
    moved = keys.caller("Bearer mid").key_id
    file.write_text(json.dumps({"keys": [key("new")]}))
    os.utime(file, ns=(1, 1))

    assert (moved, keys.caller("Bearer new").key_id) == ("mid", "new")
    with pytest.raises(ServiceError):
        keys.caller("Bearer old")


def test_a_file_that_becomes_invalid_leaves_the_keys_in_force_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("", "{", "[]", '{"keys": [{}]}', None):
        file = write_keys_file(tmp_path / "keys.json", key("old"))
        keys = ApiKeys(file)
        file.unlink() if content is None else file.write_text(content)
        caplog.clear()

        with caplog.at_level(logging.ERROR):
            assert [keys.caller("Bearer old").key_id for _ in range(3)] == ["old"] * 3

        assert len(caplog.records) == 1, content


def test_an_invalid_or_missing_file_at_start_is_refused_without_repeating_its_content(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        *({"sha256": "full"}, {"sha256": None}, {"tenant": "a/b"}, {"tenant": ""}),
        *({"scopes": ["all"]}, {"scopes": "step"}, {"id": 1}),
    ]
    for changed in changes:
        with pytest.raises(KeysFileError) as caught:
            ApiKeys(write_keys_file(tmp_path / "keys.json", {**key("full"), **changed}))

        assert sha256(b"full").hexdigest() not in str(caught.value)
    with pytest.raises(KeysFileError):
        ApiKeys(tmp_path / "none.json")


def test_a_file_in_which_two_entries_have_the_same_key_is_refused(tmp_path: Path) -> None:
    both = (key("first"), {**key("first", tenant="b"), "id": "second"})

    with pytest.raises(KeysFileError, match="'first' and 'second' have the same sha256"):
        ApiKeys(write_keys_file(tmp_path / "keys.json", *both))


# ------------------------------------------------------------------- HTTP

DOCS = Path(__file__).parents[2] / "docs" / "security.md"


def documented() -> dict[tuple[str, str], str]:
    """Return the scopes that the docs list, by method and path."""
    table = DOCS.read_text().split("<!-- scopes -->")[1].split("<!-- /scopes -->")[0]
    return {(method, path): scope for method, path, scope in re.findall(r"\| `(\w+) (\S+)` \| (\w+) \|", table)}


def filled(path: str) -> str:
    model = "spare" if path.endswith("/unload") else "fold"  # the other tests need `fold`
    return path.replace("{model}", model).replace("{stream}", "s").replace("{name}", "n").replace("{version}", "1")


SCOPED = {route: scope for route, scope in documented().items() if scope != "none" and route[0] != "WS"}
SOCKETS = {path: scope for (method, path), scope in documented().items() if method == "WS"}
OPEN = [path for (_, path), scope in documented().items() if scope == "none"]


def test_every_route_is_in_the_documented_table(keyed: Service) -> None:
    declared = {
        (method, str(getattr(route, "path", "")))
        for route in keyed.app.routes
        for method in (getattr(route, "methods", None) or {"WS"}) - {"HEAD"}
        if hasattr(route, "endpoint")
    }

    assert declared == documented().keys()


def test_a_route_accepts_its_scope_and_no_other(keyed: Service) -> None:
    """Without a key, it is 401 and names the scheme."""
    for (method, path), scope in SCOPED.items():
        taken = {}
        for other in ALL:
            with keyed.http.stream(method, filled(path), headers=bearer(f"only-{other}")) as answer:
                taken[other] = answer.status_code not in (401, 403)  # the body of an event stream never ends
        bare = keyed.http.request(method, filled(path))

        assert taken == {other: other == scope for other in ALL}, (method, path)
        assert bare.status_code == 401
        assert "unauthenticated" in bare.text
        assert bare.headers["www-authenticate"] == "Bearer"


def test_a_key_in_the_query_is_ignored(keyed: Service) -> None:
    assert keyed.http.get("/v1/info?key=full&authorization=Bearer%20full").status_code == 401


def test_a_missing_scope_is_named(keyed: Service) -> None:
    answer = keyed.http.get("/v1/info", headers=bearer("only-step"))

    assert (answer.status_code, code_of(answer)) == (403, "forbidden")
    assert "this needs read" in answer.json()["detail"]


def test_health_and_pages_need_no_key(keyed: Service) -> None:
    paths = [*OPEN, "/dashboard/app.js", "/reference/reference.js"]

    assert {path: keyed.http.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)


def test_an_unauthenticated_caller_does_not_learn_which_models_exist(keyed: Service) -> None:
    assert keyed.http.get("/v1/models/nope").status_code == 401


# ------------------------------------------------------------------- tenants


def test_streams_of_the_same_name_of_two_tenants_are_separate(keyed: Service, stream: str) -> None:
    step(keyed, "full", stream, 1)

    other = step(keyed, "other", stream, 5).json()

    assert (other["step"], other["created"], other["outputs"]) == (1, True, {"y": [6]})


def test_another_tenants_stream_looks_like_a_missing_one(keyed: Service, stream: str) -> None:
    step(keyed, "full", stream)
    path = keyed.path("fold", stream)

    theirs = keyed.http.get(path, headers=bearer("other"))
    nobodys = keyed.http.get(keyed.path("fold", f"{stream}x"), headers=bearer("other"))

    assert theirs.json()["detail"].replace(stream, "S") == nobodys.json()["detail"].replace(f"{stream}x", "S")
    assert step(keyed, "other", stream, create="never").status_code == 404
    assert keyed.http.get("/v1/models/fold/streams", params={"prefix": stream}, headers=bearer("other")).json() == {
        "streams": [],
        "cursor": None,
    }


OF_A_STREAM = [route for route in SCOPED if "{stream}" in route[1] and not route[1].endswith("/events")]
BODIES = {
    "steps": {"inputs": [[1]]},
    "fork": {"to": "elsewhere"},
    "state": {"states": {"h": [1]}, "step": 1},
    "reset": {"to": "initial", "after": "A" * 22},
    "rollout": {"horizon": 2, "inputs": [1], "feedback": {"x": "y"}},
}


def status_and_text(keyed: Service, who: str, route: tuple[str, str], stream: str) -> tuple[int, str]:
    """Return status and text of a valid request for a stream, without the parts that depend on the stream."""
    what = route[1].rpartition("/")[2]
    body = None if route[0] in ("GET", "DELETE") else BODIES.get(what, {"inputs": [1]})
    path = route[1].replace("{stream}", stream)
    answer = keyed.http.request(route[0], filled(path), json=body, headers=bearer(who))
    text = re.sub(r'"(state_id|seed)":("[^"]*"|\d+)', "", answer.text).replace(stream, "S")
    return answer.status_code, text


def test_on_every_route_another_tenants_stream_looks_like_a_missing_one(keyed: Service, stream: str) -> None:
    for n, route in enumerate(OF_A_STREAM):
        name = f"{stream}-{n}"
        step(keyed, "full", name)
        keyed.http.put(keyed.path("fold", name, "snapshots/n"), headers=bearer("full"))
        before = keyed.http.get(keyed.path("fold", name), headers=bearer("full")).json()

        theirs = status_and_text(keyed, "other", route, name)
        nobodys = status_and_text(keyed, "other", route, f"{name}-nobodys")
        keyed.http.delete(keyed.path("fold", "elsewhere"), headers=bearer("other"))
        after = keyed.http.get(keyed.path("fold", name), headers=bearer("full")).json()

        assert theirs == nobodys, route
        assert {**after, "expires_in_s": 0} == {**before, "expires_in_s": 0}


def test_another_tenants_stream_cannot_be_watched(keyed: Service, stream: str) -> None:
    """Not even by a caller that watches the whole model."""
    watch = json.dumps({"watch": [{"model": "fold"}, {"model": "fold", "stream": stream}]})
    with keyed.websocket("/v1/watch", additional_headers=bearer("other")) as watcher:
        watcher.send(watch)
        assert "watching" in json.loads(watcher.recv())
        for x in range(3):
            step(keyed, "full", stream, x)
        step(keyed, "other", f"{stream}-own", 7)
        seen = json.loads(watcher.recv(20))

    assert (seen["stream"], seen["outputs"]["y"]) == (f"{stream}-own", [8])


def test_events_are_those_of_the_tenants_own_stream(keyed: Service, stream: str) -> None:
    with keyed.http.stream("GET", keyed.path("fold", stream, "events"), headers=bearer("other")) as events:
        lines = events.iter_lines()
        next(lines)  # wait until it is open
        for x in range(3):
            step(keyed, "full", stream, x)
        step(keyed, "other", stream, 7)
        seen = next(json.loads(line[5:]) for line in lines if line.startswith("data:") and "outputs" in line)

    assert (seen["step"], seen["outputs"]["y"]) == (1, [8])


def test_a_reset_of_all_streams_is_one_of_the_tenants_own(keyed: Service, stream: str) -> None:
    step(keyed, "full", stream)

    keyed.http.post("/v1/models/fold/reset", headers=bearer("other"))

    assert keyed.http.get(keyed.path("fold", stream), headers=bearer("full")).json()["step"] == 1


# ------------------------------------------------------------------- WebSocket


def test_a_feed_accepts_the_key_of_its_handshake(keyed: Service, stream: str) -> None:
    with keyed.feed("fold", stream, additional_headers=bearer("only-step")) as feed:
        feed.send('{"inputs": [1]}')

        assert json.loads(feed.recv())["step"] == 1


def test_a_socket_accepts_its_scope_and_no_other(keyed: Service) -> None:
    def status(path: str, name: str) -> int:
        try:
            with keyed.websocket(filled(path), additional_headers=bearer(name)):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    for path, scope in SOCKETS.items():
        statuses = {other: status(path, f"only-{other}") for other in ALL}

        assert statuses == {other: 101 if other == scope else 403 for other in ALL}, path
        assert status(path, "wrong") == 401


def test_a_browser_can_send_its_key_as_the_first_message(keyed: Service, stream: str) -> None:
    with keyed.feed("fold", stream) as feed:
        feed.send('{"auth": "other"}')
        feed.send('{"inputs": [1]}')

        assert json.loads(feed.recv())["step"] == 1
    assert keyed.http.get(keyed.path("fold", stream), headers=bearer("other")).json()["step"] == 1


def test_a_browser_without_a_valid_key_gets_a_problem_and_is_closed(keyed: Service, stream: str) -> None:
    for first in ('{"auth": "wrong"}', '{"auth": 1}', '{"inputs": [1]}', "", '{"auth": "only-read"}'):
        with keyed.feed("fold", stream) as feed:
            feed.send(first)

            assert json.loads(feed.recv())["error"]["status"] in (401, 403), first
            with pytest.raises(ConnectionClosed) as closed:
                feed.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_a_browser_that_sends_no_key_is_closed(keyed: Service, shared_redis: Server) -> None:
    its = keyed.app.state.context.settings
    with (
        running_service(
            shared_redis.url, its.models[0], api_keys_file=its.api_keys_file, receive_timeout_s=0.2
        ) as hasty,
        hasty.feed("fold", "s") as feed,
    ):
        assert json.loads(feed.recv())["error"]["code"] == "unauthenticated"


def test_a_key_message_is_accepted_where_no_key_is_required(service: Service, stream: str) -> None:
    with service.feed("fold", stream) as feed:
        feed.send('{"auth": "anything"}')
        feed.send('{"inputs": [1]}')

        assert json.loads(feed.recv())["step"] == 1


def test_a_revoked_key_closes_its_feed(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    file = write_keys_file(tmp_path / "keys.json", key("full"), key("late"))
    with (
        running_service(shared_redis.url, write_models(tmp_path / "models", fold), api_keys_file=file) as own,
        own.feed("fold", stream, additional_headers=bearer("late")) as feed,
    ):
        write_keys_file(file, key("full"))
        answers: list[dict[str, Any]] = []
        while not answers or "error" not in answers[-1]:  # checked once a second
            feed.send('{"inputs": [1]}')
            answers.append(json.loads(feed.recv()))

        assert answers[-1]["error"]["code"] == "unauthenticated"
        with pytest.raises(ConnectionClosed) as closed:
            feed.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_a_page_of_a_foreign_origin_cannot_open_a_feed(service: Service) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"):
        with pytest.raises(InvalidStatus) as caught, service.feed("fold", "s", origin=origin):
            pass

        assert caught.value.response.status_code == 403, origin
        assert json.loads(caught.value.response.body)["code"] == "forbidden"


def test_the_services_own_page_can_open_a_feed(service: Service, stream: str) -> None:
    with service.feed("fold", stream, origin=f"http://127.0.0.1:{service.port}") as feed:
        feed.send('{"inputs": [1]}')

        assert json.loads(feed.recv())["step"] == 1


def test_a_page_of_an_allowed_origin_can_open_a_feed(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    with (
        running_service(shared_redis.url, write_models(tmp_path, fold), allowed_origins=["https://app.example"]) as own,
        own.feed("fold", stream, origin="https://app.example") as feed,
    ):
        feed.send('{"inputs": [1]}')

        assert json.loads(feed.recv())["step"] == 1
