"""What a message means: its stream, its position and its inputs, in every format."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from model_export.manifest import InputSpec
from service.connect.config import FromSection
from service.connect.input_columns import InputColumn, make_columns
from service.connect.mapping import MessageMapper
from service.connect.messages import BadMessageError, BrokerMessage, ConnectUsageError
from service.connect.paths import MISSING, FieldPath
from service.connect.polls import PollLimits, rounds_of

FLOATS = InputSpec(name="x", dtype="float32", shape=[2])
LIMITS = PollLimits(4096, 1 << 23, 8)


def message(body: object = b"{}", at: int | None = 3, **more: Any) -> BrokerMessage:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return BrokerMessage(raw, "log/1", at, "log", **more)


def mapper(spec: InputSpec = FLOATS, paths: list[str | int | float] | None = None, **section: Any) -> MessageMapper:
    columns = {spec.name: InputColumn(spec, paths)}
    return MessageMapper(FromSection(**({"url": "", "stream": "s"} | section)), columns, max_body_bytes=1000)


def inputs_of(one: MessageMapper, received: BrokerMessage, spec: InputSpec = FLOATS) -> list[Any]:
    array, errors = InputColumn(spec, None).stack([one.map(received).values[spec.name]])
    if errors:
        raise errors[0]
    values: list[Any] = array[0].tolist()
    return values


@pytest.mark.parametrize(
    ("section", "received", "stream"),
    [
        ({"stream": "a.b[1]"}, message({"a": {"b": ["x", "p1"]}, "x": [1, 2]}), "p1"),
        ({"stream": "a.b"}, message({"a.b": "p2", "x": [1, 2]}), "p2"),
        ({"stream": "key"}, message({"x": [1, 2]}, key=b"p3"), "p3"),
        ({"stream": "header:pump"}, message({"x": [1, 2]}, headers={"pump": b"p4"}), "p4"),
        ({"stream": "topic"}, message({"x": [1, 2]}, topic="p5"), "p5"),
        ({"stream": "$.key"}, message({"key": "p6", "x": [1, 2]}), "p6"),
        ({"stream": "n"}, message({"n": 7, "x": [1, 2]}), "7"),
    ],
)
def test_the_stream_is_where_it_was_said(section: dict[str, Any], received: BrokerMessage, stream: str) -> None:
    assert mapper(**section).map(received).stream == stream


@pytest.mark.parametrize(
    ("section", "received"),
    [
        ({}, message({"s": "a", "x": [1.5, 2]})),
        ({"format": "msgpack"}, message(msgspec.msgpack.encode({"s": "a", "x": [1.5, 2]}))),
        ({"format": "raw", "stream": "key"}, message(np.array([1.5, 2], "<f4").tobytes(), key=b"a")),
    ],
)
def test_every_format_gives_the_same_input(section: dict[str, Any], received: BrokerMessage) -> None:
    assert inputs_of(mapper(**section), received) == [1.5, 2]


def test_a_line_of_csv_has_its_fields_by_number() -> None:
    one = mapper(paths=["1", "2"], format="csv", stream="0")

    assert inputs_of(one, message(b'"a",1.5,2\r\n')) == [1.5, 2]


def test_fields_of_a_redis_entry_are_numbers_as_text() -> None:
    received = message(b"", fields={b"s": b"a", b"t": b"1.5", b"p": b"2"})

    assert inputs_of(mapper(paths=["t", "p"]), received) == [1.5, 2]


def test_fields_lists_and_constants_are_joined_in_their_order() -> None:
    spec = InputSpec(name="x", dtype="float32", shape=[2, 2])

    assert inputs_of(mapper(spec, ["a", 0.5, "b"]), message({"s": "a", "a": 1, "b": [2, 3]}), spec) == [
        [1, 0.5],
        [2, 3],
    ]


@pytest.mark.parametrize(
    ("dtype", "value", "code"),
    [
        ("float32", "1", "bad_input"),
        ("float32", True, "bad_input"),
        ("float32", None, "bad_input"),
        ("float32", 1e39, "non_finite"),
        ("int64", 1.0, "bad_input"),
        ("int8", 300, "bad_input"),
        ("bool", 1, "bad_input"),
    ],
)
def test_a_value_of_another_type_is_rejected(dtype: str, value: object, code: str) -> None:
    spec = InputSpec.model_validate({"name": "x", "dtype": dtype, "shape": [1]})

    with pytest.raises(BadMessageError) as found:
        inputs_of(mapper(spec), message({"s": "a", "x": [value]}), spec)

    assert found.value.code == code


def test_a_missing_value_is_nan_where_the_model_replaces_it() -> None:
    spec = InputSpec(name="x", dtype="float32", shape=[2], missing="nan")

    assert np.isnan(inputs_of(mapper(spec, ["a", "b"]), message({"s": "a", "b": 2}), spec)).tolist() == [True, False]


def test_a_field_may_be_the_position_and_another_one_the_seq() -> None:
    mapped = mapper(position="n", seq="k").map(message({"s": "a", "x": [1, 2], "n": 9, "k": 4}))

    assert (mapped.source, mapped.at, mapped.seq) == ("log#n", 9, 4)


def test_where_the_broker_has_no_position_the_seq_is_one() -> None:
    mapped = mapper(seq="k").map(message({"s": "a", "x": [1, 2], "k": 4}, at=None))

    assert (mapped.source, mapped.at, mapped.seq) == ("log#k", 4, 4)


@pytest.mark.parametrize("value", [-1, 1.5, "3", None, 2**63])
def test_a_position_is_an_integer(value: object) -> None:
    with pytest.raises(BadMessageError, match="n"):
        mapper(position="n").map(message({"s": "a", "x": [1, 2], "n": value}))


def test_a_path_that_leads_nowhere_is_missing() -> None:
    assert FieldPath("a.b[3]").read({"a": {"b": [1]}}) is MISSING
    with pytest.raises(ConnectUsageError, match="empty part"):
        FieldPath("a..b")


def test_an_unknown_input_is_named() -> None:
    with pytest.raises(ConnectUsageError, match="no input 'y'"):
        make_columns([FLOATS], {"y": ["a"]}, raw=False)


def test_repeated_positions_are_dropped_and_a_gap_in_seq_begins_a_chunk() -> None:
    one = mapper(position="n", seq="k")
    places = [("a", 1, 1), ("b", 1, 1), ("a", 2, 2), ("a", 2, 2), ("a", 5, 9), ("b", 2, 2)]
    mapped = [one.map(message({"s": s, "x": [1, 2], "n": n, "k": k})) for s, n, k in places]

    rounds, n_dropped = rounds_of(mapped, LIMITS)

    shape = [[(chunk.stream, [t.seq for t in chunk.timesteps]) for chunk in each] for each in rounds]
    assert shape == [[("a", [1, 2]), ("b", [1, 2])], [("a", [9])]]
    assert n_dropped == 1
