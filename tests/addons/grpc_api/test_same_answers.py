"""The same infer requests over HTTP and over gRPC have the same responses, bit for bit, and the same errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pytest

from stepwell_export.runtime.manifest import Array
from tests.addons.grpc_api.client import CONTENTS, CallError, GrpcClient, infer_request, outputs_of, parameters_of
from tests.addons.grpc_api.conftest import GrpcService
from tests.addons.oip.client import binary_body, document, output_array, tensor

CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE",
}  # fmt: skip
F32 = np.random.default_rng(3).normal(size=(1, 4)).astype(np.float32)


class InferCase(NamedTuple):
    model: str
    inputs: Mapping[str, Array]
    parameters: Mapping[str, Any]
    outputs: tuple[str, ...] = ()
    version: str = ""


class BothClients:
    """Sends each request in every form over both transports; each form has sequences of its own."""

    def __init__(self, service: GrpcService, client: GrpcClient, stream: str) -> None:
        self._http = httpx2.Client(base_url=service.url, timeout=60, trust_env=False)
        self._grpc = client
        self._stream = stream

    def close(self) -> None:
        self._http.close()

    def send(self, request: InferCase) -> dict[str, Any]:
        """Return what each form returned."""
        is_typed = all(array.dtype.name in CONTENTS for array in request.inputs.values())
        found = {
            "HTTP, binary": self._send_http(self._of(request, "b"), binary=True),
            "gRPC, raw": self._send_grpc(self._of(request, "r"), typed=False),
        }
        if is_typed:
            found["gRPC, typed"] = self._send_grpc(self._of(request, "t"), typed=True)
        if not any(np.isinf(array).any() for array in request.inputs.values()):  # JSON has no such numbers
            found["HTTP, JSON"] = self._send_http(self._of(request, "j"), binary=False)
        return found

    def _of(self, request: InferCase, form: str) -> InferCase:
        """Return the request with the sequence of a form."""
        return request._replace(
            parameters={
                key: f"{self._stream}-{form}-{value}" if key == "sequence_id" and value else value
                for key, value in request.parameters.items()
            }
        )

    def _send_http(self, request: InferCase, *, binary: bool) -> Any:
        inputs = [tensor(key, array, binary=binary) for key, array in request.inputs.items()]
        outputs = [{"name": name} for name in request.outputs] or None
        parameters = {**request.parameters, **({"binary_data_output": True} if binary else {})}
        made = document(*inputs, outputs=outputs, **parameters)
        body, headers = (
            binary_body(made, *request.inputs.values())
            if binary
            else (json.dumps(made).replace("NaN", "null").encode(), {})
        )
        version = f"/versions/{request.version}" if request.version else ""
        path = f"/v2/models/{request.model}{version}/infer"
        answer = self._http.post(path, content=body, headers=headers)
        if answer.status_code != 200:
            return CODES[answer.status_code], self._plain(answer.json()["error"])
        length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
        got = json.loads(answer.content[:length])
        arrays = {one["name"]: output_array(answer, one["name"]) for one in got["outputs"]}
        return _bits(arrays), self._plain(json.dumps(got.get("parameters", {}), sort_keys=True)), got["model_version"]

    def _send_grpc(self, request: InferCase, *, typed: bool) -> Any:
        got = self._grpc.infer(
            infer_request(
                request.model,
                request.inputs,
                typed=typed,
                outputs=request.outputs,
                version=request.version,
                **request.parameters,
            )
        )
        if isinstance(got, CallError):
            return got.code, self._plain(got.message)
        parameters = self._plain(json.dumps(parameters_of(got), sort_keys=True))
        return _bits(outputs_of(got)), parameters, got.model_version

    def _plain(self, text: str) -> str:
        """Return a text without the form in the sequence's id."""
        for form in "jbrt":
            text = text.replace(f"{self._stream}-{form}-", "")
        return text


