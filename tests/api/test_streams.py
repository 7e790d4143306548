"""HTTP routes that step, reset, delete and list streams, as the API contract specifies."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest

from stepwell_client.wire.ids import encode_state_id
from tests.api.running import Service, running_service
from tests.graphs import fold, fold_of_two_outputs, fold_reference, write_model
from tests.servers import Server

MSGPACK = {"content-type": "application/msgpack", "accept": "application/msgpack"}


def code_of(answer: httpx2.Response) -> str:
    """Return the code of a problem, after checking the fields that every problem has."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == answer.status_code
    assert problem["applied"] in ("no", "yes", "unknown")
    assert problem["detail"]
    return str(problem["code"])


# ------------------------------------------------------------------- step


def test_the_first_step_creates_the_stream_and_reports_it(service: Service, stream: str) -> None:
    answer = service.step("fold", stream, {"x": [5]}).json()

    assert answer == {"outputs": {"y": [6]}, "step": 1, "state_id": answer["state_id"], "created": True}
    assert len(answer["state_id"]) == 22


def test_inputs_of_several_shapes_and_outputs_of_several_dtypes(service: Service, stream: str) -> None:
    answer = service.step("two_inputs", stream, {"a": [10, 20], "b": 3}).json()

    assert answer["outputs"] == {"total": [13, 23], "last": 3}


def test_booleans_can_be_sent_and_returned(service: Service, stream: str) -> None:
    service.step("latch", stream, {"x": [True, False]})

    assert service.step("latch", stream, {"x": [False, False]}).json()["outputs"] == {"y": [True, False]}


def test_msgpack_gives_the_same_bits_as_json(service: Service, stream: str) -> None:
    """Both ways or one; a problem is JSON whatever is accepted, and another type of content is read as JSON."""
    x = np.array([0.1, -2.5, 3.3, 1e-3], np.float32)
    body = msgspec.msgpack.encode({"inputs": {"x": {"d": "float32", "s": [4], "b": x.tobytes()}}})
    accept = {"accept": "application/msgpack"}
    path = service.path("lstm", f"{stream}-msgpack", "step")

    by_json = service.step("lstm", f"{stream}-json", x.tolist()).json()
    answer = service.http.post(path, content=body, headers=MSGPACK)
    other = service.path("lstm", f"{stream}-mixed", "step")
    from_json = service.http.post(other, json={"inputs": x.tolist()}, headers=accept)
    unreadable = service.http.post(path, content=b"\xc1", headers=MSGPACK)
    curl = {"content-type": "application/x-www-form-urlencoded"}
    from_curl = service.http.post(path, content='{"inputs": [1, 2, 3, 4]}', headers=curl)
    packed = msgspec.msgpack.decode(answer.content)["outputs"]["y"]

    assert answer.headers["content-type"] == "application/msgpack"
    assert (packed["d"], packed["s"]) == ("float32", [2])
    assert packed["b"] == np.array(by_json["outputs"]["y"], np.float32).tobytes()
    assert msgspec.msgpack.decode(from_json.content)["outputs"]["y"] == packed
    assert (unreadable.status_code, code_of(unreadable), from_curl.status_code) == (400, "bad_json", 200)


# ------------------------------------------------------------------- rejections


WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    ({"seq": 5}, "seq_gap", "no", "resend_from"),
    ({"seq": 1}, "seq_passed", "yes", "never"),
    ({"seq": 3}, "seq_conflict", "no", "never"),
    ({"after": encode_state_id(bytes(16))}, "state_changed", "no", "never"),
    ({"create": "must"}, "stream_exists", "no", "never"),
]


def test_a_step_at_a_wrong_position_is_rejected_with_the_position_of_the_stream(service: Service, stream: str) -> None:
    for x in (1, 2, 3):
        last = service.step("fold", stream, [x]).json()
    for more, code, applied, retry in WRONG:
        answer = service.step("fold", stream, [9], **more)
        problem = answer.json()

        assert (answer.status_code, code_of(answer)) == (409, code)
        assert (problem["applied"], problem["retry"]) == (applied, retry)
        assert (problem["step"], problem["state_id"]) == (3, last["state_id"])
    assert service.http.get(service.path("fold", stream)).json()["step"] == 3


