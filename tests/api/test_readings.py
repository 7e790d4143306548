"""How often the service reads a body: usual ones once, bad ones once more for the words of the error."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec
import pytest

from stepwell.codec.request_decoder import STRICT_BYTES
from stepwell.codec.strict import parse as strict_parse
from stepwell.store.keys import record_key
from tests.api.running import Service
from tests.codec.test_codec import BAD_INPUT, BAD_JSON, BAD_REQUEST, body_of, bulk_document

_DECODERS = (msgspec.json.Decoder, msgspec.msgpack.Decoder)
_PARSE = strict_parse.parse.__code__


@contextmanager
def readings(service: Service) -> Iterator[Counter[str]]:
    """Count meanwhile the readings on the service's event loop.

    `typed` is the number of calls of msgspec's decoders: one for a usual body; for others of its fields, and of each
    input. `parsed` is the number of bodies that are parsed to plain values.
    """
    found: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code is _PARSE:
            found["parsed"] += 1
        elif event == "c_call" and arg.__name__ == "decode" and isinstance(arg.__self__, _DECODERS):
            found["typed"] += 1

    async def start() -> None:
        sys.setprofile(profile)

    async def stop() -> None:
        sys.setprofile(None)

    service.run_in_loop(start)
    try:
        yield found
    finally:
        service.run_in_loop(stop)


_MOST_TYPED = 5  # as a usual body; its fields; its inputs together, then apart, one by one
BAD = {
    **BAD_JSON,
    **BAD_REQUEST,
    **{name: body_of({"inputs": inputs, "seq": 1}) for name, inputs in BAD_INPUT.items()},
}


ON_THE_LOOP = [name for name, body in BAD.items() if len(body) <= STRICT_BYTES]  # others are read in a thread


def test_a_bad_step_is_parsed_once_for_the_words_of_its_error(service: Service, stream: str) -> None:
    for name in ON_THE_LOOP:
        with readings(service) as found:
            answer = service.http.post(service.path("lstm", stream, "step"), content=BAD[name])

        assert answer.status_code in (400, 422), name
        assert (found["parsed"], found["typed"] <= _MOST_TYPED) == (1, True), name


BAD_MESSAGES: list[dict[str, Any]] = [
    {"inputs": [1]},
    {"inputs": {"x": [1] * 4}, "seq": 0, "id": {"n": 1}},
    {"inputs": [1] * 4, "return": "all"},
    {"inputs": [[1] * 3], "chunk": True},
    {"inputs": [1] * 4, "chunk": 1},
    {"odd": 1},
]


def test_a_bad_message_is_parsed_once_for_the_words_of_its_error(service: Service, stream: str) -> None:
    for address in (None, stream):
        with service.feed("lstm", address) as feed:
            for message in BAD_MESSAGES:
                with readings(service) as found:
                    feed.send(json.dumps(message if address else {"stream": stream, **message}))
                    reply = json.loads(feed.recv())

                assert reply["error"]["status"] in (400, 422), message
                assert reply.get("id") == message.get("id")
                assert (found["parsed"], found["typed"] <= _MOST_TYPED) == (1, True), message


def test_a_bad_bulk_body_is_parsed_once_for_the_words_of_its_error(service: Service) -> None:
    for more in ({"after": "A" * 21}, {"seq": [1]}, {"odd": 1}, {"inputs": [[1]]}):
        with readings(service) as found:
            answer = service.http.post("/v1/models/lstm/step", json=bulk_document(**more))

        assert answer.status_code in (400, 422), more
        assert found["parsed"] <= 1
        assert found["typed"] <= _MOST_TYPED


def test_a_valid_step_is_read_once(service: Service, stream: str) -> None:
    for body in ({"inputs": [1]}, {"inputs": {"x": [1]}, "create": "auto"}):
        with readings(service) as found:
            answer = service.http.post(service.path("fold", stream, "step"), json=body)

        assert answer.status_code == 200
        assert found == {"typed": 1}


def test_the_names_of_streams_are_computed_once_for_all_bulk_requests(service: Service, stream: str) -> None:
    lists = service.app.state.context.decoder(service.app.state.context.engine.models.get("fold")).checked_ids
    streams = [f"{stream}-{n}" for n in range(20)]
    answers = [
        service.http.post("/v1/models/fold/step", json={"streams": streams, "inputs": [[1]] * 20}) for _ in range(3)
    ]
    with service.feed("fold") as feed:
        feed.send(json.dumps({"streams": streams, "inputs": [[1]] * 20}))
        last = json.loads(feed.recv())

    assert [answer.json()["step"] for answer in answers] == [[1] * 20, [2] * 20, [3] * 20]
    assert last["step"] == [4] * 20
    _, names = lists.names(streams, "default", lambda _: pytest.fail("the names are computed once more"))
    assert names == [record_key("default", "fold", name) for name in streams]
