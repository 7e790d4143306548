"""Messages with a schema: Avro, Protobuf and JSON Schema, from files and from a registry, in and out."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from stepwell.addons.connect.config import FromSection
from stepwell.addons.connect.formats import predictions
from stepwell.addons.connect.formats.bodies import SchemaBodies
from stepwell.addons.connect.formats.registry import SchemaRegistry
from stepwell.addons.connect.mapping.input_columns import InputColumn
from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.poll_mapper import PollMapper
from stepwell.addons.connect.mapping.typed_decoding import typed_decoder
from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BadMessageError,
    BrokerMessage,
    BrokerUnavailableError,
    ConnectUsageError,
    MessageColumns,
)
from stepwell_export.runtime.manifest import InputSpec
from tests.addons.connect.brokers import kafka
from tests.addons.connect.connectors import connector, ended, lines_of, n_lines, run_once, wait_for
from tests.addons.connect.registry import Registry
from tests.addons.connect.skipping import or_skip
from tests.processes import ServiceProcess, free_port
from tests.servers import server

fastavro = pytest.importorskip("fastavro", reason="fastavro is missing: pip install 'stepwell[formats]'")
pytest.importorskip("google.protobuf", reason="protobuf is missing: pip install 'stepwell[formats]'")
pytest.importorskip("jsonschema", reason="jsonschema is missing: pip install 'stepwell[formats]'")

FIELDS = [
    {"name": "pump", "type": "string"},
    {"name": "temp", "type": "double"},
    {"name": "pressure", "type": ["null", "double"], "default": None},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}},
    {"name": "mode", "type": {"type": "enum", "name": "Mode", "symbols": ["ON", "OFF"]}},
]
SENSOR = {"type": "record", "name": "Sensor", "fields": FIELDS}
ROW: dict[str, Any] = {
    "pump": "p1", "temp": 21.5, "pressure": 3.0, "at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "price": Decimal("1.50"), "mode": "ON",
}  # fmt: skip
PLAIN_ROW = {**ROW, "at": "2026-01-01T00:00:00+00:00", "price": "1.50"}


def avro(row: dict[str, Any], schema: Any = SENSOR) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), row)
    return bytes(file.getvalue())


def framed(number: int, body: bytes) -> bytes:
    return b"\0" + number.to_bytes(4) + body


def descriptors() -> bytes:
    """A descriptor set with the messages `plant.Other` and `plant.Sensor`, which has the message `Reading`."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(name="sensor.proto", package="plant", syntax="proto3")
    file.message_type.add(name="Other").field.add(name="x", number=1, type=1, label=1)
    sensor = file.message_type.add(name="Sensor")
    sensor.field.add(name="pump", number=1, type=9, label=1)
    sensor.field.add(name="temp", number=2, type=1, label=1)
    sensor.oneof_decl.add(name="_pressure")
    sensor.field.add(name="pressure", number=3, type=1, label=1, proto3_optional=True, oneof_index=0)
    sensor.field.add(name="values", number=4, type=2, label=3)
    reading = sensor.nested_type.add(name="Reading")
    reading.field.add(name="temp", number=1, type=1, label=1)
    sensor.field.add(name="last", number=5, type=11, label=1, type_name=".plant.Sensor.Reading")
    data: bytes = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()
    return data


def protobuf(name: str = "plant.Sensor", **fields: Any) -> bytes:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorSet.FromString(descriptors()).file[0])
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    data: bytes = kind(**fields).SerializeToString()
    return data


def bodies(tmp_path: Path, body_format: str, schema: object, message: str | None = None) -> SchemaBodies:
    path = tmp_path / "schema"
    path.write_bytes(schema if isinstance(schema, bytes) else json.dumps(schema).encode())
    return SchemaBodies(body_format, schema=path, message=message, registry=None)


def of_registry(registry: Registry, body_format: str, *numbers: int, schema: Path | None = None) -> SchemaBodies:
    """Return decoders of a registry, once these schemas were asked for."""
    client = SchemaRegistry(registry.url, None, body_format, table="[from.registry_login]")
    asyncio.run(fetched(client, *numbers))
    return SchemaBodies(body_format, schema=schema, message=None, registry=client)