def test_a_missing_stream_is_not_created_if_it_must_exist(service: Service, stream: str) -> None:
    for more in ({"seq": 2}, {"after": encode_state_id(bytes(16))}, {"create": "never"}):
        answer = service.step("fold", stream, [1], **more)

        assert (answer.status_code, code_of(answer)) == (404, "stream_not_found"), more
    assert service.http.get(service.path("fold", stream)).status_code == 404


def test_an_idempotency_key_has_1_to_255_characters(service: Service, stream: str) -> None:
    path = service.path("fold", stream, "step")
    for keys in ([""], ["k" * 256], ["a", "b"]):
        answer = service.http.post(path, json={"inputs": [1]}, headers=[("idempotency-key", key) for key in keys])

        assert (answer.status_code, code_of(answer)) == (400, "bad_request")
    assert service.http.post(path, json={"inputs": [1]}, headers={"idempotency-key": "k" * 255}).is_success


def test_a_value_that_is_not_finite_is_rejected_and_not_repeated(service: Service, stream: str) -> None:
    answer = service.http.post(service.path("lstm", stream, "step"), content='{"inputs": [1, NaN, 1, 1]}')

    assert (answer.status_code, code_of(answer)) == (422, "non_finite")
    assert "NaN" not in answer.text


def test_a_state_that_is_not_finite_is_rejected_and_the_stream_is_unchanged(service: Service, stream: str) -> None:
    for _ in (1, 2):
        service.step("nan_at_3", stream, [1.0])

    answer = service.step("nan_at_3", stream, [1.0])

    assert (answer.status_code, code_of(answer), answer.json()["applied"]) == (422, "non_finite_state", "no")
    assert service.http.get(service.path("nan_at_3", stream)).json()["step"] == 2


def sent(service: Service, model: str, stream: str, what: str) -> httpx2.Response:
    """The answer to a step, a reset or the like of a stream; to a look at its status if `what` is empty."""
    path = service.path(model, stream, what)
    return service.http.post(path, json={"inputs": [1]}) if what else service.http.get(path)


def test_a_missing_model_is_not_found(service: Service, stream: str) -> None:
    for model in ("nope", "a b", "-", "..%2e", "x" * 65, "%C3%BC", "%00", "{model}"):
        for what in ("step", "reset", ""):
            answer = sent(service, model, stream, what)

            assert (answer.status_code, code_of(answer)) == (404, "model_not_found"), (model, what)


def test_a_stream_id_with_other_characters_is_a_bad_request(service: Service) -> None:
    for stream in (
        *("%2E%2E%0a", "a%20b", "a%0Ab", "a%0D", "%00", "a%7Bb%7D", "%C3%BC", "a%3Fb", "a%23", "x" * 129, "a%2Fb"),
        "a%2freset",
    ):
        for what in ("step", "steps", "reset", ""):
            answer = sent(service, "fold", stream, what)

            assert (answer.status_code, code_of(answer)) == (400, "bad_request"), (stream, what)
    for stream in ("a:b@c-d._", "x" * 128, "...", "%61"):
        assert service.step("fold", stream, [1]).status_code == 200, stream


def test_an_escaped_stream_id_is_the_same_stream(service: Service, stream: str) -> None:
    service.step("fold", f"{stream}%3Aa", [1])

    assert service.http.get(service.path("fold", f"{stream}:a")).json()["step"] == 1


def test_a_version_is_a_positive_integer(service: Service, stream: str) -> None:
    for version in ("0", "-1", "x", "1.0", "9" * 30, "%C2%B2", ""):
        answer = service.http.post(service.path("fold", stream, f"step?version={version}"), json={"inputs": [1]})

        assert (answer.status_code, code_of(answer)) == (400, "bad_request"), version
    missing = service.http.post(service.path("fold", stream, "step?version=2"), json={"inputs": [1]})
    assert (missing.status_code, code_of(missing)) == (404, "model_not_found")


# ------------------------------------------------------------------- chunks


def test_a_chunk_and_its_retry_return_the_requested_predictions(service: Service, stream: str) -> None:
    ys = fold_reference([3, 1, 4])
    expected = {"all": {"y": [[y] for y in ys]}, "last": {"y": ys[-1:]}, "none": {}}
    for keep, outputs in expected.items():
        body = {"inputs": [[3], [1], [4]], "return": keep, "seq": 1}
        path = service.path("fold", f"{stream}-{keep}", "steps")

        answers = [service.http.post(path, json=body).json() for _ in range(2)]

        assert [answer["outputs"] for answer in answers] == [outputs, outputs]
        assert [answer.get("replayed", False) for answer in answers] == [False, True]


