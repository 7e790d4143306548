"""Requests of the Open Inference Protocol, written by hand: what is sent is in the tests, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from model_export.manifest import Array
from service.wire.oip import DATATYPES
from tests.api.running import Service

LENGTH = "Inference-Header-Content-Length"


def tensor(name: str, array: Array, *, binary: bool = False) -> dict[str, Any]:
    """One input of a request: its values, or how many bytes of them follow."""
    about: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
    if binary:
        return {**about, "parameters": {"binary_data_size": array.nbytes}}
    return {**about, "data": array.ravel().tolist()}


def document(*inputs: dict[str, Any], outputs: Sequence[Any] | None = None, **parameters: Any) -> dict[str, Any]:
    """A request's document."""
    made: dict[str, Any] = {"inputs": list(inputs)}
    if parameters:
        made["parameters"] = parameters
    if outputs is not None:
        made["outputs"] = outputs
    return made


def binary_body(document: Mapping[str, Any], *arrays: Array) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request whose tensors follow as raw bytes."""
    head = json.dumps(document).encode()
    return head + b"".join(array.tobytes() for array in arrays), {LENGTH: str(len(head))}


class Sequences:
    """Asks one model of a running service."""

    def __init__(self, service: Service, model: str = "fold") -> None:
        self.http = service.http
        self.model = model

    def post(self, document: Mapping[str, Any] | bytes, *, version: str = "", **more: Any) -> httpx.Response:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.http.post(f"/v2/models/{self.model}{version}/infer", content=content, **more)

    def ask(
        self, x: int, sequence: int | str | None, *, headers: dict[str, str] | None = None, **parameters: Any
    ) -> httpx.Response:
        """Send one timestep of an integer model with one input `x` of shape [1]."""
        given: dict[str, Any] = {} if sequence is None else {"sequence_id": sequence}
        ask = document(tensor("x", np.array([[x]], np.int64)), **given, **parameters)
        return self.post(ask, headers=headers or {})

    def y(self, x: int, sequence: int | str, **parameters: Any) -> int:
        """Send one timestep and return the prediction."""
        answer = self.ask(x, sequence, **parameters)
        assert answer.status_code == 200, answer.text
        [y] = answer.json()["outputs"][0]["data"]
        return int(y)


def error(answer: httpx.Response) -> str:
    """The words of a refusal, which is nothing but words."""
    told = answer.json()
    assert answer.status_code >= 400
    assert list(told) == ["error"]
    return str(told["error"])


def array_of(answer: httpx.Response, name: str) -> Array:
    """An output of an answer, as it came: as JSON or as raw bytes."""
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