async def fetched(client: SchemaRegistry, *numbers: int) -> None:
    await client.open()
    await client.fetch(numbers)
    await client.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as one:
        yield one


def test_avro_by_a_file_is_a_bare_datum(tmp_path: Path) -> None:
    assert bodies(tmp_path, "avro", SENSOR).decode(avro(ROW)) == PLAIN_ROW


def test_the_field_of_an_avro_message_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    inner = {"type": "record", "name": "Inner", "fields": [{"name": "temp", "type": "double"}]}
    fields = [{"name": name, "type": kind} for name, kind in (("pump", "string"), ("first", inner), ("b", "Inner"))]
    schema = {"type": "record", "name": "Outer", "fields": fields}
    body = avro({"pump": "p", "first": {"temp": 1.0}, "b": {"temp": 2.0}}, schema)
    decoder = bodies(tmp_path, "avro", schema)
    for cut, field in ((10, "b.temp"), (5, "first.temp"), (1, "pump")):
        with pytest.raises(BadMessageError, match=f"the field '{field}' does not fit its Avro schema") as found:
            decoder.decode(body[:cut])
        assert "0x" not in found.value.reason


def test_a_uuid_of_avro_is_a_text(tmp_path: Path) -> None:
    fields = [{"name": "id", "type": {"type": "string", "logicalType": "uuid"}}]
    schema = {"type": "record", "name": "One", "fields": fields}
    text = "00000000-0000-0000-0000-00000000002a"
    assert bodies(tmp_path, "avro", schema).decode(avro({"id": UUID(text)}, schema)) == {"id": text}


def test_enums_and_messages_in_lists_and_maps_of_protobuf_are_as_single_ones(tmp_path: Path) -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="m.proto", package="m", syntax="proto3")
    mode = file.enum_type.add(name="Mode")
    mode.value.add(name="OFF", number=0)
    mode.value.add(name="ON", number=1)
    part = file.message_type.add(name="Part")
    part.field.add(name="x", number=1, type=1, label=1)
    one = file.message_type.add(name="One")
    one.field.add(name="modes", number=1, type=14, label=3, type_name=".m.Mode")
    for number, (name, kind, of) in enumerate([("by", 14, ".m.Mode"), ("parts", 11, ".m.Part")], 2):
        entry = one.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=9, label=1)
        entry.field.add(name="value", number=2, type=kind, label=1, type_name=of)
        one.field.add(name=name, number=number, type=11, label=3, type_name=f".m.One.{entry.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("m.One"))(modes=[1, 0, 7], by={"a": 1})
    message.parts["b"].x = 2.0
    schema = descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()

    document = bodies(tmp_path, "protobuf", schema, "m.One").decode(message.SerializeToString())

    assert document == {"modes": ["ON", "OFF", "Mode(7)"], "by": {"a": "ON"}, "parts": {"b": {"x": 2.0}}}


def test_the_schema_of_a_registry_is_that_of_its_id(registry: Registry) -> None:
    registry.add({"type": "string"})
    number = registry.add(SENSOR)

    assert of_registry(registry, "avro", number).decode(framed(number, avro(ROW))) == PLAIN_ROW


def test_the_readers_schema_resolves_those_of_the_writers(registry: Registry, tmp_path: Path) -> None:
    """Both versions become one: a field that is new has its default, an integer is a double."""
    old = {
        "type": "record",
        "name": "S",
        "fields": [{"name": "pump", "type": "string"}, {"name": "temp", "type": "int"}],
    }
    more = {"name": "pressure", "type": "double", "default": 1.0}
    new = {**old, "fields": [old["fields"][0], {"name": "temp", "type": "double"}, more]}
    (tmp_path / "reader.avsc").write_text(json.dumps(new))
    numbers = registry.add(old), registry.add(new)
    one = of_registry(registry, "avro", *numbers, schema=tmp_path / "reader.avsc")

    assert [
        one.decode(framed(numbers[0], avro({"pump": "p", "temp": 2}, old))),
        one.decode(framed(numbers[1], avro({"pump": "p", "temp": 2.5, "pressure": 3.0}, new))),
    ] == [{"pump": "p", "temp": 2.0, "pressure": 1.0}, {"pump": "p", "temp": 2.5, "pressure": 3.0}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([{"name": "pump", "type": "int"}], "the field 'pump' does not fit the reader's Avro schema"),
        ([{"name": "new", "type": "int"}], "the field 'new' does not fit the reader's Avro schema: No default value"),
        (
            [{"name": "in", "type": {"type": "record", "name": "In", "fields": [{"name": "x", "type": "int"}]}}],
            "'in.x'",
        ),
    ],
)
def test_a_field_that_the_readers_schema_does_not_resolve_is_named(
    registry: Registry, tmp_path: Path, fields: list[Any], said: str
) -> None:
    inner = {"type": "record", "name": "In", "fields": [{"name": "x", "type": "double"}]}
    writer = {
        "type": "record",
        "name": "S",
        "fields": [{"name": "pump", "type": "string"}, {"name": "in", "type": inner}],
    }
    number = registry.add(writer)
    (tmp_path / "reader.avsc").write_text(json.dumps({**writer, "fields": fields}))
    one = of_registry(registry, "avro", number, schema=tmp_path / "reader.avsc")

    with pytest.raises(BadMessageError) as error:
        one.decode(framed(number, avro({"pump": "p", "in": {"x": 0.5}}, writer)))

    assert said in error.value.reason


