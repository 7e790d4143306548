"""`SchemaBodies`: the bytes of messages with a schema as documents of plain values."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec

from stepwell.addons.connect.formats.registry import RegisteredSchema, SchemaRegistry
from stepwell.addons.connect.messages import BadMessageError, ConnectUsageError
from stepwell_export.runtime.errors import MissingExtraError

_HEAD: Final = 5
"""Bytes before the message in Confluent's wire format: 0, and the schema's id as a big-endian integer of 4 bytes."""

SCHEMA_FORMATS: Final = ("avro", "protobuf", "json-schema")
_INSTALL: Final = "Install it with `pip install 'stepwell[formats]'`, or in a clone with STEPWELL_EXTRAS=formats."
_OBJECT: Final = re.compile(r"<_io\.BytesIO[^>]*>")  # how fastavro names the message
_SHOWN: Final = 300  # characters of a message of a library
_SIZED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Wire types of Protobuf: with their size in front, and of as many bytes; 0 is a varint."""
_T = TypeVar("_T")
Decode = Callable[[bytes], Any]
"""Returns the document of a message; raises BadMessageError."""


class Format(Protocol):
    """How the schemas of a format are read."""

    def of_file(self, data: bytes) -> Decode:
        """Return the decoder of messages with the schema of a file; raises ValueError if it is none."""

    def of_registry(self, schema: RegisteredSchema) -> Decode:
        """Return the decoder of messages with a schema of the registry; raises ValueError if it is none."""


class SchemaBodies:
    """Decodes messages by the schema of a file, or by those of a registry that they name."""

    def __init__(
        self, body_format: str, *, schema: Path | None, message: str | None, registry: SchemaRegistry | None
    ) -> None:
        """Read the schema's file.

        Args:
            body_format: `avro`, `protobuf` or `json-schema`.
            schema: The file; beside a registry, that of Avro's reader or the messages of Protobuf. None: there is none.
            message: The full name of Protobuf's message; None: the only one of the file.
            registry: The registry; None: messages are without the id of a schema.

        Raises:
            ConnectUsageError: There is no schema, or the file has none.
            MissingExtraError: The library of the format is not installed.
        """
        if schema is None and registry is None:
            raise ConnectUsageError(
                f"The format {body_format} needs a schema.", fix="Give schema = FILE, or registry = URL."
            )
        self.registry = registry
        self._decoders: dict[int, Decode] = {}
        try:
            data = None if schema is None else schema.read_bytes()
            self._format = _format_of(body_format, data if registry is not None else None, message)
            self._of_file = None if data is None or registry is not None else self._format.of_file(data)
        except OSError as exc:
            raise ConnectUsageError(f"The schema {schema} cannot be read: {exc.strerror}.") from exc
        except ValueError as exc:
            raise ConnectUsageError(f"{schema} is no schema of {body_format}: {exc}.") from exc

    def decode(self, body: bytes) -> Any:
        """Return the document of a message.

        Raises:
            BadMessageError: It does not fit the schema, or has none.
        """
        if self._of_file is not None:
            return self._of_file(body)
        number = schema_number(body)
        if number is None:
            raise BadMessageError("bad_message", "the message does not begin with 0 and the id of a schema")
        decode = self._decoders.get(number) or self._decoder_of(number)
        return decode(body[_HEAD:])

    def typed(self, kind: Any) -> Decode:
        """Return a decoder that converts documents to a type of msgspec; it raises ValueError for all others."""
        convert, document_of = msgspec.convert, self._of_file or self.decode

        def decode(body: bytes) -> Any:
            try:
                return convert(document_of(body), kind)
            except BadMessageError as exc:
                raise ValueError(exc.reason) from exc

        return decode

    def _decoder_of(self, number: int) -> Decode:
        assert self.registry is not None
        found = self.registry.get(number)
        if found is None:
            raise BadMessageError("bad_message", f"the registry has no schema with the id {number}")
        try:
            decode = self._format.of_registry(found)
        except ValueError as exc:
            raise BadMessageError("bad_message", f"the schema {number} of the registry cannot be used: {exc}") from exc
        self._decoders[number] = decode
        return decode