def test_a_chunk_is_all_or_nothing(service: Service, stream: str) -> None:
    answer = service.http.post(service.path("nan_at_3", stream, "steps"), json={"inputs": [[1.0]] * 5})

    assert (answer.status_code, code_of(answer)) == (422, "non_finite_state")
    assert service.http.get(service.path("nan_at_3", stream)).status_code == 404


# ------------------------------------------------------------------- bulk steps


def test_a_bulk_step_moves_each_of_its_streams(service: Service, stream: str) -> None:
    names = [f"{stream}-{i}" for i in range(3)]
    service.step("fold", names[1], [100])

    answer = service.http.post("/v1/models/fold/step", json={"streams": names, "inputs": {"x": [[1], [2], [3]]}}).json()

    assert answer["outputs"]["y"] == [[2], [fold_reference([100, 2])[1]], [4]]
    assert answer["step"] == [1, 2, 1]
    assert answer["errors"] == {}
    assert all(len(state_id) == 22 for state_id in answer["state_id"])


def test_a_rejected_row_does_not_affect_the_others(service: Service, stream: str) -> None:
    names = [f"{stream}-{i}" for i in range(4)]
    body = {"streams": names, "inputs": {"x": [[1], [2.5], [3], [4]]}, "seq": [1, 1, 7, None]}

    answer = service.http.post("/v1/models/fold/step", json=body).json()

    assert answer["outputs"]["y"] == [[2], None, None, [5]]
    assert answer["step"] == [1, None, None, 1]
    assert {i: problem["code"] for i, problem in answer["errors"].items()} == {
        "1": "bad_input",
        "2": "stream_not_found",
    }


def test_a_retried_bulk_step_is_replayed_row_by_row(service: Service, stream: str) -> None:
    body = {"streams": [f"{stream}-a", f"{stream}-b"], "inputs": [[1], [2]], "seq": [1, 1]}
    service.step("fold", f"{stream}-b", [2], seq=1)

    first = service.http.post("/v1/models/fold/step", json=body).json()
    again = service.http.post("/v1/models/fold/step", json=body).json()

    assert first["replayed"] == [1]
    assert again["replayed"] == [0, 1]
    assert first["outputs"] == again["outputs"]


def test_a_stream_named_twice_fails_the_whole_request(service: Service, stream: str) -> None:
    answer = service.http.post("/v1/models/fold/step", json={"streams": [stream, stream], "inputs": [[1], [2]]})

    assert (answer.status_code, code_of(answer)) == (422, "bad_input")
    assert service.http.get(service.path("fold", stream)).status_code == 404


def test_bulk_chunks_have_stream_and_time_axes(service: Service, stream: str) -> None:
    body = {"streams": [f"{stream}-a", f"{stream}-b"], "inputs": {"x": [[[1], [2]], [[3], [4]]]}}

    answer = service.http.post("/v1/models/fold/steps", json=body).json()

    assert answer["outputs"]["y"] == [[[y] for y in fold_reference(xs)] for xs in ([1, 2], [3, 4])]
    assert answer["step"] == [2, 2]


def test_bulk_chunks_return_the_requested_predictions(service: Service, stream: str) -> None:
    last = {"y": [[fold_reference([1, 2])[-1]], [fold_reference([3, 4])[-1]]]}
    for keep, outputs in (("last", last), ("none", {})):
        names = [f"{stream}-{keep}{n}" for n in range(2)]
        body = {"streams": names, "inputs": [[[1], [2]], [[3], [4]]], "return": keep}

        assert service.http.post("/v1/models/fold/steps", json=body).json()["outputs"] == outputs