def test_a_schema_that_names_a_missing_one_is_missing(registry: Registry) -> None:
    registry.subjects["mode"] = [99]
    schema = {"type": "record", "name": "S", "fields": [{"name": "mode", "type": "Mode"}]}
    number = registry.add(schema, references=[{"name": "Mode", "subject": "mode", "version": 1}])

    with pytest.raises(BadMessageError, match=f"the registry has no schema with the id {number}"):
        of_registry(registry, "avro", number).decode(framed(number, b""))


def test_a_schema_may_name_others(registry: Registry) -> None:
    mode = {"type": "enum", "name": "Mode", "symbols": ["ON", "OFF"]}
    registry.subjects["mode"] = [registry.add(mode)]
    schema = {"type": "record", "name": "S", "fields": [{"name": "mode", "type": "Mode"}]}
    number = registry.add(schema, references=[{"name": "Mode", "subject": "mode", "version": 1}])
    body = avro({"mode": "OFF"}, {**schema, "fields": [{"name": "mode", "type": mode}]})

    assert of_registry(registry, "avro", number).decode(framed(number, body)) == {"mode": "OFF"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"temp": 1}', "does not begin with 0 and the id of a schema"),
        (framed(77, b""), "the registry has no schema with the id 77"),
        (framed(1, avro(ROW)[:9]), "does not fit its Avro schema"),
        (framed(1, avro(ROW) + b"x"), "1 bytes more than its Avro schema"),
    ],
)
def test_a_message_that_does_not_fit_is_alone(registry: Registry, body: bytes, said: str) -> None:
    one = of_registry(registry, "avro", registry.add(SENSOR), 77)
    with pytest.raises(BadMessageError) as error:
        one.decode(body)

    assert (error.value.code, said in error.value.reason) == ("bad_message", True), error.value.reason


def test_a_schema_that_is_missing_is_asked_for_again_after_30_s(registry: Registry) -> None:
    now = [0.0]
    client = SchemaRegistry(registry.url, None, "avro", table="t", clock=lambda: now[0])
    for now[0] in (0, 10, 29, 31):
        asyncio.run(fetched(client, 1))

    assert registry.asked.count("/schemas/ids/1") == 2