def schema_number(body: bytes) -> int | None:
    """Return the id of the schema of a message in Confluent's wire format; None: it has another form."""
    return int.from_bytes(body[1:_HEAD]) if len(body) >= _HEAD and body[0] == 0 else None


def of_library(body_format: str, make: Callable[[], _T]) -> _T:
    """Return what is made with the library of a format.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return make()
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"The format {body_format} needs the package {exc.name}, which is not installed.", fix=_INSTALL
        ) from exc


def _format_of(body_format: str, reader: bytes | None, message: str | None) -> Format:
    kinds: dict[str, Callable[[], Format]] = {
        "avro": lambda: _Avro(reader),
        "protobuf": lambda: _Protobuf(reader, message),
        "json-schema": lambda: _JsonSchema(reader),
    }
    return of_library(body_format, kinds[body_format])


class _Avro:
    """Avro, with the rules of evolution if the reader has a schema of its own."""

    def __init__(self, reader: bytes | None) -> None:
        import fastavro

        self._avro = fastavro
        self._reader = None if reader is None else self._parsed(reader.decode())

    def of_file(self, data: bytes) -> Decode:
        return self._decoder(self._parsed(data.decode()))

    def of_registry(self, schema: RegisteredSchema) -> Decode:
        return self._decoder(self._parsed(schema.text, schema.references))

    def _parsed(self, text: str, references: Mapping[str, str] | None = None) -> Any:
        known: dict[str, Any] = {}
        try:
            for one in (references or {}).values():
                self._avro.parse_schema(json.loads(one), known)
            return self._avro.parse_schema(json.loads(text), known)
        except (self._avro.schema.SchemaParseException, self._avro.schema.UnknownType) as exc:
            raise ValueError(str(exc)) from exc

    def _decoder(self, writer: Any) -> Decode:
        from fastavro._read_common import SchemaResolutionError

        read, reader = self._avro.schemaless_reader, self._reader
        named = writer.get("__named_schemas", {}) if isinstance(writer, dict) else {}
        has_others = "logicalType" in json.dumps([writer, reader], default=str)

        def decode(body: bytes) -> Any:
            file = io.BytesIO(body)
            try:
                document = read(file, writer, reader)
            except SchemaResolutionError as exc:
                field = ".".join(self._unresolved(body, writer, reader, lambda one: one))
                where = f"the field {field!r}" if field else "the message"
                raise BadMessageError(
                    "bad_message", f"{where} does not fit the reader's Avro schema: {str(exc)[:_SHOWN]}"
                ) from exc
            except Exception as exc:
                field = ".".join(self._unreadable(io.BytesIO(body), writer, named))
                where = f"the field {field!r}" if field else "the message"
                found = _OBJECT.sub("the message", str(exc)) or "the message ends in it"
                raise BadMessageError("bad_message", f"{where} does not fit its Avro schema: {found}") from exc
            if file.tell() != len(body):
                raise BadMessageError(
                    "bad_message", f"the message has {len(body) - file.tell()} bytes more than its Avro schema"
                )
            return _plain(document) if has_others else document

        return decode

    def _unresolved(self, body: bytes, writer: Any, schema: Any, whole: Callable[[Any], Any]) -> list[str]:
        """Return the names on the way to the reader's first field that the writer's message does not give.

        Args:
            body: The message.
            writer: Its schema.
            schema: The reader's schema of a part of it.
            whole: Returns the reader's schema of all of it with another one of that part.
        """
        assert self._reader is not None
        named = self._reader["__named_schemas"]
        schema = named.get(schema, schema) if isinstance(schema, str) else schema
        if not isinstance(schema, dict) or schema.get("type") != "record":
            return []
        parsed = {"__fastavro_parsed__": True, "__named_schemas": named}

        for field in schema["fields"]:
            with_type = partial(_with_field, whole, schema, field)
            try:
                self._avro.schemaless_reader(io.BytesIO(body), writer, {**with_type(field["type"]), **parsed})
            except Exception:  # noqa: BLE001 - whatever the library raises, it is about this field
                return [field["name"], *self._unresolved(body, writer, field["type"], with_type)]
        return []

    def _unreadable(self, file: io.BytesIO, schema: Any, named: Any) -> list[str]:
        """Return the names on the way to the first field that cannot be read; none: it is not a field of a record."""
        schema = named.get(schema, schema) if isinstance(schema, str) else schema
        if not isinstance(schema, dict) or schema.get("type") != "record":
            return []
        parsed = {"type": "record", "name": "One", "__fastavro_parsed__": True, "__named_schemas": named}
        for field in schema["fields"]:
            start = file.tell()
            try:
                self._avro.schemaless_reader(file, {**parsed, "fields": [field]}, None)
            except Exception:  # noqa: BLE001 - whatever the library raises, it is about this field
                file.seek(start)
                return [field["name"], *self._unreadable(file, field["type"], named)]
        return []


def _with_field(whole: Callable[[Any], Any], record: Any, field: Any, kind: Any) -> Any:
    """Return all of a schema with one field of a record alone, and with a type of that."""
    return whole({**record, "fields": [{**field, "type": kind}]})


class _JsonSchema:
    """JSON that a JSON Schema validates."""

    def __init__(self, own: bytes | None) -> None:
        import jsonschema

        self._library = jsonschema
        self._own = own

    def of_file(self, data: bytes) -> Decode:
        return self._decoder(json.loads(data), {})

    def of_registry(self, schema: RegisteredSchema) -> Decode:
        return self._decoder(json.loads(self._own or schema.text), {} if self._own else schema.references)

    def _decoder(self, schema: Any, references: Mapping[str, str]) -> Decode:
        from jsonschema.validators import validator_for
        from referencing import Registry, Resource
        from referencing.jsonschema import DRAFT7

        kind = validator_for(schema)
        try:
            kind.check_schema(schema)
        except self._library.SchemaError as exc:
            raise ValueError(exc.message) from exc
        others = [(name, Resource.from_contents(json.loads(one), DRAFT7)) for name, one in references.items()]
        validator = kind(schema, registry=Registry().with_resources(others))
        decode_json = msgspec.json.Decoder().decode

        def decode(body: bytes) -> Any:
            try:
                document = decode_json(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                raise BadMessageError("bad_json", f"the message is not JSON: {exc}") from exc
            error = self._library.exceptions.best_match(validator.iter_errors(document))
            if error is not None:
                path = error.json_path.removeprefix("$").lstrip(".")
                where = f"the field {path!r}" if path else "the message"
                raise BadMessageError("bad_message", f"{where} does not fit its JSON Schema: {error.message[:200]}")
            return document

        return decode


class _Protobuf:
    """Protobuf, by descriptors: those of a file, or of a registry that gives them serialized."""

    def __init__(self, descriptors: bytes | None, message: str | None) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        self._descriptors, self._pools, self._factory = descriptor_pb2, descriptor_pool, message_factory
        self._message = message
        self._own = None if descriptors is None else self._class_of_set(descriptors)

    def of_file(self, data: bytes) -> Decode:
        return self._decoder(self._class_of_set(data))

    def of_registry(self, schema: RegisteredSchema) -> Decode:
        if self._own is not None:
            decode_own = self._decoder(self._own)
            return lambda body: decode_own(body[_message_indexes(body)[1] :])
        pool, by_indexes = self._pools.DescriptorPool(), dict[tuple[int, ...], Decode]()
        try:
            for name, text in schema.references.items():
                self._add(pool, text, name)
            file = self._add(pool, schema.text, "")
        except (ValueError, TypeError) as exc:
            raise ValueError(
                "it gives no serialized descriptor; give schema = FILE, a descriptor set, and message"
            ) from exc

        def decode(body: bytes) -> Any:
            indexes, start = _message_indexes(body)
            if indexes not in by_indexes:
                by_indexes[indexes] = self._decoder(self._class_at(file, indexes))
            return by_indexes[indexes](body[start:])

        return decode

    def _add(self, pool: Any, text: str, name: str) -> Any:
        file = self._descriptors.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
        if name or not file.name:
            file.name = name or "message.proto"
        for needed in file.dependency:  # the types that come with Protobuf
            self._add_well_known(pool, needed)
        pool.Add(file)
        return pool.FindFileByName(file.name)

    def _add_well_known(self, pool: Any, name: str) -> None:
        if not name.startswith("google/protobuf/"):
            return
        import importlib

        module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        one = self._descriptors.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(one)
        pool.Add(one)

    def _class_of_set(self, data: bytes) -> Any:
        pool, names = self._pools.DescriptorPool(), list[str]()
        try:
            files = self._descriptors.FileDescriptorSet.FromString(data).file
        except Exception as exc:
            raise ValueError("it is no descriptor set; make one with protoc --include_imports -o FILE") from exc
        for file in files:
            pool.Add(file)
            names += [f"{file.package}.{one.name}".lstrip(".") for one in file.message_type]
        if self._message is None and len(names) != 1:
            raise ValueError(f"it has the messages {', '.join(names)}; name one with message")
        try:
            return self._factory.GetMessageClass(pool.FindMessageTypeByName(self._message or names[0]))
        except KeyError as exc:
            raise ValueError(f"it has no message {self._message!r}; it has {', '.join(names)}") from exc

    def _class_at(self, file: Any, indexes: tuple[int, ...]) -> Any:
        try:
            found = list(file.message_types_by_name.values())[indexes[0]]
            for index in indexes[1:]:
                found = found.nested_types[index]
        except IndexError as exc:
            raise BadMessageError("bad_message", f"the schema has no message at {list(indexes)}") from exc
        return self._factory.GetMessageClass(found)

    def _decoder(self, kind: Any) -> Decode:
        read, plain = kind.FromString, _plan_of(kind.DESCRIPTOR)

        def decode(body: bytes) -> Any:
            try:
                return plain(read(body))
            except BadMessageError:
                raise
            except Exception as exc:
                field = ".".join(self._unreadable(body, kind.DESCRIPTOR))
                where = f"the field {field!r}" if field else "the message"
                raise BadMessageError(
                    "bad_message", f"{where} is no {kind.DESCRIPTOR.full_name} of Protobuf: {exc}"
                ) from exc

        return decode

    def _unreadable(self, body: bytes, descriptor: Any) -> list[str]:
        """Return the names on the way to the first field whose bytes cannot be read; none: it is not known.

        Source: https://protobuf.dev/programming-guides/encoding/
        """
        read, at = self._factory.GetMessageClass(descriptor).FromString, 0
        while at < len(body):
            tag, start = _varint(body, at)
            field = descriptor.fields_by_number.get(tag >> 3)
            size, start = _varint(body, start) if tag & 7 == _SIZED else (_FIXED.get(tag & 7, 0), start)
            at, begin = start + size if tag & 7 else _varint(body, start)[1], at
            try:
                read(body[begin:at])
            except Exception:  # noqa: BLE001 - whatever the library raises, it is about this field
                if field is None:
                    return [f"number {tag >> 3}"]
                inner = [] if field.message_type is None else self._unreadable(body[start:at], field.message_type)
                return [field.name, *inner]
        return []


def _plan_of(descriptor: Any) -> Callable[[Any], dict[str, Any]]:
    """Return the function that makes a document of a message: an `optional` field that is not set is left out."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    plain, lists, enums, repeated, present = list[str](), list[str](), [], [], []
    numbers = {field.number: field.name for field in descriptor.fields if field.enum_type is None}
    for field in descriptor.fields:
        has_type = field.message_type is not None or field.enum_type is not None
        if field.is_repeated and has_type:
            repeated.append((field.name, field.message_type, field.enum_type))
        elif field.is_repeated:
            lists.append(field.name)
        elif field.has_presence:
            present.append((field.name, field.message_type, field.enum_type))
        elif has_type:
            enums.append((field.name, field.enum_type))
        else:
            plain.append(field.name)
    plans: dict[str, Callable[[Any], Any]] = {}

    def plan(kind: Any) -> Callable[[Any], Any]:
        found = plans.get(kind.full_name)
        if found is None:
            found = plans[kind.full_name] = _time if kind.full_name == "google.protobuf.Timestamp" else _plan_of(kind)
        return found

    def single(value: Any, kind: Any, enum: Any) -> Any:
        return _named(value, enum) if kind is None else plan(kind)(value)

    def document_of(message: Any) -> dict[str, Any]:
        unknown = UnknownFieldSet(message)
        for one in unknown if len(unknown) else ():  # most messages have none, which is found faster so
            if (name := numbers.get(one.field_number)) is not None:
                raise BadMessageError("bad_message", f"the field {name!r} has another type in the message")
        document = {}
        for name in plain:  # a comprehension would be a call of its own until Python 3.12
            document[name] = getattr(message, name)
        for name in lists:
            document[name] = getattr(message, name)[:]
        for name, enum in enums:
            document[name] = _named(getattr(message, name), enum)
        for name, kind, enum in repeated:
            value = getattr(message, name)
            if kind is not None and kind.GetOptions().map_entry:
                of = kind.fields_by_name["value"]
                document[name] = {str(key): single(one, of.message_type, of.enum_type) for key, one in value.items()}
            else:
                document[name] = [single(one, kind, enum) for one in value]
        for name, kind, enum in present:
            if message.HasField(name):
                document[name] = single(getattr(message, name), kind, enum)
        return document

    return document_of