def test_a_failed_row_is_zeros_and_nil_in_msgpack(service: Service, stream: str) -> None:
    x = np.array([[1, 2, 3, 4], [np.nan, 0, 0, 0]], np.float32)
    body = {"streams": [f"{stream}-a", f"{stream}-b"], "inputs": {"x": {"d": "float32", "s": [2, 4], "b": x.tobytes()}}}

    answer = service.http.post("/v1/models/lstm/step", content=msgspec.msgpack.encode(body), headers=MSGPACK)
    document = msgspec.msgpack.decode(answer.content)
    y = np.frombuffer(document["outputs"]["y"]["b"], np.float32).reshape(document["outputs"]["y"]["s"])

    assert y.shape == (2, 2)
    assert y[0].any()
    assert not y[1].any()
    assert document["step"] == [1, None]
    assert document["state_id"][1] is None
    assert document["errors"]["1"]["code"] == "non_finite"


# ------------------------------------------------------------------- reset, delete, status


def test_a_retried_reset_with_after_is_applied_once_and_needs_that_history(service: Service, stream: str) -> None:
    path = service.path("fold", stream, "reset")
    state_id = service.step("fold", stream, [1]).json()["state_id"]

    first, again = (service.http.post(path, json={"after": state_id}).json() for _ in range(2))
    service.step("fold", stream, [2])
    late = service.http.post(path, json={"after": state_id})
    missing = service.http.post(service.path("fold", f"{stream}-no", "reset"), json={"after": state_id})

    assert again == {**first, "replayed": True}
    assert (late.status_code, code_of(late)) == (409, "state_changed")
    assert (missing.status_code, code_of(missing)) == (404, "stream_not_found")


def test_an_invalid_reset_is_a_bad_request(service: Service, stream: str) -> None:
    for body in ("[]", '{"to": "start"}', '{"to": {}}', '{"after": 1}', '{"x": 1}', '{"to": null}'):
        answer = service.http.post(service.path("fold", stream, "reset"), content=body)

        assert (answer.status_code, code_of(answer)) == (400, "bad_request"), body
    missing = service.http.post(service.path("fold", stream, "reset"), json={"to": {"snapshot": "monday"}})
    assert (missing.status_code, code_of(missing)) == (404, "snapshot_not_found")


def test_deleting_a_stream_twice_is_no_error(service: Service, stream: str) -> None:
    service.step("fold", stream, [1])

    answers = [service.http.delete(service.path("fold", stream)) for _ in range(2)]

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b""), (204, b"")]
    assert code_of(service.http.get(service.path("fold", stream))) == "stream_not_found"


def test_a_status_has_every_field_of_the_contract(service: Service, stream: str) -> None:
    state_id = service.step("fold", stream, [1]).json()["state_id"]

    status = service.http.get(service.path("fold", stream)).json()

    assert set(status) == {
        "stream", "model", "version", "step", "state_id", "created_at", "updated_at", "expires_in_s",
    }  # fmt: skip
    assert (status["stream"], status["model"], status["version"], status["step"]) == (stream, "fold", 1, 1)
    assert status["state_id"] == state_id
    assert 0 < status["expires_in_s"] <= 7 * 86400 * 1.25


def test_streams_are_listed_by_prefix_page_by_page(service: Service, stream: str) -> None:
    names = {f"{stream}-{i}" for i in range(7)}
    for name in names:
        service.step("fold", name, [1])
    service.step("fold", "other", [1])

    pages: list[Any] = []
    cursor = ""
    while cursor is not None:
        query: dict[str, str | int] = {"prefix": stream, "limit": 3, "cursor": cursor}
        pages.append(service.http.get("/v1/models/fold/streams", params=query).json())
        cursor = pages[-1]["cursor"]

    assert [len(page["streams"]) for page in pages] == [3, 3, 1]
    assert {entry["stream"] for page in pages for entry in page["streams"]} == names
    assert {entry["step"] for page in pages for entry in page["streams"]} == {1}


def test_streams_with_the_longest_ids_are_listed_page_by_page(service: Service, stream: str) -> None:
    names = {f"{stream}-{i:03}-".ljust(128, "x") for i in range(130)}
    service.http.post("/v1/models/fold/step", json={"streams": sorted(names), "inputs": [[1]] * len(names)})

    found: list[str] = []
    cursor = ""
    while cursor is not None:
        query: dict[str, str | int] = {"prefix": stream, "limit": 10, "cursor": cursor}
        answer = service.http.get("/v1/models/fold/streams", params=query)
        assert answer.status_code == 200, answer.text
        found += [entry["stream"] for entry in answer.json()["streams"]]
        cursor = answer.json()["cursor"]

    assert sorted(found) == sorted(names)