def test_a_registry_that_is_away_is_waited_for(registry: Registry) -> None:
    client = SchemaRegistry(registry.url, None, "avro", table="t")
    registry.is_away = True
    with pytest.raises(BrokerUnavailableError, match="the registry starts"):
        asyncio.run(fetched(client, 1))
    with pytest.raises(BrokerUnavailableError, match="does not respond"):
        asyncio.run(SchemaRegistry(f"http://127.0.0.1:{free_port()}", None, "avro", table="t").open())


def test_a_registry_that_shows_its_types_alone_refuses_the_login(registry: Registry) -> None:
    registry.user, registry.is_open_at_first = ("pumps", "right"), True
    with pytest.raises(AccessRefusedError, match="rejects the login"):
        asyncio.run(fetched(SchemaRegistry(registry.url, None, "avro", table="t"), 1))


def test_protobuf_by_a_file_leaves_out_an_optional_field_alone(tmp_path: Path) -> None:
    one = bodies(tmp_path, "protobuf", descriptors(), "plant.Sensor")

    assert one.decode(protobuf(pump="p1", values=[1, 2], last={"temp": 3})) == {
        "pump": "p1", "temp": 0.0, "values": [1.0, 2.0], "last": {"temp": 3.0},
    }  # fmt: skip
    assert one.decode(protobuf(pressure=0))["pressure"] == 0.0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x0a\x02p1\x11\0\0", "the field 'temp' is no plant.Sensor of Protobuf"),
        (b"\x0a\x01\xff", "the field 'pump' is no plant.Sensor of Protobuf"),
        (b"\x2a\x03\x09\0\0", "the field 'last.temp' is no plant.Sensor of Protobuf"),
        (b"\x12\x01x", "the field 'temp' has another type in the message"),
        (b"\x2a\x02\x08\x01", "the field 'temp' has another type in the message"),
    ],
    ids=["cut", "no text", "cut inside", "another type", "another type inside"],
)
def test_the_field_of_a_protobuf_message_that_does_not_fit_is_named(tmp_path: Path, body: bytes, said: str) -> None:
    with pytest.raises(BadMessageError) as error:
        bodies(tmp_path, "protobuf", descriptors(), "plant.Sensor").decode(body)

    assert (error.value.code, said in error.value.reason) == ("bad_message", True), error.value.reason


@pytest.mark.parametrize(("indexes", "name"), [(b"\x00", "plant.Other"), (b"\x02\x02", "plant.Sensor")])
def test_the_indexes_of_a_message_choose_its_type(registry: Registry, indexes: bytes, name: str) -> None:
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorSet.FromString(descriptors()).file[0].SerializeToString()
    number = registry.add("syntax", "PROTOBUF", serialized=file)
    one = of_registry(registry, "protobuf", number)
    body = protobuf(name, **({"x": 7} if name == "plant.Other" else {"temp": 7}))

    assert one.decode(framed(number, indexes + body)).items() >= {("x" if "Other" in name else "temp", 7.0)}


def test_a_registry_without_descriptors_needs_a_schema(registry: Registry, tmp_path: Path) -> None:
    number = registry.add('syntax = "proto3"; message S { double temp = 1; }', "PROTOBUF")
    with pytest.raises(BadMessageError, match="give schema = FILE"):
        of_registry(registry, "protobuf", number).decode(framed(number, b"\0"))
    client = SchemaRegistry(registry.url, None, "protobuf", table="t")
    asyncio.run(fetched(client, number))
    (tmp_path / "d").write_bytes(descriptors())
    one = SchemaBodies("protobuf", schema=tmp_path / "d", message="plant.Sensor", registry=client)

    assert one.decode(framed(number, b"\x02\x02" + protobuf(temp=2)))["temp"] == 2.0


def test_a_json_schema_names_the_field(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"data": {"properties": {"temp": {"type": "number", "maximum": 100}}}}}
    one = bodies(tmp_path, "json-schema", schema)

    assert one.decode(b'{"data": {"temp": 5}}') == {"data": {"temp": 5}}
    with pytest.raises(BadMessageError, match=r"the field 'data\.temp' does not fit"):
        one.decode(b'{"data": {"temp": 500}}')


