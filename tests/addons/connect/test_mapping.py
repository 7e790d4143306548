"""What a message means: its stream, its position and its inputs, in every format."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from stepwell.addons.connect.chunks import PollLimits, rounds_of
from stepwell.addons.connect.config import BodyFormat, FromSection
from stepwell.addons.connect.mapping.input_columns import InputColumn, make_columns
from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.paths import MISSING, FieldPath
from stepwell.addons.connect.mapping.poll_mapper import MappedPoll, PollMapper
from stepwell.addons.connect.mapping.typed_decoding import typed_decoder
from stepwell.addons.connect.mapping.unseen_fields import UnseenFields
from stepwell.addons.connect.messages import (
    BadMessageError,
    BrokerMessage,
    ConnectUsageError,
    MessageColumns,
    OutMessage,
)
from stepwell.addons.recorded.csv_header import CsvHeader
from stepwell_export.runtime.manifest import InputSpec

FLOATS = InputSpec(name="x", dtype="float32", shape=[2])
LIMITS = PollLimits(4096, 1 << 23, 8)


def message(body: object = b"{}", at: int | None = 3, **more: Any) -> BrokerMessage:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return BrokerMessage(raw, "log/1", at, "log", **more)


def mapper(spec: InputSpec = FLOATS, paths: list[str | int | float] | None = None, **section: Any) -> MessageMapper:
    columns = {spec.name: InputColumn(spec, paths)}
    return MessageMapper(FromSection(**({"url": "", "stream": "s"} | section)), columns, max_body_bytes=1000)


def mapped(
    one: MessageMapper, messages: list[BrokerMessage], body_format: BodyFormat = "json"
) -> tuple[MappedPoll, list[OutMessage]]:
    return PollMapper(one, typed_decoder(body_format, one)).map(MessageColumns.of(messages))


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
        ({"stream": "pump-{n}"}, message({"n": 7, "x": [1, 2]}), "pump-7"),
        ({"stream": "{key}:{a.b}"}, message({"a": {"b": "x y"}, "x": [1, 2]}, key=b"p 8"), "p@208:x@20y"),
        ({"stream": "{header:pump}.{topic}"}, message({"x": [1, 2]}, topic="t", headers={"pump": b"p9"}), "p9.t"),
    ],
)
def test_the_stream_is_where_it_was_said(section: dict[str, Any], received: BrokerMessage, stream: str) -> None:
    assert mapper(**section).map(received).stream == stream


@pytest.mark.parametrize(
    ("one", "received"),
    [
        (mapper(), message({"s": "a", "x": [1.5, 2]})),
        (mapper(format="msgpack"), message(msgspec.msgpack.encode({"s": "a", "x": [1.5, 2]}))),
        (mapper(format="raw", stream="key"), message(np.array([1.5, 2], "<f4").tobytes(), key=b"a")),
        (mapper(paths=["1", "2"], format="csv", stream="0"), message(b'"a",1.5,2\r\n')),
        (mapper(paths=["t", "p"]), message(b"", fields={b"s": b"a", b"t": b"1.5", b"p": b"2"})),
    ],
    ids=["json", "msgpack", "raw", "a line of csv", "a redis entry"],
)
def test_every_format_gives_the_same_input(one: MessageMapper, received: BrokerMessage) -> None:
    assert inputs_of(one, received) == [1.5, 2]


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
    poll, _ = mapped(one, [message({"s": s, "x": [1, 2], "n": n, "k": k}) for s, n, k in places])

    rounds, dropped = rounds_of(poll, LIMITS)

    shape = [[(chunk.stream, [poll.seq[i] for i in chunk.timesteps]) for chunk in each] for each in rounds]
    assert shape == [[("a", [1, 2]), ("b", [1, 2])], [("a", [9])]]
    assert dropped == [3]


MESSAGES = [
    {"s": "a", "data": {"t": 1, "p": 2.5}, "n": 1},
    {"s": 17, "data": {"t": -1.5, "p": 3}, "n": 2, "more": {"t": ["x"]}},
    {"s": "a", "data": {"t": True, "p": 1}, "n": 3},
    {"s": "a", "data": {"t": "1", "p": 1}, "n": 4},
    {"s": "a", "data": {"t": 1e39, "p": 1}, "n": 5},
    {"s": "a", "data": {"t": 10**400, "p": 1}, "n": 6},
    {"s": "a", "data": {"p": 1}, "n": 7},
    {"s": "a/b", "data": {"t": 1, "p": 1}, "n": 8},
    {"s": None, "data": {"t": 1, "p": 1}, "n": 9},
    {"s": "a", "data": {"t": 1, "p": 1}, "n": -1},
    {"s": "a", "data": {"t": 1, "p": 1}, "n": 2**63},
    {"s": "a", "data": {"t": 1, "p": 1}, "n": 1.0},
    {"s": "b", "data": {"t": 1, "p": 1}, "data.t": 9, "n": 13},
    {"s": "b", "data": [1, 2], "n": 14},
    {"s": "b", "data": {"t": [3], "p": 4}, "n": 15},
    [1, 2],
    {"s": "x" * 900, "data": {"t": 1, "p": 1}, "n": 17, "long": "y" * 200},
    {"s": "b", "data": {"t": 4, "p": 0.1}, "n": 18},
]


@pytest.mark.parametrize("body_format", ["json", "msgpack"])
@pytest.mark.parametrize("broken", [0, 1])
def test_messages_that_are_decoded_together_are_mapped_as_single_ones(body_format: BodyFormat, broken: int) -> None:
    """With and without a message that no decoder accepts among them."""
    encode = msgspec.json.encode if body_format == "json" else msgspec.msgpack.encode
    documents = MESSAGES if body_format == "json" else [one for one in MESSAGES if str(10**400) not in str(one)]
    received = [message(encode(one), at=i) for i, one in enumerate(documents)] + [message(b"\xc1")] * broken
    one = mapper(paths=["data.t", "data.p"], format=body_format, position="n")

    together = PollMapper(one, typed_decoder(body_format, one)).map(MessageColumns.of(received))
    singly = PollMapper(one, None).map(MessageColumns.of(received))

    for name in ("rows", "streams", "sources", "at", "seq"):
        assert getattr(together[0], name) == getattr(singly[0], name)
    assert together[0].inputs["x"].tolist() == singly[0].inputs["x"].tolist()
    assert [letter.document for letter in together[1]] == [letter.document for letter in singly[1]]
    assert (together[0].rows[:2], len(singly[1])) == ([0, 1], len(received) - len(together[0].rows))


@pytest.mark.parametrize(
    ("spec", "paths", "values"),
    [
        (InputSpec(name="x", dtype="float32", shape=[1]), None, [1, [2.5], [1, 2], None, "1"]),
        (InputSpec(name="x", dtype="float64", shape=[]), None, [2**53 + 1, 1.5, [1.5], None]),
        (InputSpec(name="x", dtype="int8", shape=[2]), None, [[1, 2], [1, 300], [1, 1.0], [1]]),
        (InputSpec(name="x", dtype="uint64", shape=[1]), None, [[2**64 - 1], [-1], [2**70]]),
        (InputSpec(name="x", dtype="bool", shape=[2]), None, [[True, False], [1, 0]]),
        (InputSpec(name="x", dtype="float32", shape=[2, 2]), None, [[[1, 2], [3, 4]], [[1, 2], [3]], [1, 2, 3, 4]]),
        (InputSpec(name="x", dtype="float32", shape=[2], missing="nan"), None, [[1, None], None, [None, None], [1]]),
        (InputSpec(name="x", dtype="float32", shape=[2]), ["x", 0.5], [1, [1], [1, 2], None]),
        (InputSpec(name="x", dtype="int32", shape=[2]), ["x", 0.5], [1, 2]),
        (InputSpec(name="x", dtype="float32", shape=[2], missing="nan"), ["x", "y"], [1, None, [1]]),
    ],
)
def test_every_dtype_is_decoded_together_as_singly(
    spec: InputSpec, paths: list[str | int | float] | None, values: list[object]
) -> None:
    received = [message({"s": "a", "x": value}, at=i) for i, value in enumerate(values)]
    one = mapper(spec, paths)

    together, letters = mapped(one, received)
    singly, expected = PollMapper(one, None).map(MessageColumns.of(received))

    assert together.rows == singly.rows
    assert [letter.document for letter in letters] == [letter.document for letter in expected]
    if singly.rows:
        np.testing.assert_array_equal(together.inputs["x"], singly.inputs["x"])


def test_streams_by_key_and_topic_are_decoded_together() -> None:
    received = [
        message({"x": [1, 2]}, key=key, topic=topic) for key, topic in ((b"p", "t"), (b"\xff", "u"), (None, ""))
    ]

    by_key, letters = mapped(mapper(stream="key"), received)
    by_topic, _ = mapped(mapper(stream="topic"), received)

    assert (by_key.streams, by_topic.streams) == (["p"], ["t", "u"])
    assert [letter.document["reason"] for letter in letters] == [
        "the stream id is b'\\xff', which is not UTF-8.",
        "the message has no key",
    ]


def test_timesteps_of_several_sources_are_whole_chunks() -> None:
    received = [
        BrokerMessage(msgspec.json.encode({"s": stream, "x": [1, 2]}), f"log/{partition}", at, "log")
        for partition, stream, at in ((0, "a", 1), (0, "b", 2), (1, "c", 1), (0, "a", 3), (1, "c", 2))
    ]

    poll, _ = mapped(mapper(), received)
    rounds, dropped = rounds_of(poll, LIMITS)

    assert [[(chunk.stream, chunk.timesteps) for chunk in each] for each in rounds] == [
        [("a", [0, 3]), ("b", [1]), ("c", [2, 4])]
    ]
    assert dropped == []


def test_a_stream_that_is_in_two_sources_begins_a_chunk_with_each() -> None:
    received = [
        BrokerMessage(msgspec.json.encode({"s": "a", "x": [1, 2]}), f"log/{partition}", at, "log")
        for partition, at in ((0, 1), (0, 2), (1, 5), (1, 5))
    ]

    poll, _ = mapped(mapper(), received)
    rounds, dropped = rounds_of(poll, LIMITS)

    assert [[chunk.timesteps for chunk in each] for each in rounds] == [[[0, 1]], [[2]]]
    assert dropped == [3]


ODD_IDS = ["0042", "42", "4_2", "48e2", "1.10", "1e3", "007", "-7"]
"""Texts that Python's `int` or `float` reads as numbers, and that are valid ids."""