NESTED = base64.urlsafe_b64encode(b"[" * 9000).decode()
ABOVE_64_BITS = base64.urlsafe_b64encode(f'["0-0-{2**64}"]'.encode()).decode()


def test_an_invalid_list_query_is_a_bad_request(service: Service) -> None:
    for query in (
        *("limit=0", "limit=1001", "limit=x", "prefix=*", "prefix=a%5Bb", "cursor=%21", "cursor=%C2%B2"),
        *(f"cursor={NESTED}", f"cursor={ABOVE_64_BITS}"),
    ):
        answer = service.http.get(f"/v1/models/fold/streams?{query}")

        assert (answer.status_code, code_of(answer)) == (400, "bad_request"), query


def test_all_streams_of_a_model_can_be_reset_at_once(redis_server: Server, service: Service) -> None:
    folder = service.app.state.context.settings.models[0]
    with running_service(redis_server.url, folder) as own:
        for name in "abc":
            own.step("fold", name, [1])
        own.step("total", "d", [1.0, 2.0])

        assert own.http.post("/v1/models/fold/reset").json() == {"reset": 3}
        assert [own.http.get(own.path("fold", name)).json()["step"] for name in "abc"] == [0, 0, 0]
        assert own.http.get(own.path("total", "d")).json()["step"] == 1


def test_a_body_that_a_reset_of_all_streams_would_ignore_is_rejected(service: Service, stream: str) -> None:
    service.step("latch", stream, [True, False])
    for content in (b'{"to": {"snapshot": "a"}}', b"[]", b"null", b"{"):
        answer = service.http.post("/v1/models/latch/reset", content=content)

        assert (answer.status_code, code_of(answer)) == (400, "bad_json" if content == b"{" else "bad_request")
    assert service.http.get(service.path("latch", stream)).json()["step"] == 1
    for content in (b"", b"{}", b" "):
        assert service.http.post("/v1/models/latch/reset", content=content).status_code == 200


def test_a_late_copy_of_a_reset_of_all_streams_with_a_key_resets_none_again(
    redis_server: Server, service: Service
) -> None:
    folder, key = service.app.state.context.settings.models[0], {"idempotency-key": "once"}
    with running_service(redis_server.url, folder) as own:
        for name in "ab":
            own.step("fold", name, [1])
        first = own.http.post("/v1/models/fold/reset", headers=key)
        for name in "ac":
            own.step("fold", name, [1])

        assert own.http.post("/v1/models/fold/reset", headers=key).json() == first.json() == {"reset": 2}
        assert [own.http.get(own.path("fold", name)).json()["step"] for name in "abc"] == [1, 0, 1]


@pytest.mark.parametrize("exists", [True, False])
def test_a_late_copy_of_a_deletion_with_a_key_does_not_delete_a_new_stream(
    service: Service, stream: str, exists: bool
) -> None:
    path, key = service.path("fold", stream), {"idempotency-key": "once"}
    if exists:
        service.step("fold", stream, [1])

    assert service.http.delete(path, headers=key).status_code == 204
    assert service.step("fold", stream, [1]).json()["created"] is True
    assert service.http.delete(path, headers=key).status_code == 204
    assert service.http.get(path).json()["step"] == 1
    assert service.http.delete(path, headers={"idempotency-key": "another"}).status_code == 204
    assert service.http.get(path).status_code == 404


def test_the_key_of_a_deletion_is_of_no_other_request(service: Service, stream: str) -> None:
    key = {"idempotency-key": "once"}
    service.http.delete(service.path("fold", stream), headers=key)

    step = service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=key)
    assert (step.status_code, code_of(step)) == (422, "idempotency_key_reused")


def test_a_stream_whose_record_cannot_be_read_can_be_deleted_with_a_key(
    service: Service, stream: str, shared_redis: Server
) -> None:
    name = f"swl:1:{{default/fold/{stream}}}"
    with shared_redis.client() as client:
        for n, value in enumerate((b"", b"short", None)):  # the last: of another type
            client.lpush(name, 1) if value is None else client.set(name, value)
            answer = service.http.delete(service.path("fold", stream), headers={"idempotency-key": f"once-{n}"})

            assert answer.status_code == 204
            assert not client.exists(name)


# ------------------------------------------------------------------- settings that change answers


