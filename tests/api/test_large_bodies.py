"""Large bodies are decoded beside the event loop: other requests go on, and a feed keeps its order."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stepwell.codec.request_decoder import RequestDecoder
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import JSON, MSGPACK, Format, encode
from tests.api.running import Service, running_service
from tests.graphs import fold, lstm, write_models
from tests.servers import Server

FEATURES = 512
N_ROWS = 410  # of 9.9 kB each


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "declared"])
def wide(
    request: pytest.FixtureRequest, shared_redis: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = write_models(tmp_path_factory.mktemp("models"), fold, wide=lambda: lstm(features=FEATURES))
    with running_service(shared_redis.url, folder, lane=request.param) as one:
        yield one


@functools.cache
def large(name: str = "x", first: str = "0.5", more: str = "") -> bytes:
    """Return a chunk of 4 MB, whose input has this name in the body, and whose first number is this text."""
    row = ", ".join([str(0.123456789012345 + n / 1000) for n in range(FEATURES - 1)])
    rows = ", ".join([f"[{first}, {row}]"] * N_ROWS)
    return f'{{"inputs": {{"{name}": [{rows}]}}, "return": "last"{more}}}'.encode()


def longest_turn(service: Service, work: Callable[[], Any]) -> float:
    """Return the seconds of processor time that the longest turn of the service's event loop took during some work.

    The time of its thread alone: a machine that does other work makes it no longer. Garbage is not collected meanwhile,
    which any thread may have to do.
    """
    begun, ended = threading.Event(), threading.Event()

    async def beat() -> float:
        begun.set()
        longest, last = 0.0, time.thread_time()
        while not ended.is_set():
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
        return longest

    found = list[float]()
    beating = threading.Thread(target=lambda: found.append(service.run_in_loop(beat)))
    gc.disable()
    beating.start()
    begun.wait()
    try:
        work()
    finally:
        ended.set()
        beating.join()
        gc.enable()
    return found[0]


def post(service: Service, stream: str, body: bytes) -> Any:
    headers = {"content-type": "application/json"}
    return service.http.post(service.path("wide", stream, "steps"), content=body, headers=headers)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (large(name="\\u0078"), 200),
        (large(first="null"), 422),
        (large(first="1e999"), 422),
        (large()[:-1], 400),
    ],
    ids=["an escape", "no number", "infinite", "cut"],
)
def test_a_large_body_does_not_block_the_event_loop(wide: Service, stream: str, body: bytes, status: int) -> None:
    """The longest turn is compared with the time that a parser of this machine needs for the body.

    Of three requests the shortest counts: what others do on the machine makes some of them longer, and what the event
    loop does for each such body makes all of them longer.
    """
    found, turns, at_once = list[Any](), list[float](), list[float]()
    streams = iter([f"{stream}{n}" for n in range(3)])
    for _ in range(3):
        turns.append(longest_turn(wide, lambda: found.append(post(wide, next(streams), body))))
        started = time.thread_time()
        json.loads(large())
        at_once.append(time.thread_time() - started)

    assert [one.status_code for one in found] == [status] * 3, found[0].text
    assert min(turns) < min(at_once) / 2, (turns, at_once)


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_the_errors_of_many_rows_are_not_worded_on_the_event_loop(wide: Service, kind: Format) -> None:
    """A body of 90 or 120 kB, of which each row is too short; the time is compared as above."""
    body = encode({"streams": [f"s{n}" for n in range(8000)], "inputs": {"x": [[1]] * 8000}}, kind)
    decoder = RequestDecoder(wide.app.state.context.engine.models.get("wide").manifest)
    found, turns, at_once = list[Any](), list[float](), list[float]()

    def post_columns() -> None:
        headers = {"content-type": kind.value}
        found.append(wide.http.post("/v1/models/wide/step", content=body, headers=headers))

    for _ in range(3):
        turns.append(longest_turn(wide, post_columns))
        gc.disable()
        started = time.thread_time()
        with pytest.raises(ServiceError):
            decoder.bulk(body, kind, chunk=False)
        at_once.append(time.thread_time() - started)
        gc.enable()

    assert [one.status_code for one in found] == [422] * 3, found[0].text
    assert min(turns) < min(at_once) / 4, (turns, at_once)


def test_a_key_that_occurs_twice_by_an_escape_is_refused(wide: Service) -> None:
    twice = large(more=f', "inputs": {{"x": [{[0] * FEATURES}]}}'.replace("inputs", "\\u0069nputs"))
    of_inputs = large().replace(b'{"x": ', b'{"\\u0078": [[0]], "x": ')

    for body in (twice, of_inputs):
        refused = post(wide, "s", body)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_json")


def test_a_large_body_gives_the_same_answer_as_a_small_one(wide: Service, stream: str) -> None:
    answer = post(wide, f"{stream}-a", large()).json()
    rows = json.loads(large())["inputs"]["x"]
    for first in range(0, N_ROWS, 10):
        body = {"inputs": rows[first : first + 10]}
        parts = wide.http.post(wide.path("wide", f"{stream}-b", "steps"), json=body).json()

    assert answer["step"] == N_ROWS
    assert answer["outputs"]["y"] == pytest.approx(parts["outputs"]["y"][-1], abs=1e-5)


def test_a_feed_keeps_the_order_around_a_large_message(wide: Service, stream: str) -> None:
    """The message behind a large one is of the same stream, and a third one is of another."""
    a, b = f"{stream}-a", f"{stream}-b"
    padded = "[" + f",{' ' * 1000}".join(f"[{n}]" for n in range(400)) + "]"
    messages = [
        f'{{"stream": "{a}", "inputs": {padded}, "chunk": true, "seq": 1, "id": 1}}',
        f'{{"stream": "{a}", "inputs": [7], "seq": 401, "id": 2}}',
        f'{{"stream": "{b}", "inputs": [7], "id": 3}}',
        f'{{"stream": "{a}", "inputs": {padded[:-1]}, ["x"]], "chunk": true, "id": 4}}',
        f'{{"stream": "{a}", "inputs": [7], "seq": 402, "id": 5}}',
    ]
    with wide.feed("fold") as feed:
        for message in messages:
            feed.send(message)
        answers = [json.loads(feed.recv(60)) for _ in messages]

    assert [answer["id"] for answer in answers] == [1, 2, 3, 4, 5]
    assert [answer.get("step") for answer in answers] == [400, 401, 1, None, 402]
    assert answers[3]["error"]["code"] == "bad_input"
