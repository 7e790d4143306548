"""The JSON documents of an infer request and of its response."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from stepwell_client.wire.ids import POSITION_LIMIT

ID_LIMIT: Final = 2**64
KEY_LIMIT: Final = 255

Parameters = dict[str, Any]


def _parameters(**properties: dict[str, Any]) -> Meta:
    return Meta(extra_json_schema={"properties": properties})


_FALSE = {"type": "boolean", "default": False}
Shape = Annotated[list[int], Meta(extra_json_schema={"example": [1, 4]})]
Datatype = Annotated[str, Meta(extra_json_schema={"example": "FP32"})]
Values = Meta(
    description="Row-major, flat or nested.", extra_json_schema={"type": "array", "items": {}, "example": [0.1, 0.2]}
)


class InferInput(Struct, gc=False):
    """An input tensor."""

    name: str
    shape: Shape
    datatype: Datatype
    parameters: Annotated[Parameters, _parameters(binary_data_size={"type": "integer"})] | None = None
    data: Annotated[Raw, Values] | UnsetType = UNSET


class RequestedOutput(Struct, gc=False):
    """An output to return."""

    name: str
    parameters: Annotated[Parameters, _parameters(binary_data={"type": "boolean"})] | None = None


class InferBody(Struct, gc=False):
    """The JSON document of an infer request."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: (
        Annotated[
            Parameters,
            _parameters(
                sequence_id={
                    "description": "Id of the sequence, which is the stream with this id. Required for a model with "
                    "state.",
                    "anyOf": [{"type": "integer", "minimum": 0, "exclusiveMaximum": ID_LIMIT}, {"type": "string"}],
                },
                sequence_start={**_FALSE, "description": "Reset the stream before this timestep."},
                sequence_end={**_FALSE, "description": "Delete the stream after this timestep."},
                binary_data_output={**_FALSE, "description": "Return outputs as raw bytes."},
                peek={**_FALSE, "description": "Return what the timestep would return, and apply nothing."},
                step={"type": "integer", "minimum": 1, "description": "Number of this timestep in its sequence."},
                idempotency_key={"type": "string", "minLength": 1, "maxLength": KEY_LIMIT},
                source_id={
                    "type": "string",
                    "minLength": 1,
                    "maxLength": KEY_LIMIT,
                    "description": "The log that this timestep was read from; with `source_at`.",
                },
                source_at={
                    "type": "integer",
                    "minimum": 0,
                    "exclusiveMaximum": POSITION_LIMIT,
                    "description": "Its position in that log. What was applied from there before is not applied again.",
                },
            ),
        ]
        | None
    ) = None
    outputs: list[RequestedOutput] | None = None


class InferOutput(Struct, omit_defaults=True, gc=False):
    """An output tensor; its values follow the document as raw bytes if it has no `data`."""

    name: str
    datatype: Datatype
    shape: Annotated[tuple[int, ...], Meta(extra_json_schema={"example": [1, 4]})]
    parameters: dict[str, int] | UnsetType = UNSET
    data: Annotated[list[Any], Values] | UnsetType = UNSET


class InferResponse(Struct, omit_defaults=True, gc=False):
    """The JSON document of an infer response."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str | UnsetType = UNSET
    parameters: (
        Annotated[
            Parameters, Meta(extra_json_schema={"additionalProperties": {"type": ["string", "number", "boolean"]}})
        ]
        | UnsetType
    ) = UNSET


def may_repeat_keys(document: bytes, body: InferBody) -> bool:
    """Whether a key may occur twice in one object of a JSON document that was decoded: the last one was taken.

    Each key has one colon, so the colons are counted. True is no proof: the document may also have a key that is not
    declared here, an object in a parameter, or an escape.
    """
    colons = 1 + _colons_of(body.parameters)
    if body.id is not None:
        colons += 1 + body.id.count(":")
    for tensor in body.inputs:
        colons += 3 + (tensor.data is not UNSET) + tensor.name.count(":") + _colons_of(tensor.parameters)
    if body.outputs is not None:
        colons += 1 + sum(1 + output.name.count(":") + _colons_of(output.parameters) for output in body.outputs)
    return document.count(b":") != colons or b"\\" in document


def _colons_of(parameters: Parameters | None) -> int:
    if parameters is None:
        return 0
    texts = [*parameters, *(value for value in parameters.values() if type(value) is str)]
    return 1 + len(parameters) + sum(text.count(":") for text in texts)
