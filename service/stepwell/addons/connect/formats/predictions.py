"""`SchemaWriter`: predictions by a published schema, with the id that a registry gives it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np

from stepwell.addons.connect.brokers.interface import MessageWriter
from stepwell.addons.connect.formats.bodies import of_library
from stepwell.addons.connect.formats.registry import SchemaRegistry
from stepwell.addons.connect.messages import OutMessage, Undeliverable
from stepwell.addons.connect.urls import BrokerUrl

AVRO: Final[dict[str, Any]] = {
    "type": "record",
    "name": "Prediction",
    "namespace": "stepwell",
    "fields": [
        {"name": "stream", "type": "string"},
        {"name": "step", "type": "long"},
        {
            "name": "outputs",
            "type": {
                "type": "map",
                "values": {
                    "type": "record",
                    "name": "Tensor",
                    "fields": [
                        {"name": "shape", "type": {"type": "array", "items": "long"}},
                        {"name": "numbers", "type": {"type": "array", "items": "double"}},
                        {"name": "integers", "type": {"type": "array", "items": "long"}},
                    ],
                },
            },
        },
        {"name": "state_id", "type": ["null", "string"], "default": None},
        {
            "name": "source",
            "type": {
                "type": "record",
                "name": "Source",
                "fields": [{"name": "id", "type": "string"}, {"name": "at", "type": ["null", "long"]}],
            },
        },
        {"name": "model", "type": "string"},
        {"name": "version", "type": ["null", "long"], "default": None},
        {"name": "time", "type": ["null", "string"], "default": None},
        {"name": "gap", "type": ["null", "long"], "default": None},
    ],
}
"""The schema of predictions in Avro. Values are flat, in C order: floats in `numbers`, others in `integers`."""

JSON_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Prediction",
    "type": "object",
    "required": ["stream", "step", "outputs", "source", "model"],
    "properties": {
        "stream": {"type": "string"},
        "step": {"type": "integer"},
        "outputs": {"type": "object"},
        "state_id": {"type": ["string", "null"]},
        "source": {
            "type": "object",
            "properties": {"id": {"type": "string"}, "at": {"type": ["integer", "null"]}},
        },
        "model": {"type": "string"},
        "version": {"type": ["integer", "null"]},
        "time": {"type": "string"},
        "gap": {"type": "integer"},
    },
}
"""The schema of predictions in JSON: they are those of the format `json`."""

PROTOBUF: Final = """\
syntax = "proto3";
package stepwell;

message Prediction {
  string stream = 1;
  int64 step = 2;
  map<string, Tensor> outputs = 3;
  optional string state_id = 4;
  Source source = 5;
  string model = 6;
  optional int64 version = 7;
  optional string time = 8;
  optional int64 gap = 9;
}

message Tensor {
  repeated int64 shape = 1;
  repeated double numbers = 2;
  repeated int64 integers = 3;
}

message Source {
  string id = 1;
  optional int64 at = 2;
}
"""
"""The schema of predictions in Protobuf; `_protobuf_class` has the same as a descriptor."""

_ENTRY: Final = "outputs"


class SchemaWriter:
    """Writes to another writer, whose messages get their bytes here."""

    def __init__(
        self, writer: MessageWriter, url: BrokerUrl, body_format: str, registry: SchemaRegistry | None
    ) -> None:
        """Create a writer, which is not open yet.

        Args:
            writer: The broker's own.
            url: Its URL; the subject of a topic is `TOPIC-value`.
            body_format: `avro`, `protobuf` or `json-schema`.
            registry: The registry; None: messages are without the id of a schema.

        Raises:
            MissingExtraError: The library of the format is not installed.
        """
        self._writer = writer
        self._url = url
        self._registry = registry
        self._encode, self._schema = of_library(body_format, _formats()[body_format])
        self._indexes = b"\0" if body_format == "protobuf" else b""

    async def open(self) -> None:
        """Open both."""
        if self._registry is not None:
            await self._registry.open()
        await self._writer.open()

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Write the messages; their schema is registered with the first one of a topic."""
        topics = [self._url.target(one.key) or self._url.place[-1] for one in messages]
        heads: dict[str, bytes] = {}
        if self._registry is not None:
            for topic in dict.fromkeys(topics):
                number = await self._registry.register(f"{topic}-value", self._schema)
                heads[topic] = b"\0" + number.to_bytes(4) + self._indexes
        encode = self._encode
        bodies = [heads.get(topic, b"") + encode(one.document) for topic, one in zip(topics, messages, strict=True)]
        return await self._writer.write([replace(one, body=body) for one, body in zip(messages, bodies, strict=True)])

    async def close(self) -> None:
        """Close both."""
        if self._registry is not None:
            await self._registry.close()
        await self._writer.close()