def _named(value: Any, enum: Any) -> Any:
    """Return the name of an enum's value, which is no number; every other value as it is."""
    if enum is None:
        return value
    found = enum.values_by_number.get(value)
    return found.name if found is not None else f"{enum.name}({value})"


def _time(message: Any) -> str:
    return str(message.ToJsonString())


def _plain(value: Any) -> Any:
    """Return a document whose times are texts of ISO 8601, and whose decimals and UUIDs are texts."""
    if type(value) is dict:
        return {name: _plain(one) for name, one in value.items()}
    if type(value) is list:
        return [_plain(one) for one in value]
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):  # no number: msgspec would make a float of it
        return str(value)
    return value


def _message_indexes(body: bytes) -> tuple[tuple[int, ...], int]:
    """Return the indexes of a message's type in its file, and the number of bytes that they have.

    They are zigzag varints, their number first; a single 0 stands for the first message.
    """
    count, at = _zigzag(body, 0)
    if count == 0:
        return (0,), at
    indexes = []
    for _ in range(count):
        index, at = _zigzag(body, at)
        indexes.append(index)
    if min(indexes) < 0:
        raise BadMessageError("bad_message", f"the message has the indexes {indexes}")
    return tuple(indexes), at


def _zigzag(body: bytes, at: int) -> tuple[int, int]:
    value, end = _varint(body, at)
    if end > len(body):
        raise BadMessageError("bad_message", "the message ends in the indexes of its type")
    return (value >> 1) ^ -(value & 1), end


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """Return a varint and where it ends: behind the body if it is cut."""
    value = shift = 0
    while at < len(body) and shift < 70:
        value |= (body[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if body[at - 1] < 0x80:
            return value, at
    return value, len(body) + 1


def check_number(text: str, value: Any) -> None:
    """Check that a field may be an input.

    Raises:
        BadMessageError: It is a decimal, an enum, a time or another text.
    """
    kind = "bytes" if isinstance(value, bytes) else None
    if type(value) is str:
        kind = f"{value[:60]!r}, a text, decimal, enum or time"
    if kind is not None:
        raise BadMessageError("bad_message", f"the field {text!r} is {kind}; expected a number")