@pytest.mark.parametrize(
    ("body_format", "schema", "said"),
    [
        ("avro", {"type": "no such"}, "is no schema of avro"),
        ("protobuf", b"\xff", "it is no descriptor set"),
        ("protobuf", "both", "it has the messages plant.Other, plant.Sensor; name one with message"),
        ("json-schema", {"type": 7}, "is no schema of json-schema"),
    ],
)
def test_what_is_no_schema_is_refused_at_the_start(tmp_path: Path, body_format: str, schema: Any, said: str) -> None:
    with pytest.raises(ConnectUsageError) as error:
        bodies(tmp_path, body_format, descriptors() if schema == "both" else schema)

    assert said in error.value.problem


def mapper(tmp_path: Path, *paths: str) -> MessageMapper:
    columns = {"x": InputColumn(InputSpec(name="x", dtype="float32", shape=[len(paths)]), list(paths))}
    section = FromSection(url="", stream="pump", format="avro")
    return MessageMapper(section, columns, max_body_bytes=1000, bodies=bodies(tmp_path, "avro", SENSOR))


@pytest.mark.parametrize("field", ["at", "price", "mode"])
def test_times_decimals_and_enums_are_no_numbers(tmp_path: Path, field: str) -> None:
    one = mapper(tmp_path, "temp", field)
    messages = MessageColumns.of([BrokerMessage(avro(ROW), "log", 1, "log")])
    poll, letters = PollMapper(one, typed_decoder("avro", one)).map(messages)

    assert (poll.rows, letters[0].document["code"]) == ([], "bad_message")
    assert f"the field '{field}' is" in letters[0].document["reason"]


def test_messages_of_avro_are_decoded_together(tmp_path: Path) -> None:
    """A null where the model takes none is left to the single one, whose dead letter it becomes."""
    one = mapper(tmp_path, "temp", "pressure")
    rows = [ROW, {**ROW, "pressure": None}, {**ROW, "pump": "p2", "temp": 1.0}]
    messages = MessageColumns.of([BrokerMessage(avro(row), "log", n, "log") for n, row in enumerate(rows)])
    poll, letters = PollMapper(one, typed_decoder("avro", one)).map(messages)

    assert (poll.streams, poll.rows, len(letters)) == (["p1", "p2"], [0, 2], 1)
    assert np.array_equal(poll.inputs["x"], np.array([[21.5, 3], [1, 3]], np.float32))


DOCUMENT = {
    "stream": "p1", "step": 17, "outputs": {"y": [[0.5, 1.5]], "n": [2**60]}, "state_id": None,
    "source": {"id": "kafka:sensors/3", "at": 812}, "model": "pump", "version": 2,
}  # fmt: skip


def test_predictions_in_avro_have_the_published_schema() -> None:
    encode, schema = predictions._formats()["avro"]()
    found = fastavro.schemaless_reader(io.BytesIO(encode(DOCUMENT)), json.loads(schema), None)

    assert found["outputs"] == {
        "y": {"shape": [1, 2], "numbers": [0.5, 1.5], "integers": []},
        "n": {"shape": [1], "numbers": [], "integers": [2**60]},
    }
    assert {**found, "outputs": DOCUMENT["outputs"]} == {**DOCUMENT, "time": None, "gap": None}


def test_predictions_in_protobuf_have_the_published_fields() -> None:
    encode, text = predictions._formats()["protobuf"]()
    found = predictions.protobuf_class().FromString(encode({**DOCUMENT, "gap": 3}))

    assert (found.stream, found.step, found.source.at, found.version, found.gap) == ("p1", 17, 812, 2, 3)
    assert (list(found.outputs["y"].shape), list(found.outputs["y"].numbers)) == ([1, 2], [0.5, 1.5])
    assert (list(found.outputs["n"].integers), found.HasField("state_id")) == ([2**60], False)
    declared = {(name.number, name.name) for name in found.DESCRIPTOR.fields}
    assert declared == {(n, name) for n, name in declared if f" {name} = {n};" in text}


