"""The Open Inference Protocol: infer requests as JSON and as binary data, and Triton's sequence rules."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.addons.oip.client import LENGTH, InferClient, binary_body, document, error_message, output_array, tensor
from tests.api.running import Service, running_service
from tests.graphs import Built, fold, fold_of_two_outputs, fold_reference, write_model, write_models
from tests.servers import Server

X = np.array([[0.1, -0.2, 0.3, 0.4]], np.float32)
MUST_START = (
    "inference request for sequence {} to model 'fold' must specify the START flag on the first request of the sequence"
)


@pytest.fixture
def client(service: Service) -> InferClient:
    return InferClient(service)


# ------------------------------------------------------------------- sequences, as in Triton


def test_a_simple_sequence_is_the_fold_of_its_inputs(client: InferClient, stream: str) -> None:
    xs = [11, 0, -4, 7]
    flags: list[dict[str, Any]] = [{"sequence_start": True}, {}, {}, {"sequence_end": True}]

    assert [client.predict(x, stream, **flag) for x, flag in zip(xs, flags, strict=True)] == fold_reference(xs)


@pytest.mark.parametrize(("sequence", "flags"), [(None, {}), (0, {}), ("", {"sequence_start": True})])
def test_a_timestep_without_a_sequence_id_is_rejected(
    client: InferClient, sequence: Any, flags: dict[str, Any]
) -> None:
    answer = client.send(1, sequence, **flags)

    assert answer.status_code == 400
    assert (
        error_message(answer) == "inference request to model 'fold' must specify a non-zero or non-empty correlation ID"
    )


def test_a_sequence_must_be_started_also_after_its_end(client: InferClient, stream: str) -> None:
    answer = client.send(1, stream)
    assert client.predict(42, stream, sequence_start=True, sequence_end=True) == fold_reference([42])[0]
    ended = client.send(3, stream)

    assert (answer.status_code, error_message(answer)) == (400, MUST_START.format(stream))
    assert error_message(ended) == MUST_START.format(stream)
    assert client.predict(4, stream, sequence_start=True) == fold_reference([4])[0]


def test_a_start_flag_restarts_a_live_sequence(client: InferClient, stream: str) -> None:
    for x in (1, 2):
        client.predict(x, stream, sequence_start=x == 1)

    assert client.predict(3, stream, sequence_start=True) == fold_reference([3])[0]
    assert client.predict(4, stream) == fold_reference([3, 4])[1]


def test_interleaved_sequences_do_not_affect_each_other(client: InferClient, stream: str) -> None:
    lengths = {f"{stream}-{n}": n + 2 for n in range(5)}
    answers: dict[str, list[int]] = {name: [] for name in lengths}
    for turn in range(max(lengths.values())):
        for name, length in lengths.items():
            if turn < length:
                flags = {"sequence_start": turn == 0, "sequence_end": turn == length - 1}
                answers[name].append(client.predict(turn * 10 + length, name, **flags))

    expected = {n: fold_reference([turn * 10 + length for turn in range(length)]) for n, length in lengths.items()}
    assert answers == expected


def test_a_batch_within_one_sequence_is_rejected(client: InferClient, stream: str) -> None:
    answer = client.post(document(tensor("x", np.array([[1], [2]])), sequence_id=stream, sequence_start=True))

    assert answer.status_code == 400
    assert error_message(answer) == (
        "inference request to model 'fold' must specify batch-size 1 due to requirements of sequence batcher"
    )


@pytest.mark.parametrize("shape", [[1, 7], [1], [0, 1], []])
def test_a_wrong_shape_is_rejected_and_the_sequence_is_unchanged(
    client: InferClient, stream: str, shape: list[int]
) -> None:
    client.predict(1, stream, sequence_start=True)
    wrong = {"name": "x", "datatype": "INT64", "shape": shape, "data": [1]}
    answer = client.post(document(wrong, sequence_id=stream))

    assert answer.status_code == 400
    message = (
        f"unexpected shape for input 'x' for model 'fold'. Expected [-1,1], got {json.dumps(shape).replace(' ', '')}."
    )
    assert error_message(answer).startswith(message)
    assert client.predict(2, stream) == fold_reference([1, 2])[1]


def test_an_idle_sequence_expires(redis_server: Server, tmp_path: Path) -> None:
    with running_service(redis_server.url, write_models(tmp_path, fold), stream_ttl_s=0.1) as own:
        client = InferClient(own)
        client.predict(1, "idle", sequence_start=True)
        store = redis_server.client()
        while store.keys("swl:1:{*"):
            pass

        assert error_message(client.send(2, "idle")) == MUST_START.format("idle")


@pytest.mark.parametrize("sequence", [1, 42, 2**53 + 1, 2**64 - 1, "42", "0", "e333c95a-07fc-42d2-ab16-033b1a566ed5"])
def test_a_sequence_is_the_stream_with_its_id(service: Service, sequence: int | str) -> None:
    client = InferClient(service)
    started = client.send(5, sequence, sequence_start=True).json()

    assert started["parameters"] == {"sequence_id": sequence, "step": 1, "replayed": False}
    assert service.step("fold", str(sequence), [6]).json()["outputs"]["y"] == fold_reference([5, 6])[1:]
    assert client.predict(7, str(sequence), sequence_end=True) == fold_reference([5, 6, 7])[2]
    assert service.http.get(service.path("fold", str(sequence))).status_code == 404


@pytest.mark.parametrize("sequence", [-1, 2**64, True, None, [1]])
def test_an_invalid_sequence_id_is_rejected(client: InferClient, sequence: Any) -> None:
    answer = client.post(document(tensor("x", np.array([[1]])), sequence_id=sequence, sequence_start=True))

    assert answer.status_code == 400
    assert error_message(answer).startswith("Unable to parse 'sequence_id'")


@pytest.mark.parametrize("sequence", ["a/b", "x" * 129])
def test_a_sequence_id_that_is_no_valid_stream_id_is_rejected(client: InferClient, sequence: str) -> None:
    answer = client.send(1, sequence, sequence_start=True)

    assert answer.status_code == 400
    assert "expected 1 to 128 of A-Z" in error_message(answer)


@pytest.mark.parametrize(
    ("flag", "value"), [("sequence_start", 1), ("sequence_end", "true"), ("binary_data_output", None)]
)
def test_a_sequence_flag_must_be_a_boolean(client: InferClient, stream: str, flag: str, value: Any) -> None:
    answer = client.send(1, stream, **{flag: value})

    assert (answer.status_code, error_message(answer).partition(":")[0]) == (400, f"Unable to parse '{flag}'")


# ------------------------------------------------------------------- exactly once


def test_a_numbered_timestep_is_applied_once(client: InferClient, stream: str) -> None:
    answers = [
        client.send(x, stream, step=step, sequence_start=step == 1).json() for x, step in ((1, 1), (2, 2), (2, 2))
    ]

    assert [a["parameters"]["replayed"] for a in answers] == [False, False, True]
    assert [a["parameters"]["step"] for a in answers] == [1, 2, 2]
    assert answers[1]["outputs"] == answers[2]["outputs"]


def test_a_gap_in_the_numbers_is_rejected_with_the_expected_number(client: InferClient, stream: str) -> None:
    client.predict(1, stream, sequence_start=True)
    answer = client.send(2, stream, step=3)

    assert answer.status_code == 400
    assert error_message(answer) == (
        "`step` is 3; the stream is at step 1, so 2 is next. Send the missing timesteps from `expected` on, "
        "then this one. (code: seq_gap, applied: no)"
    )


@pytest.mark.parametrize("value", [0, 1.0, 2**53, True])
def test_an_invalid_number_is_rejected(client: InferClient, stream: str, value: Any) -> None:
    assert error_message(client.send(1, stream, step=value, sequence_start=True)).startswith("Unable to parse 'step'")


def test_a_sequence_starts_at_number_1(client: InferClient, stream: str) -> None:
    assert error_message(client.send(1, stream, step=2, sequence_start=True)).startswith(
        "'step' is 2 with 'sequence_start'"
    )


@pytest.mark.parametrize("where", ["parameter", "header"])
def test_an_idempotency_key_makes_start_and_end_safe_to_retry(client: InferClient, stream: str, where: str) -> None:
    def send(x: int, key: str, **flags: Any) -> Any:
        named: dict[str, Any] = (
            {"idempotency_key": key} if where == "parameter" else {"headers": {"Idempotency-Key": key}}
        )
        answer = client.send(x, stream, **named, **flags)
        assert answer.status_code == 200, answer.text
        return answer.json()

    first = [send(1, "a", sequence_start=True), send(2, "b"), send(1, "a", sequence_start=True)]
    ended = [send(3, "c", sequence_end=True), send(3, "c", sequence_end=True)]

    assert [a["outputs"][0]["data"] for a in first] == [[y] for y in [*fold_reference([1, 2]), *fold_reference([1])]]
    assert [a["outputs"][0]["data"] for a in ended] == [fold_reference([1, 2, 3])[-1:]] * 2
    assert [a["parameters"]["replayed"] for a in [*first, *ended]] == [False, False, True, False, True]


def test_two_different_idempotency_keys_are_rejected(client: InferClient, stream: str) -> None:
    answer = client.send(1, stream, sequence_start=True, idempotency_key="a", headers={"Idempotency-Key": "b"})

    assert (answer.status_code, "differ" in error_message(answer)) == (400, True)


# ------------------------------------------------------------------- tensors


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
def test_json_and_binary_tensors_can_be_mixed(service: Service, stream: str, binary_in: bool, binary_out: bool) -> None:
    a, b = np.array([[3, 2**60]], np.int64), np.array([-7], np.int32)
    client = document(
        tensor("a", a),
        tensor("b", b, binary=binary_in),
        outputs=[{"name": "last", "parameters": {"binary_data": binary_out}}, {"name": "total"}],
        sequence_id=stream,
        sequence_start=True,
    )
    body, headers = binary_body(client, *([b] if binary_in else []))
    answer = InferClient(service, "two_inputs").post(body, headers=headers)

    assert output_array(answer, "last").tolist() == [-7]
    assert output_array(answer, "total").tolist() == [[-4, 2**60 - 7]]
    assert (LENGTH in answer.headers) is binary_out
    assert answer.headers["content-type"] == ("application/octet-stream" if binary_out else "application/json")


def test_the_binary_flag_of_an_output_overrides_that_of_the_request(service: Service, stream: str) -> None:
    client = document(
        tensor("a", np.array([[1, 2]])),
        tensor("b", np.array([3], np.int32)),
        outputs=[{"name": "last", "parameters": {"binary_data": False}}, {"name": "total"}],
        sequence_id=stream,
        sequence_start=True,
        binary_data_output=True,
    )
    answer = InferClient(service, "two_inputs").post(client)
    head = json.loads(answer.content[: int(answer.headers[LENGTH])])

    assert [set(output) - {"name", "datatype", "shape"} for output in head["outputs"]] == [{"data"}, {"parameters"}]


def test_a_response_names_its_request_model_and_version(client: InferClient, stream: str) -> None:
    answer = client.post(
        {"id": "req-17", **document(tensor("x", np.array([[1]])), sequence_id=stream, sequence_start=True)}
    )

    assert answer.json() == {
        "model_name": "fold",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "INT64", "shape": [1, 1], "data": fold_reference([1])}],
        "id": "req-17",
        "parameters": {"sequence_id": stream, "step": 1, "replayed": False},
    }


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
def test_a_body_may_be_compressed(client: InferClient, stream: str, encoding: str) -> None:
    x = np.array([[5]])
    ask_for = document(tensor("x", x, binary=True), sequence_id=stream, sequence_start=True)
    body, headers = binary_body(ask_for, x)
    compress: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}
    packed = compress[encoding](body)
    answer = client.post(packed, headers={**headers, "Content-Encoding": encoding})

    assert output_array(answer, "y").tolist() == [fold_reference([5])]


def test_a_gzip_body_may_have_several_members(client: InferClient, stream: str) -> None:
    asked = document(tensor("x", np.array([[5]])), sequence_id=stream, sequence_start=True)
    body = json.dumps(asked).encode()
    members = [gzip.compress(part) for part in (body[:10], b"", body[10:])]
    answer = client.post(b"".join(members), headers={"Content-Encoding": "gzip"})

    assert answer.json()["outputs"][0]["data"] == fold_reference([5])


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (b"{}", "gzip", "the body is not gzip"),
        (gzip.compress(b"{}") + gzip.compress(b" ")[:-3], "gzip", "the body is not gzip: "),
        (gzip.compress(b" " * 500_001) * 2, "gzip", "The decompressed body has more than 1000000 bytes"),
        (gzip.compress(b"{}") + b"{}", "gzip", "the body is not gzip: "),
        (zlib.compress(b"{}") + b"{}", "deflate", "the body is not deflate: 2 bytes follow its end"),
    ],
    ids=["plain", "second cut short", "too much in two", "more behind it", "more behind deflate"],
)
def test_a_body_with_invalid_compression_is_rejected(
    client: InferClient, body: bytes, encoding: str, words: str
) -> None:
    answer = client.post(body, headers={"Content-Encoding": encoding})

    assert answer.status_code in (400, 413)
    assert error_message(answer).startswith(words)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "utf-8"])
def test_a_body_in_another_encoding_is_not_read(client: InferClient, encoding: str) -> None:
    answer = client.post(b"{}", headers={"Content-Encoding": encoding})

    assert answer.status_code == 415
    assert error_message(answer) == (
        f"The body's Content-Encoding is '{encoding}'; expected none, or identity, gzip or deflate. Send the body as "
        "it is, without a Content-Encoding. (code: unsupported_encoding, applied: no)"
    )
    assert answer.headers["connection"] == "close"


def test_the_content_type_of_a_request_is_ignored(client: InferClient, stream: str) -> None:
    body = document(tensor("x", np.array([[1]])), sequence_id=stream, sequence_start=True)
    for kind in ("application/octet-stream", "text/plain", "application/msgpack", ""):
        assert client.post(body, headers={"Content-Type": kind, "Accept": "application/msgpack"}).json()["outputs"]


def test_a_peek_returns_what_the_timestep_would_return_and_applies_nothing(client: InferClient, stream: str) -> None:
    client.predict(1, stream, sequence_start=True)
    peeks = [client.send(2, stream, peek=True, idempotency_key="k").json() for _ in range(2)]
    step = client.send(2, stream, idempotency_key="k").json()

    assert peeks == [step, step]
    assert step["outputs"][0]["data"] == fold_reference([1, 2])[1:]


def test_a_peek_begins_no_sequence(client: InferClient, stream: str) -> None:
    assert error_message(client.send(1, stream, peek=True)) == MUST_START.format(stream)


@pytest.mark.parametrize(
    "more", [{"sequence_start": True}, {"sequence_end": True}, {"source_id": "a", "source_at": 1}, {"peek": 1}]
)
def test_a_peek_with_what_it_would_ignore_is_rejected(client: InferClient, stream: str, more: dict[str, Any]) -> None:
    client.predict(1, stream, sequence_start=True)

    assert "'peek'" in error_message(client.send(2, stream, **{"peek": True} | more))
    assert client.predict(2, stream) == fold_reference([1, 2])[-1]


# ------------------------------------------------------------------- rejections

GOOD = {"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [1]}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "expected 1 inputs but got 0 inputs for model 'fold'. Got input(s) [], but missing required input(s) ['"),
        ([GOOD, GOOD], "expected 1 inputs but got 2 inputs for model 'fold'."),
        ([{**GOOD, "name": "z"}], "unexpected inference input 'z' for model 'fold'"),
        ([{**GOOD, "datatype": "FP64"}], "inference input 'x' data-type is 'FP64', but model 'fold' expects 'INT64'"),
        ([{**GOOD, "datatype": "BYTES", "data": ["a"]}], "inference input 'x' data-type is 'BYTES', but model 'fold'"),
        ([{**GOOD, "data": [1, 2]}], "Input 'x' has shape [2]; expected shape [1]."),
        ([{**GOOD, "data": [[1, 2]]}], "Input 'x' at index [0] has length 2; expected length 1."),
        ([{**GOOD, "data": [1.5]}], "Input 'x' at index [0] is 1.5; expected an integer (int64)."),
        ([{"name": "x", "datatype": "INT64", "shape": [1, 1]}], "Unable to parse 'data': input 'x' has neither"),
        ([{**GOOD, "parameters": {"binary_data_size": 8}}], "input 'x' has both 'data' and 'binary_data_size'"),
        ([{"name": "x"}], "failed to parse the request: Object missing required field `shape`"),
        ([{**GOOD, "parameters": {"shared_memory_region": "r"}}], "input 'x': the parameter 'shared_memory_region' is"),
        ("x", "failed to parse the request: Expected `array`, got `str`"),
    ],
)  # fmt: skip
def test_an_invalid_input_is_rejected_with_the_reason(
    client: InferClient, stream: str, inputs: Any, words: str
) -> None:
    answer = client.post({"inputs": inputs, "parameters": {"sequence_id": stream, "sequence_start": True}})

    assert answer.status_code == (501 if "shared_memory" in words else 400)
    assert error_message(answer).startswith(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"binary_data_size": 7}, "input byte size mismatch for input 'x' for model 'fold'. Expected 8, got 7"),
        ({"binary_data_size": -8}, "Unable to parse 'binary_data_size': it is -8"),
        ({"binary_data_size": "8"}, "Unable to parse 'binary_data_size': it is \"8\""),
    ],
)
def test_binary_data_that_does_not_fit_is_rejected(
    client: InferClient, stream: str, change: dict[str, Any], words: str
) -> None:
    x = np.array([[1]])
    one = {**tensor("x", x, binary=True), "parameters": change}
    body, headers = binary_body(document(one, sequence_id=stream, sequence_start=True), x)

    assert error_message(client.post(body, headers=headers)).startswith(words)


def test_too_little_or_too_much_binary_data_is_rejected(client: InferClient, stream: str) -> None:
    x = np.array([[1]])
    ask_for = document(tensor("x", x, binary=True), sequence_id=stream, sequence_start=True)
    body, headers = binary_body(ask_for, x)

    few = client.post(body[:-3], headers=headers)
    assert error_message(few) == "unexpected size for input 'x', expecting 3 additional bytes for model 'fold'"
    many = client.post(body + b"..", headers=headers)
    assert error_message(many) == "unexpected additional input data for model 'fold': 2 bytes"


@pytest.mark.parametrize("length", ["x", "-1", "", "9" * 99])
def test_an_invalid_header_length_is_rejected(client: InferClient, stream: str, length: str) -> None:
    answer = client.post(document(GOOD, sequence_id=stream), headers={LENGTH: length})

    assert (answer.status_code, error_message(answer)[:47]) == (400, "Unable to parse Inference-Header-Content-Length")
    assert "the body has" in error_message(client.post(document(GOOD, sequence_id=stream), headers={LENGTH: "5000"}))


@pytest.mark.parametrize(
    "body", [*(b"", b"[]", b'{"inputs": NaN}', b"[" * 99_999, b'{"inputs": []} x'), b'{"id": "\\ud800", "inputs": []}']
)
def test_an_undecodable_body_is_rejected(client: InferClient, body: bytes) -> None:
    answer = client.post(body)

    assert answer.status_code == 400
    assert error_message(answer).startswith("failed to parse the request")


_BODY = '{"inputs":[{"name":"x","shape":[1,1],"datatype":"INT64","data":[1]%s}],"parameters":{"sequence_id":"%s"%s}%s}'


@pytest.mark.parametrize(
    ("in_input", "in_parameters", "at_the_end"),
    [
        (',"data":[2]', "", ""),
        ("", ',"sequence_id":"other"', ""),
        ("", "", ',"p\\u0061rameters":{"sequence_id":"other"}'),
        ("", ',"custom":{"a":1,"a":2}', ""),
    ],
)
def test_a_key_that_occurs_twice_is_rejected(
    client: InferClient, stream: str, in_input: str, in_parameters: str, at_the_end: str
) -> None:
    client.predict(1, stream, sequence_start=True)

    answer = client.post((_BODY % (in_input, stream, in_parameters, at_the_end)).encode())

    assert answer.status_code == 400
    assert "twice in one object" in error_message(answer)


@pytest.mark.parametrize("more", ['"i\\u0064":"\\u003a"', '"a":{"b":{"c":"::"}}', '"outputs":null'])
def test_a_key_that_occurs_once_is_accepted(client: InferClient, stream: str, more: str) -> None:
    client.predict(1, stream, sequence_start=True)

    answer = client.post((_BODY % ("", stream, ',"b:c":{"d":[":"]}', f",{more}")).encode())

    assert answer.status_code == 200


@pytest.mark.parametrize(("value", "binary"), [(np.nan, False), (np.inf, True)])
def test_a_value_that_is_not_finite_is_rejected(service: Service, stream: str, value: float, binary: bool) -> None:
    x = X.copy()
    x[0, 2] = value
    client = document(tensor("x", x, binary=binary), sequence_id=stream, sequence_start=True)
    body, headers = binary_body(client, *([x] if binary else []))
    answer = InferClient(service, "lstm").post(body, headers=headers)

    assert answer.status_code == 400
    assert not binary or "Input 'x' at index [0, 2] is not a finite number of float32" in error_message(answer)


def test_a_binary_boolean_is_one_byte_of_0_or_1(service: Service, stream: str) -> None:
    x = np.array([[2, 0]], np.uint8)
    about = {"name": "x", "datatype": "BOOL", "shape": [1, 2], "parameters": {"binary_data_size": 2}}
    body, headers = binary_body(document(about, sequence_id=stream, sequence_start=True), x)
    answer = InferClient(service, "latch").post(body, headers=headers)

    assert (answer.status_code, "bytes other than 0 and 1" in error_message(answer)) == (400, True)


@pytest.mark.parametrize(
    ("outputs", "status", "words"),
    [
        ([{"name": "h_next"}], 400, "unexpected inference output 'h_next' for model 'fold'"),
        ([{"name": "y", "parameters": {"classification": 2}}], 501, "output 'y': the parameter 'classification' is"),
        ([{"name": "y", "parameters": {"binary_data": 1}}], 400, "Unable to parse 'binary_data': it is 1"),
    ],
)  # fmt: skip
def test_an_unavailable_output_is_rejected(
    client: InferClient, stream: str, outputs: Any, status: int, words: str
) -> None:
    answer = client.post(document(GOOD, outputs=outputs, sequence_id=stream, sequence_start=True))

    assert answer.status_code == status
    assert error_message(answer).startswith(words)


def test_tritons_parameters_are_accepted_and_its_reserved_ones_are_rejected(client: InferClient, stream: str) -> None:
    more: dict[str, Any] = {"priority": 1, "timeout": 1000, "headers": "x", "of_my_own": 1.5}
    body = document(tensor("x", np.array([[1]])), sequence_id=stream, sequence_start=True, **more)
    assert client.post(body).status_code == 200

    refused = client.send(1, stream, triton_enable_empty_final_response=True)
    assert error_message(refused).startswith("parameter keys starting with 'triton_' are reserved")


@contextlib.contextmanager
def begun_before(second: Callable[[], Built], redis: Server, folder: Path, stream: str) -> Iterator[InferClient]:
    """Serve the fold and then a second version of it; a sequence was begun before that one."""
    write_model(folder, "fold", fold, version=1)
    with running_service(redis.url, folder) as own:
        client = InferClient(own)
        client.predict(1, stream, sequence_start=True)
        write_model(folder, "fold", second, version=2)
        assert own.http.post("/v2/repository/models/fold/load").status_code == 200
        yield client


def test_a_sequence_continues_with_the_version_that_started_it(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    with begun_before(lambda: fold(factor=3), shared_redis, tmp_path, stream) as client:
        onward = client.send(2, stream).json()
        other = client.post(document(tensor("x", np.array([[2]])), sequence_id=stream), version="/versions/2")
        again = client.send(3, stream, sequence_start=True).json()

    assert (onward["model_version"], onward["outputs"][0]["data"]) == ("1", fold_reference([1, 2])[1:])
    assert "code: model_changed" in error_message(other)
    assert (again["model_version"], again["outputs"][0]["data"]) == ("2", fold_reference([3], factor=3))


def test_a_sequence_whose_version_lacks_an_output_has_the_others(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    with begun_before(fold_of_two_outputs, shared_redis, tmp_path, stream) as client:
        onward = client.send(2, stream).json()

    assert [(one["name"], one["data"]) for one in onward["outputs"]] == [("y", fold_reference([1, 2])[1:])]


# ------------------------------------------------------------------- stateless models


@pytest.mark.parametrize(("rows", "binary"), [(1, False), (200, True)])
def test_a_stateless_model_accepts_a_batch(service: Service, rows: int, binary: bool) -> None:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    body, headers = binary_body(document(tensor("x", x, binary=binary), binary_data_output=binary), *([x] * binary))
    answer = InferClient(service, "stateless").post(body, headers=headers)

    assert output_array(answer, "y").tolist() == (2 * x).tolist()


def test_a_batch_over_the_maximum_is_rejected(service: Service) -> None:
    answer = InferClient(service, "stateless").post(document(tensor("x", np.zeros((257, 2), np.float32))))

    assert error_message(answer) == "inference request batch-size must be <= 256 for 'stateless'"


def test_a_raw_binary_body_is_the_single_input(service: Service) -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    answer = InferClient(service, "stateless").post(x.tobytes(), headers={LENGTH: "0"})

    assert output_array(answer, "y").tolist() == (2 * x).tolist()


def test_a_raw_binary_body_cannot_be_used_for_a_sequence(client: InferClient) -> None:
    assert "correlation ID" in error_message(client.post(b"\0" * 8, headers={LENGTH: "0"}))


def test_a_stateless_model_accepts_sequences_too(service: Service, stream: str) -> None:
    x = np.array([[1, 2]], np.float32)
    client = InferClient(service, "stateless")
    answers = [
        client.post(document(tensor("x", x), sequence_id=stream, sequence_start=n == 0)).json() for n in range(2)
    ]

    assert [a["parameters"]["step"] for a in answers] == [1, 2]