def test_preconditions_are_required_if_configured(shared_redis: Server, service: Service, stream: str) -> None:
    folder = service.app.state.context.settings.models[0]
    with running_service(shared_redis.url, folder, require_preconditions=True) as own:
        bare = own.http.post(own.path("fold", stream, "reset"))
        keyed = own.http.post(own.path("fold", stream, "reset"), headers={"idempotency-key": "k"})

        assert (bare.status_code, code_of(bare)) == (428, "precondition_required")
        assert keyed.status_code == 200


def test_an_unreachable_store_is_503_with_retry_after(redis_server: Server, service: Service, stream: str) -> None:
    folder = service.app.state.context.settings.models[0]
    with running_service(redis_server.url, folder, request_timeout_s=0.5) as own:
        redis_server.kill()

        answer = own.step("fold", stream, [1], seq=1)

        assert (answer.status_code, code_of(answer)) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert own.http.get("/readyz").status_code == 503
        assert own.http.get("/healthz").status_code == 200


def test_while_draining_steps_are_refused_and_readiness_is_false(
    shared_redis: Server, service: Service, stream: str
) -> None:
    folder = service.app.state.context.settings.models[0]
    with running_service(shared_redis.url, folder) as own:
        own.run_in_loop(lambda: own.app.state.engine.drain(1.0))

        answer = own.step("fold", stream, [1])

        assert (answer.status_code, code_of(answer), answer.json()["retry"]) == (503, "draining", "same")
        assert "retry-after" in answer.headers
        assert own.http.get("/readyz").json()["ready"] is False


def test_concurrent_steps_of_one_stream_are_each_applied_once(service: Service, stream: str) -> None:
    async def all_at_once() -> list[int]:
        async with httpx2.AsyncClient(base_url=service.http.base_url, timeout=30) as client:
            path = service.path("fold", stream, "step")
            answers = await asyncio.gather(*(client.post(path, json={"inputs": [1]}) for _ in range(50)))
            return sorted(answer.json()["step"] for answer in answers)

    assert asyncio.run(all_at_once()) == list(range(1, 51))


def test_an_unexpected_error_is_500_without_details(
    service: Service, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only test that patches a part: an unexpected error cannot be caused in another way."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.app.state.context, "decoder", broken)
    answer = service.step("fold", stream, [1])

    assert (answer.status_code, code_of(answer), answer.json()["applied"]) == (500, "internal", "unknown")
    assert "secret" not in answer.text


def test_the_status_includes_the_last_prediction_on_request(service: Service, stream: str) -> None:
    service.http.post(service.path("fold", stream, "steps"), json={"inputs": [[1], [2]]})
    plain = service.http.get(service.path("fold", stream)).json()
    shown = service.http.get(service.path("fold", stream), params={"outputs": "true"}).json()

    assert shown == {**plain, "expires_in_s": shown["expires_in_s"], "outputs": {"y": fold_reference([1, 2])[-1:]}}


@pytest.mark.parametrize("n_streams", [2, 20])
def test_columns_of_streams_whose_version_lacks_an_output_have_null_there(
    redis_server: Server, tmp_path: Path, n_streams: int
) -> None:
    """Streams stay with the version that created them; it runs the whole request, or a part of it."""
    write_model(tmp_path, "fold", fold, version=1)
    write_model(tmp_path, "fold", fold_of_two_outputs, version=2)
    names = [f"s{n}" for n in range(n_streams)]
    with running_service(redis_server.url, tmp_path) as own:
        path, body = "/v1/models/fold/step", {"streams": names, "inputs": [[1]] * n_streams}
        own.http.post(path, json=body, params={"version": 1}).raise_for_status()
        found = [own.http.post(path, json=body).json() for _ in range(2)]
        chunk = own.http.post("/v1/models/fold/steps", json={**body, "inputs": [[[1], [1]]] * n_streams}).json()
        newer = own.http.post(path, json={"streams": ["new", *names], "inputs": [[1]] * (n_streams + 1)}).json()

    assert [one["outputs"] for one in found] == [
        {"y": [fold_reference([1] * n)[-1:]] * n_streams, "z": [None] * n_streams} for n in (2, 3)
    ]
    assert [one["errors"] for one in (*found, chunk, newer)] == [{}] * 4
    assert chunk["outputs"]["z"] == [None] * n_streams
    assert newer["outputs"]["z"] == [[-2], *[None] * n_streams]
