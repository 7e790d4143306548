"""What only gRPC has of an infer request: the fields of its messages, metadata, limits and deadlines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.addons.grpc_api.client import (
    GrpcClient,
    grpc,
    infer_request,
    integer,
    outputs_of,
    parameters_of,
    set_parameters,
)
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold_reference


def start(stream: str, x: int = 1) -> object:
    return infer_request("fold", {"x": integer(x)}, sequence_id=stream, sequence_start=True)


def test_the_id_of_a_request_is_returned(client: GrpcClient, stream: str) -> None:
    request = infer_request("fold", {"x": integer(1)}, name="r-1", sequence_id=stream, sequence_start=True)

    assert client.infer(request).id == "r-1"


def test_ids_above_the_range_of_int64_are_those_of_http(service: GrpcService, client: GrpcClient) -> None:
    """Clients without unsigned integers send them as negative ones."""
    sequence = 2**64 - 5
    assert client.predict(1, sequence - 2**64, sequence_start=True) == fold_reference([1])[0]
    request = infer_request("fold", {"x": integer(2)})
    request.parameters["sequence_id"].uint64_param = sequence

    assert parameters_of(client.infer(request))["sequence_id"] == sequence
    assert httpx2.get(f"{service.url}/v1/models/fold/streams/{sequence}", timeout=30).json()["step"] == 2


def test_a_number_and_the_same_text_are_one_stream_of_the_native_api(
    service: GrpcService, client: GrpcClient, stream: str
) -> None:
    number = int.from_bytes(stream.encode()[-6:])
    found = [client.predict(1, number, sequence_start=True), client.predict(2, str(number))]
    path = f"{service.url}/v1/models/fold/streams/{number}/step"
    found += httpx2.post(path, json={"inputs": [3], "seq": 3}, timeout=30).json()["outputs"]["y"]
    found.append(client.predict(4, number, step=4))

    assert found == fold_reference([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sequence_id", True, "int64_param or string_param"),
        ("sequence_id", 1.5, "int64_param or string_param"),
        ("sequence_start", 1, "bool_param"),
        ("sequence_end", "yes", "bool_param"),
    ],
)
def test_a_parameter_of_another_type_is_rejected_in_tritons_words(
    client: GrpcClient, stream: str, name: str, value: bool | float | str, expected: str
) -> None:
    request = start(stream)
    set_parameters(request, {name: value})
    found = client.infer(request)

    assert found[:2] == ("INVALID_ARGUMENT", f"invalid value type for '{name}' parameter, expected {expected}.")


def raw_and_typed(started: Mapping[str, Any]) -> Any:
    request = infer_request("fold", {"x": integer(1)}, typed=True, **started)
    request.raw_input_contents.append(b"\0" * 8)
    return request


def two_raw(started: Mapping[str, Any]) -> Any:
    request = infer_request("fold", {"x": integer(1)}, **started)
    request.raw_input_contents.append(b"\0" * 8)
    return request


def a_text(started: Mapping[str, Any]) -> Any:
    request = infer_request("fold", {}, **started)
    request.inputs.add(name="x", datatype="BYTES", shape=(1, 1)).contents.bytes_contents.append(b"1")
    return request


def too_large(started: Mapping[str, Any]) -> Any:
    request = infer_request("two_inputs", {"a": np.array([[1, 2]])}, typed=True, **started)
    request.inputs.add(name="b", datatype="INT16", shape=(1,)).contents.int_contents.append(2**20)
    return request


def typed_float16(started: Mapping[str, Any]) -> Any:
    request = infer_request("half", {}, **started)
    request.inputs.add(name="x", datatype="FP16", shape=(1, 2)).contents.fp32_contents.extend([1, 2])
    return request


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (raw_and_typed, "contents field must not be specified when using raw_input_contents"),
        (two_raw, "unexpected number of raw_input_contents for model 'fold', expecting 1, got 2"),
        (a_text, "data-type is 'BYTES', but model 'fold' expects 'INT64'"),
        (too_large, "does not fit datatype 'INT16'"),
        (typed_float16, "accepted in raw_input_contents only"),
    ],
)
def test_contents_that_do_not_fit_are_rejected(
    client: GrpcClient, stream: str, make: Callable[[Mapping[str, Any]], Any], said: str
) -> None:
    found = client.infer(make({"sequence_id": stream, "sequence_start": True}))

    assert (found.code, said in found.message) == ("INVALID_ARGUMENT", True), found.message


@pytest.mark.parametrize(("tensor", "parameter"), [("inputs", "shared_memory_region"), ("outputs", "classification")])
def test_what_is_not_supported_is_unimplemented(client: GrpcClient, stream: str, tensor: str, parameter: str) -> None:
    request = infer_request("fold", {"x": integer(1)}, outputs=["y"], sequence_id=stream, sequence_start=True)
    set_parameters(getattr(request, tensor)[0], {parameter: 1 if tensor == "outputs" else "region"})
    if tensor == "inputs":
        del request.raw_input_contents[:]
    found = client.infer(request)

    assert (found.code, f"'{parameter}' is not supported" in found.message) == ("UNIMPLEMENTED", True)


def test_a_key_in_the_metadata_makes_a_retry_harmless(service: GrpcService, stream: str) -> None:
    keyed = GrpcClient(service.grpc_port, idempotency_key="k-1")
    found = [keyed.infer(start(stream)) for _ in range(2)]
    keyed.close()

    assert [parameters_of(one)["replayed"] for one in found] == [False, True]
    assert outputs_of(found[0])["y"] == outputs_of(found[1])["y"]


def test_a_key_that_is_too_long_is_rejected(service: GrpcService, stream: str) -> None:
    keyed = GrpcClient(service.grpc_port, idempotency_key="k" * 256)
    found = keyed.infer(start(stream))
    keyed.close()

    assert (found.code, "256 characters" in found.message) == ("INVALID_ARGUMENT", True)


def test_the_id_of_a_request_in_the_metadata_is_returned(service: GrpcService) -> None:
    named = GrpcClient(service.grpc_port, x_request_id="req-7")
    found = named.predict(1, 0)
    named.close()

    assert found.metadata["x-request-id"] == "req-7"


def test_a_message_above_the_limit_is_rejected(client: GrpcClient) -> None:
    found = client.infer(infer_request("stateless", {"x": np.zeros((130_000, 2), np.float32)}))

    assert (found.code, "larger than max" in found.message) == ("RESOURCE_EXHAUSTED", True)


def test_bytes_that_are_no_message_are_rejected(client: GrpcClient) -> None:
    send = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as rejected:
        send(b"\xff\xff\xff", timeout=60)

    assert rejected.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "failed to parse the request" in rejected.value.details()


def test_a_step_whose_deadline_passed_is_applied_once_with_its_retry(client: GrpcClient, stream: str) -> None:
    """The client cannot know whether it was applied; with its number it is applied exactly once."""
    assert client.predict(1, stream, "slow", sequence_start=True) == 1
    request = infer_request("slow", {"x": integer(300_000)}, sequence_id=stream, step=2)
    send = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as late:
        send(request.SerializeToString(), timeout=0.02)
    retries = [client.predict(300_000, stream, "slow", step=2) for _ in range(2)]

    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert retries == [300_001] * 2
    assert client.predict(2, stream, "slow", step=3) == 300_003