def avro_of_two_versions(registry: Registry) -> list[bytes]:
    """Return three messages, of which the last two have a field more, and one that is broken."""
    old = {"type": "record", "name": "S", "fields": [{"name": "pump", "type": "string"}, {"name": "x", "type": "int"}]}
    new = {**old, "fields": [*old["fields"], {"name": "note", "type": "string", "default": ""}]}
    first, second = registry.add(old), registry.add(new)
    return [
        framed(first, avro({"pump": "v", "x": 1}, old)),
        framed(second, avro({"pump": "v", "x": 2, "note": "n"}, new)),
        framed(second, b""),
        framed(second, avro({"pump": "v", "x": 3, "note": "n"}, new)),
    ]


def test_two_versions_of_a_schema_go_through_a_topic_and_a_broken_message_is_alone(
    service: ServiceProcess, registry: Registry, tmp_path: Path
) -> None:
    out, dead, config = tmp_path / "out.jsonl", tmp_path / "dead.jsonl", tmp_path / "c.toml"
    with or_skip(kafka, tmp_path) as broker:
        address = f"127.0.0.1:{broker.port}"
        asyncio.run(created(address))
        asyncio.run(written_to(address, avro_of_two_versions(registry)))
        config.write_text(
            f'[from]\nurl = "kafka://{address}/out"\nformat = "avro"\nstream = "avro-{{pump}}"\n'
            f'registry = "{registry.url}"\n[inputs]\nx = ["x", 0.5]\n'
            f'[service]\nmodel = "total"\n[dead_letter]\nurl = "file://{dead}"\n[to]\nurl = "file://{out}"\n'
        )
        run_once(tmp_path, config, "--url", service.url, code=1)

    assert [one["outputs"]["y"] for one in lines_of(out)] == [[1, 0.5], [3, 1], [6, 1.5]]
    assert [one["code"] for one in lines_of(dead)] == ["bad_message"]


def test_predictions_go_to_kafka_with_the_id_of_their_schema(
    service: ServiceProcess, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"pump": "k", "x": 5}) + "\n")
    with or_skip(kafka, tmp_path) as broker:
        asyncio.run(created(f"127.0.0.1:{broker.port}"))
        config = tmp_path / "c.toml"
        config.write_text(
            f'[from]\nurl = "file://{tmp_path}/in.jsonl"\nstream = "pump"\n[inputs]\nx = ["x", 0.5]\n'
            '[service]\nmodel = "total"\n'
            f'[to]\nurl = "kafka://127.0.0.1:{broker.port}/out"\nformat = "avro"\nregistry = "{registry.url}"\n'
        )
        run_once(tmp_path, config, "--url", service.url)
        [body] = asyncio.run(read(f"127.0.0.1:{broker.port}"))

    [number] = registry.subjects["out-value"]
    assert body[:5] == framed(number, b"")
    schema = json.loads(registry.schemas[number]["schema"])
    found: Any = fastavro.schemaless_reader(io.BytesIO(body[5:]), schema, None)
    assert (found["stream"], found["step"], found["model"]) == ("k", 1, "total")


def test_a_registry_that_rejects_the_login_ends_with_3(
    service: ServiceProcess, registry: Registry, tmp_path: Path
) -> None:
    registry.user = ("pumps", "right")
    config = tmp_path / "c.toml"
    config.write_text(
        f'[from]\nurl = "file://{tmp_path}/in.jsonl"\nformat = "avro"\nstream = "pump"\nregistry = "{registry.url}"\n'
        '[from.registry_login]\nuser = "pumps"\npassword_env = "REGISTRY"\n[inputs]\nx = ["x", 0.5]\n'
        '[service]\nmodel = "total"\n'
    )
    text = ended(tmp_path, config, "--url", service.url, env={"REGISTRY": "correct-horse"}, code=3)

    assert "401" in text
    assert "of user 'pumps'" in text
    assert "correct-horse" not in text


