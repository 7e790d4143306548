"""Requests of the Open Inference Protocol, written by hand, so that tests control every byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import numpy as np

from stepwell.addons.oip.tensors import DATATYPES
from stepwell_export.runtime.manifest import Array
from tests.api.running import Service

LENGTH = "Inference-Header-Content-Length"


def tensor(name: str, array: Array, *, binary: bool = False) -> dict[str, Any]:
    """Return one input of a request: with its values, or with the size of the binary data that follows."""
    about: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
    if binary:
        return {**about, "parameters": {"binary_data_size": array.nbytes}}
    return {**about, "data": array.ravel().tolist()}


def document(*inputs: dict[str, Any], outputs: Sequence[Any] | None = None, **parameters: Any) -> dict[str, Any]:
    """Return the JSON document of an infer request."""
    made: dict[str, Any] = {"inputs": list(inputs)}
    if parameters:
        made["parameters"] = parameters
    if outputs is not None:
        made["outputs"] = outputs
    return made


def binary_body(document: Mapping[str, Any], *arrays: Array) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with binary tensor data."""
    head = json.dumps(document).encode()
    return head + b"".join(array.tobytes() for array in arrays), {LENGTH: str(len(head))}


class InferClient:
    """Sends infer requests for one model of a running service."""

    def __init__(self, service: Service, model: str = "fold") -> None:
        self.http = service.http
        self.model = model

    def post(self, document: Mapping[str, Any] | bytes, *, version: str = "", **more: Any) -> httpx2.Response:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.http.post(f"/v2/models/{self.model}{version}/infer", content=content, **more)

    def send(
        self, x: int, sequence: int | str | None, *, headers: dict[str, str] | None = None, **parameters: Any
    ) -> httpx2.Response:
        """Send one timestep of an integer model with one input `x` of shape `(1,)`."""
        given: dict[str, Any] = {} if sequence is None else {"sequence_id": sequence}
        send = document(tensor("x", np.array([[x]], np.int64)), **given, **parameters)
        return self.post(send, headers=headers or {})

    def predict(self, x: int, sequence: int | str, **parameters: Any) -> int:
        """Send one timestep and return the prediction."""
        answer = self.send(x, sequence, **parameters)
        assert answer.status_code == 200, answer.text
        [predict] = answer.json()["outputs"][0]["data"]
        return int(predict)


def error_message(answer: httpx2.Response) -> str:
    """Return the message of an error response; asserts that it contains nothing else."""
    document = answer.json()
    assert answer.status_code >= 400
    assert list(document) == ["error"]
    return str(document["error"])


def output_array(answer: httpx2.Response, name: str) -> Array:
    """Return an output of a response as an array, whether it came as JSON or as binary data."""
    dtypes = {datatype: dtype for dtype, datatype in DATATYPES.items()}
    length = answer.headers.get(LENGTH)
    document = json.loads(answer.content[: int(length)] if length else answer.content)
    at = int(length or 0)
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        dtype = dtypes[output["datatype"]]
        if output["name"] == name:
            flat = output["data"] if size is None else np.frombuffer(answer.content[at : at + size], dtype)
            return np.array(flat, dtype).reshape(output["shape"])
        at += size or 0
    raise AssertionError(f"{name} is not in {document}")
