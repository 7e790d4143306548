"""The documents of the Open Inference Protocol's responses, but that of an infer request."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from stepwell.addons.oip.infer_bodies import Datatype, Shape

True_ = Annotated[bool, Meta(extra_json_schema={"const": True})]


class OipError(Struct, forbid_unknown_fields=True):
    """An error of the protocol."""

    error: Annotated[str, Meta(description="What was found and what was expected.")]


class ServerMetadata(Struct):
    """The server's name, its version, and the supported extensions of the protocol."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Struct):
    """The process is alive."""

    live: True_


class ServerReady(Struct):
    """Whether requests can be served."""

    live: True_
    ready: bool


class TensorMetadata(Struct):
    """An input or an output of a model; the first axis of the shape is the batch."""

    name: str
    datatype: Datatype
    shape: Shape


class ModelMetadata(Struct):
    """A model's inputs and outputs, without its states."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Struct):
    """The model is served."""

    name: str
    ready: True_


class ModelConfig(Struct):
    """The parts of a model's configuration that apply to this service, as in Triton."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]


class ModelStats(Struct):
    """The statistics of models, as in Triton."""

    model_stats: list[dict[str, Any]]


class IndexEntry(Struct):
    """A model that is served, in one version."""

    name: str
    version: str
    state: str
    reason: str