def test_a_login_that_a_registry_rejects_later_is_waited_for_and_read_again(
    service: ServiceProcess, registry: Registry, short_path: Path
) -> None:
    schemas = [
        {"type": "record", "name": name, "fields": [{"name": "pump", "type": "string"}, {"name": "x", "type": "int"}]}
        for name in "AB"
    ]
    numbers = [registry.add(one) for one in schemas]
    registry.user = ("pumps", "old")
    password, out, port = short_path / "p", short_path / "out.jsonl", free_port()
    password.write_text("old")
    config = short_path / "c.toml"
    config.write_text(
        f'[from]\nurl = "redis://127.0.0.1:{port}/0?stream=in"\nformat = "avro"\nstream = "pump"\n'
        f'registry = "{registry.url}"\n[from.registry_login]\nuser = "pumps"\npassword_file = "{password}"\n'
        f'[inputs]\nx = ["x", 0.5]\n[service]\nmodel = "total"\n[to]\nurl = "file://{out}"\n'
    )
    with (
        server(short_path / "r", "--port", str(port)) as broker,
        connector(short_path, config, "--url", service.url) as one,
    ):
        client: Any = broker.client()
        client.xadd("in", {"data": framed(numbers[0], avro({"pump": "rotated", "x": 1}, schemas[0]))})
        wait_for(lambda: n_lines(out) == 1, what=one.text)
        registry.user = ("pumps", "new")
        client.xadd("in", {"data": framed(numbers[1], avro({"pump": "rotated", "x": 1}, schemas[1]))})
        wait_for(lambda: "rejects the login" in one.text(), what=one.text)
        password.write_text("new")
        wait_for(lambda: n_lines(out) == 2, what=one.text)


async def created(address: str) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic("out", 1, 1)])
    await admin.close()


async def written_to(address: str, bodies_: list[bytes]) -> None:
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    for body in bodies_:
        await producer.send_and_wait("out", body)
    await producer.stop()


async def read(address: str) -> list[bytes]:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer("out", bootstrap_servers=address, auto_offset_reset="earliest")
    await consumer.start()
    async with asyncio.timeout(30):
        found = await consumer.getone()
    await consumer.stop()
    return [found.value]


def test_the_docs_have_the_published_schema_of_protobuf() -> None:
    assert predictions.PROTOBUF in (Path(__file__).parents[3] / "docs/connecting.md").read_text()


def test_a_format_with_a_schema_needs_one() -> None:
    with pytest.raises(ConnectUsageError, match="needs a schema"):
        SchemaBodies("avro", schema=None, message=None, registry=None)


def test_the_timestamps_of_avro_order_the_streams_of_a_template(service: ServiceProcess, short_path: Path) -> None:
    (short_path / "s.avsc").write_text(json.dumps(SENSOR))
    port = free_port()
    with server(short_path / "r", "--port", str(port)) as broker:
        client: Any = broker.client()
        for second in (0, 2, 1, 3):
            at = dt.datetime(2026, 1, 1, 0, 0, second, tzinfo=dt.UTC)
            client.xadd("in", {"data": avro({**ROW, "pump": "p 1", "temp": float(second), "at": at})})
        config = short_path / "c.toml"
        config.write_text(
            f'[from]\nurl = "redis://127.0.0.1:{port}/0?stream=in"\nformat = "avro"\nschema = "{short_path}/s.avsc"\n'
            'stream = "avro-{pump}"\ntime = "at"\norder = "5s"\n[inputs]\nx = ["temp", 0.5]\n'
            f'[service]\nmodel = "total"\n[to]\nurl = "file://{short_path}/out.jsonl"\n'
        )
        run_once(short_path, config, "--url", service.url)
    rows = lines_of(short_path / "out.jsonl")

    assert [(row["stream"], row["outputs"]["y"][0], row["time"][-3:]) for row in rows] == [
        ("avro-p@201", 0, "00Z"), ("avro-p@201", 1, "01Z"), ("avro-p@201", 3, "02Z"), ("avro-p@201", 6, "03Z"),
    ]  # fmt: skip