_Encoder = tuple[Callable[[dict[str, Any]], bytes], str]


def _formats() -> dict[str, Callable[[], _Encoder]]:
    return {"avro": _avro, "protobuf": _protobuf, "json-schema": lambda: (msgspec.json.encode, json.dumps(JSON_SCHEMA))}


def _avro() -> _Encoder:
    import fastavro

    schema = fastavro.parse_schema(AVRO)
    write = fastavro.schemaless_writer

    def encode(document: dict[str, Any]) -> bytes:
        file = io.BytesIO()
        write(file, schema, {**document, _ENTRY: {name: _tensor(one) for name, one in document[_ENTRY].items()}})
        return file.getvalue()

    return encode, json.dumps(AVRO)


def _protobuf() -> _Encoder:
    kind = protobuf_class()

    def encode(document: dict[str, Any]) -> bytes:
        given = {name: value for name, value in document.items() if value is not None and name != _ENTRY}
        source = {name: value for name, value in document["source"].items() if value is not None}
        message = kind(**{**given, "source": source})
        for name, value in document[_ENTRY].items():
            tensor, found = message.outputs[name], _tensor(value)
            tensor.shape.extend(found["shape"])
            tensor.numbers.extend(found["numbers"])
            tensor.integers.extend(found["integers"])
        return bytes(message.SerializeToString(deterministic=True))

    return encode, PROTOBUF


def _tensor(value: Any) -> dict[str, list[Any]]:
    """Return the shape of nested lists, and their values in C order."""
    array = np.array(value)
    flat = array.reshape(-1).tolist()
    is_float = array.dtype.kind == "f"
    integers = [] if is_float else [*map(int, flat)]
    return {"shape": list(array.shape), "numbers": flat if is_float else [], "integers": integers}


@cache
def protobuf_class() -> Any:
    """Return the class of `Prediction` of Protobuf."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="stepwell/prediction.proto", package="stepwell", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    string, number, double, message = field.TYPE_STRING, field.TYPE_INT64, field.TYPE_DOUBLE, field.TYPE_MESSAGE

    def add(kind: Any, name: str, index: int, of: int, *, repeated: bool = False, type_name: str = "") -> Any:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        return kind.field.add(name=name, number=index, type=of, label=label, type_name=type_name or None)

    def add_optional(kind: Any, name: str, index: int, of: int) -> None:
        add(kind, name, index, of).proto3_optional = True
        kind.field[-1].oneof_index = len(kind.oneof_decl)
        kind.oneof_decl.add(name=f"_{name}")

    prediction = file.message_type.add(name="Prediction")
    add(prediction, "stream", 1, string)
    add(prediction, "step", 2, number)
    add(prediction, "outputs", 3, message, repeated=True, type_name=".stepwell.Prediction.OutputsEntry")
    entry = prediction.nested_type.add(name="OutputsEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, string)
    add(entry, "value", 2, message, type_name=".stepwell.Tensor")
    add_optional(prediction, "state_id", 4, string)
    add(prediction, "source", 5, message, type_name=".stepwell.Source")
    add(prediction, "model", 6, string)
    add_optional(prediction, "version", 7, number)
    add_optional(prediction, "time", 8, string)
    add_optional(prediction, "gap", 9, number)
    tensor = file.message_type.add(name="Tensor")
    for index, (name, of) in enumerate((("shape", number), ("numbers", double), ("integers", number)), 1):
        add(tensor, name, index, of, repeated=True)
    source = file.message_type.add(name="Source")
    add(source, "id", 1, string)
    add_optional(source, "at", 2, number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("stepwell.Prediction"))