BAD_IDS = ["+42", " 42", "42 ", "\uff14\uff12"]
"""Texts that Python's `int` reads as numbers, and that are no ids."""


def where(text: str) -> dict[str, tuple[MessageMapper, BrokerMessage]]:
    """Return a mapper and a message for each place and format in which a text may be the stream."""
    values = {"s": text, "x": [1, 2]}
    header = CsvHeader(["s", "a", "b"], ",")
    entry = {b"s": text.encode(), b"a": b"1", b"b": b"2"}
    return {
        "json": (mapper(), message(values)),
        "msgpack": (mapper(format="msgpack"), message(msgspec.msgpack.encode(values))),
        "csv line": (mapper(paths=["1", "2"], format="csv", stream="0"), message(f"{text},1,2".encode())),
        "quoted csv": (mapper(paths=["1", "2"], format="csv", stream="0"), message(f'"{text}",1,2'.encode())),
        "csv file": (mapper(paths=["a", "b"], format="csv"), message(f"{text},1,2".encode(), header=header)),
        "redis fields": (mapper(paths=["a", "b"]), message(b"", fields=entry)),
        "redis data": (mapper(), message(b"", fields={b"data": msgspec.json.encode(values)})),
        "key": (mapper(stream="key"), message({"x": [1, 2]}, key=text.encode())),
        "header": (mapper(stream="header:h"), message({"x": [1, 2]}, headers={"h": text.encode()})),
        "topic": (mapper(stream="topic"), message({"x": [1, 2]}, topic=text)),
    }