def _bits(arrays: Mapping[str, Array]) -> dict[str, Any]:
    return {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.fixture
def both(service: GrpcService, client: GrpcClient, stream: str) -> Iterator[BothClients]:
    one = BothClients(service, client, stream)
    yield one
    one.close()


def assert_same(found: Mapping[str, Any]) -> Any:
    """Check that all forms have the same result, and return it."""
    [first, *others] = found.values()
    assert all(other == first for other in others), found
    return first


START: Mapping[str, Any] = {"sequence_id": "s", "sequence_start": True}
GOES_ON: Mapping[str, Any] = {"sequence_id": "s"}
ONE = np.array([[1]], np.int64)
SEQUENCES: Mapping[str, list[InferCase]] = {
    "float32": [InferCase("lstm", {"x": F32 * n}, START if n == 1 else GOES_ON) for n in range(1, 20)],
    "float16": [InferCase("half", {"x": np.array([[0.1, -2]], np.float16)}, START)],
    "float64": [InferCase("double", {"x": np.array([[0.1, -2]])}, START)],
    "booleans": [InferCase("latch", {"x": np.array([[True, False]])}, START)],
    "several inputs": [
        InferCase("two_inputs", {"a": np.array([[1, 2**60]], np.int64), "b": np.array([3], np.int32)}, START),
        InferCase("two_inputs", {"b": np.array([4], np.int32), "a": np.array([[-1, 5]], np.int64)}, GOES_ON, ("last",)),
    ],
    "a batch without state": [InferCase("stateless", {"x": np.arange(20, dtype=np.float32).reshape(10, 2)}, {})],
    "a batch in one sequence": [InferCase("fold", {"x": np.array([[1], [2]])}, START)],
    "inputs that may be missing": [InferCase("last_seen", {"a": np.array([[1, np.nan]], np.float32)}, START)],
    "an end": [
        InferCase("fold", {"x": ONE}, START),
        InferCase("fold", {"x": 2 * ONE}, {**GOES_ON, "sequence_end": True}),
        InferCase("fold", {"x": 2 * ONE}, {**GOES_ON, "sequence_end": True}),
    ],
    "start and end": [
        InferCase("fold", {"x": ONE}, {**START, "sequence_end": True}),
        InferCase("fold", {"x": ONE}, GOES_ON),
    ],
    "retries by step": [
        InferCase("fold", {"x": ONE}, {**START, "step": 1}),
        *[InferCase("fold", {"x": 2 * ONE}, {**GOES_ON, "step": 2})] * 2,
        InferCase("fold", {"x": 3 * ONE}, {**GOES_ON, "step": 2}),
        InferCase("fold", {"x": 3 * ONE}, {**GOES_ON, "step": 7}),
        InferCase("fold", {"x": 3 * ONE}, {**START, "step": 7}),
    ],
    "retries by key": [InferCase("fold", {"x": ONE}, {**START, "idempotency_key": "k"})] * 2,
    "retries by source": [
        InferCase("fold", {"x": ONE}, {**START, "source_id": "log", "source_at": 5}),
        *[InferCase("fold", {"x": ONE}, {**GOES_ON, "source_id": "log", "source_at": 6})] * 2,
    ],
    "a version": [InferCase("fold", {"x": ONE}, START, (), "1")],
    "no such version": [InferCase("fold", {"x": ONE}, START, (), "9")],
    "no such model": [InferCase("nope", {"x": ONE}, START)],
    "no sequence": [InferCase("fold", {"x": ONE}, {})],
    "sequence zero": [InferCase("fold", {"x": ONE}, {"sequence_id": 0, "sequence_start": True})],
    "no start": [InferCase("fold", {"x": ONE}, GOES_ON)],
    "a wrong shape": [InferCase("fold", {"x": np.array([[1, 2]])}, START)],
    "a wrong datatype": [InferCase("fold", {"x": F32[:, :1]}, START)],
    "an unknown input": [InferCase("fold", {"z": ONE}, START)],
    "a missing input": [InferCase("two_inputs", {"b": np.array([3], np.int32)}, START)],
    "an unknown output": [InferCase("fold", {"x": ONE}, START, ("z",))],
    "an input that is not finite": [InferCase("lstm", {"x": F32 * np.float32(np.inf)}, START)],
    "an output that is not finite": [
        InferCase("nan_at_3", {"x": ONE.astype(np.float32)}, START if n == 0 else GOES_ON) for n in range(4)
    ],
    "a reserved parameter": [InferCase("fold", {"x": ONE}, {**START, "triton_x": 1})],
    "a bad step": [InferCase("fold", {"x": ONE}, {**START, "step": 0})],
    "a bad key": [InferCase("fold", {"x": ONE}, {**START, "idempotency_key": "k" * 256})],
    "a bad source": [InferCase("fold", {"x": ONE}, {**START, "source_id": "log"})],
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_form_of_a_request_has_the_same_response(both: BothClients, name: str) -> None:
    for request in SEQUENCES[name]:
        assert_same(both.send(request))


def test_random_sequences_have_the_same_responses(both: BothClients) -> None:
    """Starts, ends, repeated and skipped steps of a few sequences, at random."""
    random = np.random.default_rng(11)
    accepted = 0
    for _ in range(150):
        parameters: dict[str, Any] = {"sequence_id": f"s{random.integers(3)}"}
        for flag, share in (("sequence_start", 0.15), ("sequence_end", 0.1)):
            if random.random() < share:
                parameters[flag] = True
        if random.random() < 0.3:
            parameters["step"] = int(random.integers(1, 6))
        x = np.array([[random.integers(-5, 5)]], np.int64)
        accepted += isinstance(assert_same(both.send(InferCase("fold", {"x": x}, parameters)))[0], dict)

    assert 20 < accepted < 150
