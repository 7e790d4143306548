"""`/asyncapi.json` is valid AsyncAPI, has every WebSocket, and describes the messages that are really exchanged."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIWebSocketRoute
from starlette.routing import WebSocketRoute
from websockets.sync.client import ClientConnection

from tests.api.running import Service, running_service
from tests.graphs import fold, two_inputs, write_models
from tests.npm import npm_install
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import Server

PARSER = "@asyncapi/parser@3.6.6"
PROGRAM = """
import { readFileSync } from "node:fs";
import asyncapi from "@asyncapi/parser";
const { document, diagnostics } = await new asyncapi.Parser().parse(readFileSync(process.argv[2], "utf8"));
const found = diagnostics.filter((one) => one.severity < 2).map((one) => `${one.path.join(".")}: ${one.message}`);
const addresses = document ? document.channels().all().map((channel) => channel.address()) : [];
console.log(JSON.stringify({ found, addresses }));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), fold, two_inputs)


@pytest.fixture(scope="module")
def service(shared_redis: Server, folder: Path) -> Iterator[Service]:
    with running_service(shared_redis.url, folder, history=["fold=2"]) as one:
        yield one


@pytest.fixture(scope="module")
def document(service: Service) -> Any:
    return service.http.get("/asyncapi.json").json()


def test_the_document_has_every_websocket_and_nothing_else(service: Service, document: Any) -> None:
    sockets = {route.path for route in service.app.routes if isinstance(route, WebSocketRoute | APIWebSocketRoute)}

    assert {channel["address"] for channel in document["channels"].values()} == sockets


def test_the_document_has_the_version_of_the_service(service: Service, document: Any) -> None:
    assert document["asyncapi"].startswith("3.")
    assert document["info"]["version"] == service.http.get("/v1/info").json()["version"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_parser_of_asyncapi_finds_no_fault(document: Any, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node: apt-get install nodejs")
    npm_install(tmp_path, PARSER)
    (tmp_path / "asyncapi.json").write_text(json.dumps(document))
    (tmp_path / "check.mjs").write_text(PROGRAM)

    done = subprocess.run([node, "check.mjs", "asyncapi.json"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["found"] == []
    assert sorted(report["addresses"]) == sorted(channel["address"] for channel in document["channels"].values())


# ------------------------------------------------------------------- messages


class Exchange:
    """An open WebSocket whose messages are checked against the document, in both directions."""

    def __init__(self, document: Any, channel: str, socket: ClientConnection) -> None:
        self._document = document
        self._channel = document["channels"][channel]
        self._socket = socket

    def send(self, message: str, **fields: Any) -> None:
        """Send a message that is as the document describes messages of this name."""
        self.check(message, fields)
        self._socket.send(json.dumps(fields))

    def receive(self, message: str) -> Any:
        """Return the next message, which is as the document describes messages of this name."""
        received = json.loads(self._socket.recv(timeout=60))
        self.check(message, received)
        return received

    def check(self, message: str, found: Any) -> None:
        validator = pytest.importorskip("jsonschema_rs", reason="schemathesis is not installed: STEPWELL_EXTRAS=dev")
        assert message in self._channel["messages"]
        payload = self._document["components"]["messages"][message]["payload"]
        validator.Draft7Validator({**payload, "components": self._document["components"]}).validate(found)


def test_the_messages_of_a_feed_for_one_stream_are_as_described(service: Service, document: Any) -> None:
    with service.feed("fold", "asyncapi-1") as socket:
        feed = Exchange(document, "streamFeed", socket)
        feed.send("FeedMessage", inputs=[1], seq=1, create="must", id="first")
        first = feed.receive("FeedReply")
        feed.send("FeedMessage", inputs={"x": [[2], [3]]}, chunk=True, after=first["state_id"], **{"return": "last"})
        chunk = feed.receive("FeedReply")
        feed.send("FeedMessage", inputs=[9], seq=9, id=2)
        error = feed.receive("SocketError")

    assert (first["step"], first["created"], first["id"], chunk["step"]) == (1, True, "first", 3)
    assert (error["error"]["code"], error["id"]) == ("seq_gap", 2)


def test_the_messages_of_a_feed_for_many_streams_are_as_described(service: Service, document: Any) -> None:
    streams = ["asyncapi-2", "asyncapi-3"]
    with service.feed("fold") as socket:
        feed = Exchange(document, "modelFeed", socket)
        feed.send("StreamMessage", stream=streams[0], inputs=[1], source={"id": "log", "at": 7})
        assert feed.receive("StreamReply")["stream"] == streams[0]
        feed.send("StreamMessage", stream=streams[0], inputs=[1, 2])
        assert feed.receive("SocketError")["error"]["code"] == "bad_input"
        feed.send("BulkMessage", streams=streams, inputs={"x": [[1], [2]]}, seq=[2, 5], id=["bulk"])
        bulk = feed.receive("ColumnsReply")

    assert (bulk["step"], bulk["errors"]["1"]["code"]) == ([2, None], "stream_not_found")


@pytest.mark.parametrize("grouped", [False, True])
def test_the_messages_of_a_watcher_are_as_described(service: Service, document: Any, grouped: bool) -> None:
    stream = f"asyncapi-{grouped}"
    for x in range(1, 5):
        service.step("fold", stream, [x])
    with service.websocket("/v1/watch" + "?grouped=true" * grouped) as socket:
        watch = Exchange(document, "watch", socket)
        watch.send("WatchRequest", watch=[{"model": "fold", "stream": stream, "since": 0}], inputs=True)
        assert watch.receive("WatchingReply") == {"watching": 1}
        assert watch.receive("GapMessage") == {"gap": 2}
        one_by_one = 0 if grouped else 2
        events = [watch.receive("CommitMessage") for _ in range(one_by_one)] or watch.receive("EventsMessage")["events"]

    assert "grouped" in document["channels"]["watch"]["bindings"]["ws"]["query"]["properties"]
    assert [(event["step"], event["inputs"]["x"]) for event in events] == [(3, [3]), (4, [4])]


def test_a_watcher_that_is_rejected_gets_the_described_error(service: Service, document: Any) -> None:
    with service.websocket("/v1/watch") as socket:
        watch = Exchange(document, "watch", socket)
        watch.send("WatchRequest", watch=[{"model": "none"}])

        assert watch.receive("SocketError")["error"]["code"] == "model_not_found"


def test_a_key_is_sent_as_described(shared_redis: Server, folder: Path, document: Any, tmp_path: Path) -> None:
    keys = write_keys_file(tmp_path / "keys.json", key("full"))
    with (
        running_service(shared_redis.url, folder, api_keys_file=keys) as keyed,
        keyed.feed("fold", "with-a-key") as socket,
    ):
        feed = Exchange(document, "streamFeed", socket)
        feed.send("AuthMessage", auth="full")
        feed.send("FeedMessage", inputs=[1])

        assert feed.receive("FeedReply")["step"] == 1