def test_a_streams_id_is_the_text_as_it_stands_in_every_place() -> None:
    """`0042` and `42` are two machines."""
    formats: dict[str, BodyFormat] = {"msgpack": "msgpack", "csv line": "csv", "quoted csv": "csv", "csv file": "csv"}
    found = [
        (place, mapped(one, [received], formats.get(place, "json"))[0].streams)
        for text in ODD_IDS
        for place, (one, received) in where(text).items()
    ]

    assert found == [(place, [text]) for text in ODD_IDS for place in where(text)]


def test_a_text_that_is_no_id_is_a_dead_letter_in_every_place() -> None:
    """It is not the stream of the text that looks like it."""
    for text in BAD_IDS:
        for one, received in where(text).values():
            with pytest.raises(BadMessageError, match="stream id is") as found:
                one.map(received)

            assert found.value.code == "bad_request"


@pytest.mark.parametrize("body_format", ["json", "msgpack"])
def test_an_integer_is_the_id_of_its_decimal_text_and_other_values_are_none(body_format: BodyFormat) -> None:
    """Also once the integer of equal value was one."""
    encode = msgspec.json.encode if body_format == "json" else msgspec.msgpack.encode
    values: list[object] = [42, 4, 1, 42.0, 4.2, True, None, ["42"]]

    poll, letters = mapped(
        mapper(format=body_format), [message(encode({"s": one, "x": [1, 2]})) for one in values], body_format
    )

    assert poll.streams == ["42", "4", "1"]
    assert [one.document["code"] for one in letters] == ["bad_request"] * 5


