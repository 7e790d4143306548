"""Peeks over HTTP: the prediction of a step, without applying it."""

from __future__ import annotations

from typing import Any

import msgspec

from stepwell_client.wire.ids import encode_state_id
from tests.api.running import Service
from tests.api.test_streams import MSGPACK, code_of
from tests.graphs import fold_reference


def peek(service: Service, model: str, stream: str, **body: Any) -> Any:
    return service.http.post(service.path(model, stream, "peek"), json=body)


def position(service: Service, stream: str) -> tuple[int, str]:
    found = service.http.get(service.path("fold", stream)).json()
    return found["step"], found["state_id"]


def test_a_peek_answers_what_the_step_then_answers(service: Service, stream: str) -> None:
    service.step("fold", stream, [1])
    before = position(service, stream)
    peeks = [peek(service, "fold", stream, inputs=[x]).json() for x in (5, 6, 5)]
    after = position(service, stream)
    stepped = service.step("fold", stream, [5]).json()

    assert before == after
    assert [p["outputs"]["y"] for p in peeks] == [fold_reference([1, x])[-1:] for x in (5, 6, 5)]
    assert (stepped["outputs"], stepped["step"]) == (peeks[0]["outputs"], peeks[0]["step"])
    assert peeks[0]["state_id"] == before[1]


def test_a_peek_at_a_chunk_has_a_time_axis(service: Service, stream: str) -> None:
    service.step("fold", stream, [1])
    whole = peek(service, "fold", stream, inputs=[[2], [3]], chunk=True).json()
    last = peek(service, "fold", stream, inputs=[[2], [3]], chunk=True, **{"return": "last"}).json()

    assert whole["outputs"]["y"] == [[y] for y in fold_reference([1, 2, 3])[1:]]
    assert last["outputs"]["y"] == fold_reference([1, 2, 3])[-1:]
    assert (whole["step"], last["step"]) == (3, 3)


def test_a_peek_at_a_missing_stream_uses_the_initial_state_and_creates_nothing(service: Service, stream: str) -> None:
    answer = peek(service, "fold", stream, inputs=[5], seq=1).json()

    assert answer == {"outputs": {"y": [6]}, "step": 1}
    assert service.http.get(service.path("fold", stream)).status_code == 404


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"seq": 4}, 409, "seq_gap"),
    ({"seq": 1}, 409, "seq_passed"),
    ({"after": encode_state_id(bytes(16))}, 409, "state_changed"),
    ({"create": "must"}, 409, "stream_exists"),
    ({"return": "last"}, 400, "bad_request"),
    ({"chunk": 1}, 400, "bad_request"),
    ({"id": 1}, 400, "bad_request"),
]


def test_a_peek_at_a_wrong_position_is_rejected_as_the_step_would_be(service: Service, stream: str) -> None:
    for n in (1, 2):
        service.step("fold", stream, [n], seq=n)
    for more, status, code in WRONG:
        answer = peek(service, "fold", stream, inputs=[3], **more)

        assert (answer.status_code, code_of(answer)) == (status, code), more
    assert peek(service, "fold", stream, inputs=[3], seq=3, after=position(service, stream)[1]).status_code == 200
    for more in ({"seq": 2}, {"after": encode_state_id(bytes(16))}, {"create": "never"}):
        answer = peek(service, "fold", f"{stream}-missing", inputs=[3], **more)

        assert (answer.status_code, code_of(answer)) == (404, "stream_not_found"), more


def test_a_peek_with_a_non_finite_prediction_is_rejected(service: Service, stream: str) -> None:
    for _ in range(2):
        service.step("nan_at_3", stream, [1])
    answer = peek(service, "nan_at_3", stream, inputs=[1])
    wrong = peek(service, "fold", stream, inputs=[1.5])

    assert (answer.status_code, code_of(answer)) == (422, "non_finite_state")
    assert (wrong.status_code, code_of(wrong)) == (422, "bad_input")


def test_a_peek_accepts_and_returns_msgpack(service: Service, stream: str) -> None:
    body = msgspec.msgpack.encode({"inputs": {"x": {"d": "int64", "s": [1], "b": b"\5" + b"\0" * 7}}})
    answer = service.http.post(service.path("fold", stream, "peek"), content=body, headers=MSGPACK)

    assert msgspec.msgpack.decode(answer.content)["outputs"]["y"] == {"d": "int64", "s": [1], "b": b"\6" + b"\0" * 7}
