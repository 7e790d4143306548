"""A client of the gRPC service that sends any message, so that tests control every field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from stepwell.addons.oip.tensors import DATATYPES
from stepwell_export.runtime.manifest import Array

grpc = pytest.importorskip("grpc", reason="grpcio is not installed: STEPWELL_EXTRAS=grpc")
pytest.importorskip("grpc_health", reason="grpcio-health-checking is not installed: STEPWELL_EXTRAS=grpc")
pytest.importorskip("grpc_reflection", reason="grpcio-reflection is not installed: STEPWELL_EXTRAS=grpc")

from stepwell.addons.grpc_api.messages import (  # noqa: E402 - needs grpcio
    SERVICE,
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    message_class,
)

CONTENTS: Mapping[str, str] = {
    "bool": "bool_contents", "int8": "int_contents", "int16": "int_contents", "int32": "int_contents",
    "int64": "int64_contents", "uint8": "uint_contents", "uint16": "uint_contents", "uint32": "uint_contents",
    "uint64": "uint64_contents", "float32": "fp32_contents", "float64": "fp64_contents",
}  # fmt: skip
TIMEOUT_S = 60


class CallError(NamedTuple):
    """An error of a call."""

    code: str
    message: str
    metadata: Mapping[str, Any]


def infer_request(
    model: str,
    inputs: Mapping[str, Array],
    *,
    typed: bool = False,
    outputs: Sequence[str] = (),
    name: str = "",
    version: str = "",
    **parameters: bool | int | str | float,
) -> Any:
    """Return a `ModelInferRequest`; `typed`: the values are in `contents`, else in `raw_input_contents`."""
    request = ModelInferRequest(model_name=model, model_version=version, id=name)
    for key, array in inputs.items():
        tensor = request.inputs.add(name=key, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        if typed:
            getattr(tensor.contents, CONTENTS[array.dtype.name]).extend(array.ravel().tolist())
        else:
            request.raw_input_contents.append(array.tobytes())
    for output in outputs:
        request.outputs.add(name=output)
    set_parameters(request, parameters)
    return request


def set_parameters(message: Any, parameters: Mapping[str, bool | int | str | float]) -> None:
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(message.parameters[key], kind, value)


def parameters_of(response: Any) -> dict[str, Any]:
    """Return the parameters of a response by name."""
    return {key: getattr(one, one.WhichOneof("parameter_choice")) for key, one in response.parameters.items()}


def outputs_of(response: Any) -> dict[str, Array]:
    """Return the outputs of a `ModelInferResponse` by name."""
    dtypes = {datatype: dtype for dtype, datatype in DATATYPES.items()}
    raws = response.raw_output_contents
    return {
        one.name: np.frombuffer(raw, dtypes[one.datatype]).reshape(one.shape)
        for one, raw in zip(response.outputs, raws, strict=True)
    }


class GrpcClient:
    """Calls methods of one service."""

    def __init__(self, port: int, key: str | None = None, **metadata: str) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        self.metadata = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        if key is not None:
            self.metadata.append(("authorization", f"Bearer {key}"))

    def close(self) -> None:
        self.channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """Call a method with one response; returns it, or a `CallError`."""
        about = SERVICE.methods_by_name[method]
        return self.send(method, message_class(about.input_type.name)(**fields))

    def infer(self, request: Any, **more: Any) -> Any:
        return self.send("ModelInfer", request, **more)

    def send(self, method: str, request: Any, **more: Any) -> Any:
        response = message_class(SERVICE.methods_by_name[method].output_type.name)
        send = self.channel.unary_unary(
            f"/{SERVICE.full_name}/{method}", lambda message: message.SerializeToString(), response.FromString
        )
        try:
            return send(request, timeout=TIMEOUT_S, metadata=self.metadata, wait_for_ready=True, **more)
        except grpc.RpcError as error:
            return refused(error)

    def predict(self, x: int, sequence: int | str, model: str = "fold", **parameters: Any) -> Any:
        """Send one timestep of an integer model; returns the prediction, or a `CallError`."""
        response = self.infer(infer_request(model, {"x": integer(x)}, sequence_id=sequence, **parameters))
        return response if isinstance(response, CallError) else y_of(response)

    def stream(self, requests: Iterable[Any]) -> Iterator[Any]:
        """Send requests over one call of `ModelStreamInfer`, and yield the responses."""
        send = self.channel.stream_stream(
            f"/{SERVICE.full_name}/ModelStreamInfer",
            ModelInferRequest.SerializeToString,
            ModelStreamInferResponse.FromString,
        )
        call: Iterator[Any] = send(iter(requests), timeout=TIMEOUT_S, metadata=self.metadata, wait_for_ready=True)
        return call


def refused(error: Any) -> CallError:
    return CallError(error.code().name, error.details(), dict(error.trailing_metadata() or ()))


def integer(x: int) -> Array:
    return np.array([[x]], np.int64)


def y_of(response: Any) -> int:
    """Return the prediction of an integer model."""
    assert isinstance(response, ModelInferResponse)
    return int(outputs_of(response)["y"][0, 0])