@pytest.mark.parametrize("text", ["+1", "1_0", "\uff11", ".5", "0x1", "01"])
def test_a_number_in_a_text_is_what_json_allows(text: str) -> None:
    one = mapper(paths=["1", "2"], format="csv", stream="0")

    with pytest.raises(BadMessageError, match="expected numbers"):
        one.map(message(f"a,{text},2".encode()))


def test_a_position_may_be_a_text_of_digits() -> None:
    one = mapper(paths=["a", "b"], position="n")

    assert one.map(message(b"", fields={b"s": b"p", b"a": b"1", b"b": b"2", b"n": b" 7"})).at == 7


@pytest.mark.parametrize("text", ["", "NA", "nan", "null"])
def test_an_empty_cell_is_a_missing_value(text: str) -> None:
    """As it is for `replay` and `backfill`."""
    spec = InputSpec(name="x", dtype="float32", shape=[2], missing="nan")
    one = mapper(spec, ["1", "2"], format="csv", stream="0")

    assert np.isnan(inputs_of(one, message(f"a,{text},2".encode()), spec)).tolist() == [True, False]


def test_an_empty_cell_is_refused_by_a_model_that_takes_no_missing_values() -> None:
    with pytest.raises(BadMessageError, match="the field '1' is '', a missing value"):
        mapper(paths=["1", "2"], format="csv", stream="0").map(message(b"a,,2"))


def test_cells_are_integers_and_truths_where_the_input_has_them() -> None:
    """As they are for `replay` and `backfill`: `1.0` of a spreadsheet is 1."""
    whole = InputSpec(name="x", dtype="int64", shape=[2])
    truth = InputSpec(name="x", dtype="bool", shape=[2])

    assert inputs_of(mapper(whole, ["1", "2"], format="csv", stream="0"), message(b"a,1.0,2"), whole) == [1, 2]
    assert inputs_of(mapper(truth, ["1", "2"], format="csv", stream="0"), message(b"a,true,0"), truth) == [True, False]


def test_a_line_of_another_length_than_the_first_one_is_a_dead_letter() -> None:
    one = mapper(paths=["a", "b"], format="csv")

    with pytest.raises(BadMessageError, match="the line has 2 cells; expected 3"):
        one.map(message(b"p,1", header=CsvHeader(["s", "a", "b"], ",")))


def test_a_field_that_a_line_does_not_have_is_reported_with_those_that_it_has() -> None:
    one = mapper(paths=["1", "2"], format="csv", stream="machine")

    with pytest.raises(BadMessageError, match="'machine' is missing; the message is a list, whose fields are 0 to 2"):
        one.map(message(b"a,1,2"))


@pytest.mark.parametrize("paths", [["a", "b"], None])
@pytest.mark.parametrize("body_format", ["json", "csv"])
def test_a_message_without_any_field_of_an_input_is_a_dead_letter(
    paths: list[str | int | float] | None, body_format: BodyFormat
) -> None:
    """Also for a model that takes missing values: these may be other messages."""
    spec = InputSpec(name="x", dtype="float32", shape=[2], missing="nan")
    body = b"p1,3" if body_format == "csv" else b'{"s": "p1", "c": 3}'
    header = CsvHeader(["s", "c"], ",") if body_format == "csv" else None

    poll, letters = mapped(mapper(spec, paths, format=body_format), [message(body, header=header)], body_format)

    assert poll.rows == []
    assert [(one.document["code"], one.document["stream"]) for one in letters] == [("bad_input", "p1")]
    assert "is missing; the message has s, c" in letters[0].document["reason"]


def test_a_message_whose_fields_are_null_is_a_timestep_without_values() -> None:
    """A sensor that has nothing to report is no mistake in the mapping."""
    spec = InputSpec(name="x", dtype="float32", shape=[2], missing="nan")

    poll, letters = mapped(mapper(spec, ["a", "b"]), [message({"s": "p1", "a": None, "b": None})])

    assert letters == []
    assert np.isnan(poll.inputs["x"]).all()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"n": 1.5}, "1.5; expected a text or an integer"),
        ({}, "the field 'n' is missing"),
        ({"n": ""}, "'n' of 'pump-{n}' is empty"),
    ],
)
def test_a_template_without_a_value_is_a_dead_letter(document: dict[str, Any], said: str) -> None:
    with pytest.raises(BadMessageError) as error:
        mapper(stream="pump-{n}").map(message({"x": [1, 2], **document}))

    assert said in error.value.reason


def test_a_misspelled_placeholder_is_named_with_the_nearest_field() -> None:
    unseen = UnseenFields(mapper(stream="pump-{machin}"))
    unseen.look_in([message({"machine": 1, "x": [1, 2]})])
    error = unseen.error()

    assert error is not None
    assert "'machin' (nearest: 'machine')" in error.problem
