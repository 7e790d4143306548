"""Infer requests from the messages of gRPC to the codec of the protocol, and its results to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from stepwell.addons.grpc_api.messages import Message
from stepwell.addons.oip.errors import bad_request, quote
from stepwell.addons.oip.infer_bodies import ID_LIMIT, Parameters
from stepwell.addons.oip.infer_codec import InferCodec, InferRequest, RawTensor
from stepwell.addons.oip.infer_handler import InferResult
from stepwell.addons.oip.tensors import DATATYPES, raw_bytes

FINAL_RESPONSE: Final = "triton_final_response"
"""The response parameter that marks the last response to a request, if the request has the parameter for that."""

_MARK_FINAL: Final = "triton_enable_empty_final_response"
_INT64_LIMIT: Final = 2**63
_KINDS: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    "sequence_id": (("int64_param", "uint64_param", "string_param"), "int64_param or string_param"),
    "sequence_start": (("bool_param",), "bool_param"),
    "sequence_end": (("bool_param",), "bool_param"),
}
_DTYPES: Final = {datatype: np.dtype(dtype) for dtype, datatype in DATATYPES.items()}
_WIDE: Final[Mapping[str, np.dtype[Any]]] = {
    "int_contents": np.dtype(np.int32),
    "uint_contents": np.dtype(np.uint32),
}
"""The fields of `InferTensorContents` that several datatypes share, and the dtype of their values."""


def decode(message: Message, codec: InferCodec) -> InferRequest:
    """Decode a `ModelInferRequest` by the rules of the HTTP routes.

    Raises:
        ServiceError: `bad_request`, `bad_input` or `non_finite`.
    """
    tensors = _tensors(message)
    outputs = [(output.name, _parameters(output)) for output in message.outputs]
    return codec.check(message.id or None, _request_parameters(message), tensors, outputs)


def stream_of(message: Message) -> str | None:
    """Return the stream that a request is of; None: it has none, or one that is rejected later."""
    parameter = message.parameters.get("sequence_id")
    sequence = None if parameter is None else _value(parameter)
    return str(_unsigned(sequence)) if sequence else None


def marks_final_response(message: Message) -> bool:
    """Return whether the last response to a request of a stream is to be marked as such."""
    parameters = message.parameters
    return _MARK_FINAL in parameters and bool(parameters[_MARK_FINAL].bool_param)


def fill(response: Message, model: str, result: InferResult) -> None:
    """Write a result to an empty `ModelInferResponse`; outputs are raw bytes."""
    request = result.request
    response.model_name = model
    response.model_version = str(result.version)
    response.id = request.name or ""
    for declared, _ in request.outputs:
        array = result.outputs[declared.name]
        response.outputs.add(name=declared.name, datatype=declared.datatype, shape=array.shape)
        response.raw_output_contents.append(raw_bytes(array))
    for name, value in (result.parameters or {}).items():
        set_parameter(response, name, value)


def set_parameter(response: Message, name: str, value: bool | int | str) -> None:
    """Set a parameter of a response; integers that do not fit into int64 become uint64."""
    parameter = response.parameters[name]
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, str):
        parameter.string_param = value
    elif value < _INT64_LIMIT:
        parameter.int64_param = value
    else:
        parameter.uint64_param = value


# ---------------------------------------------------------------- parameters


def _request_parameters(message: Message) -> Parameters:
    found = message.parameters
    parameters: Parameters = {}
    for name in found:  # `items` of a map is three times as slow
        parameter = found[name]
        kind = parameter.WhichOneof("parameter_choice")
        if name in _KINDS and kind not in _KINDS[name][0]:
            bad_request(f"invalid value type for '{name}' parameter, expected {_KINDS[name][1]}.")
        parameters[name] = None if kind is None else getattr(parameter, kind)
    if "sequence_id" in parameters:
        parameters["sequence_id"] = _unsigned(parameters["sequence_id"])
    parameters.pop(_MARK_FINAL, None)
    return parameters


def _unsigned(sequence: Any) -> Any:
    """Return a sequence's id: one of 64 bits without sign may be in a field with a sign."""
    return sequence + ID_LIMIT if type(sequence) is int and sequence < 0 else sequence


def _parameters(message: Message) -> Parameters:
    """Return the parameters of a tensor by name."""
    found = message.parameters
    return {name: _value(found[name]) for name in found}


def _value(parameter: Message) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


# ---------------------------------------------------------------- tensors


def _tensors(message: Message) -> list[RawTensor]:
    """Return the inputs with their raw bytes; one in a shared memory, which the codec rejects, has none."""
    raw, n_raw, tensors = message.raw_input_contents, 0, []
    for tensor in message.inputs:
        parameters, data = _parameters(tensor), b""
        if not any(name.startswith("shared_memory_") for name in parameters):
            data = _next_raw(message, tensor, n_raw) if raw else _typed(tensor)
            n_raw += 1
        tensors.append(RawTensor(tensor.name, tensor.datatype, list(tensor.shape), parameters, data))
    if raw and len(raw) != n_raw:
        bad_request(
            f"unexpected number of raw_input_contents for model '{message.model_name}', expecting {n_raw}, got "
            f"{len(raw)}"
        )
    return tensors


def _next_raw(message: Message, tensor: Message, at: int) -> bytes:
    """Return the raw bytes of a tensor."""
    if tensor.HasField("contents"):
        bad_request(
            f"contents field must not be specified when using raw_input_contents for '{tensor.name}' for model "
            f"'{message.model_name}'"
        )
    raw = message.raw_input_contents
    return raw[at] if at < len(raw) else b""


def _typed(tensor: Message) -> bytes:
    """Return the raw bytes of a tensor whose values are in the message.

    A datatype that no model has gives no bytes: the codec rejects it.
    """
    dtype = _DTYPES.get(tensor.datatype)
    if dtype is None:
        return b""
    if tensor.datatype == "FP16":
        bad_request(f"input {quote(tensor.name)} of datatype 'FP16' is accepted in raw_input_contents only")
    field = _field_of(dtype)
    values = np.array(getattr(tensor.contents, field), _WIDE.get(field, dtype))
    array = values.astype(dtype)
    if not np.array_equal(array, values, equal_nan=dtype.kind == "f"):
        bad_request(
            f"input {quote(tensor.name)} has a value that does not fit datatype '{tensor.datatype}'", code="bad_input"
        )
    return raw_bytes(array)


def _field_of(dtype: np.dtype[Any]) -> str:
    """Return the field of `InferTensorContents` that has the values of a dtype."""
    if dtype.kind == "b":
        return "bool_contents"
    if dtype.kind == "f":
        return f"fp{8 * dtype.itemsize}_contents"
    return f"{'u' if dtype.kind == 'u' else ''}int{'64' if dtype.itemsize == 8 else ''}_contents"
