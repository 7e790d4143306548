"""Request bodies are decoded to arrays or rejected with the reason; responses are encoded to bytes."""

from __future__ import annotations

import json
import math
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stepwell.codec import responses
from stepwell.codec.request_decoder import RequestDecoder
from stepwell.codec.responses import bulk_response_of_parts, encode_step, step_response
from stepwell.codec.step_bodies import DecodedBulk, DecodedStep, FeedMessage, StepBody, correlation_of
from stepwell.codec.strict import parse as strict_parse
from stepwell.codec.typed_decoder import DECODE_ERRORS, TypedInputsDecoder, TypedStepDecoder
from stepwell.errors import ServiceError
from stepwell.types import BatchOutput, BulkParts, BulkPrediction, Prediction
from stepwell_client.wire.formats import JSON, MSGPACK, Format, encode, format_of_answer, format_of_body
from stepwell_client.wire.ids import decode_state_id, encode_state_id
from stepwell_export.runtime.manifest import InputSpec, Manifest
from tests.graphs import manifest_of

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint64", "uint8", "bool")
STATE_ID = bytes(range(16))


def wire(*inputs: tuple[str, str, list[int]], max_chunk_steps: int = 100) -> RequestDecoder:
    """Return the request decoder of a model with these inputs: name, dtype, shape."""
    return RequestDecoder(
        manifest_of(
            name="m",
            inputs=[{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in inputs],
            outputs=[{"name": "y", "dtype": "float32", "shape": [2]}],
        ),
        max_chunk_steps=max_chunk_steps,
    )


ONE = wire(("x", "float32", [4]))
TWO = wire(("a", "int64", [2]), ("b", "bool", []))


def sensors(width: int) -> RequestDecoder:
    """Return the request decoder of a model whose input of so many numbers may have missing values."""
    inputs = [{"name": "x", "dtype": "float32", "shape": [width], "missing": "nan"}]
    outputs = [{"name": "y", "dtype": "float32", "shape": [2]}]
    return RequestDecoder(manifest_of(name="m", inputs=inputs, outputs=outputs), max_chunk_steps=100)


def packed(array: np.ndarray[Any, Any], **changed: Any) -> dict[str, Any]:
    return {"d": array.dtype.name, "s": list(array.shape), "b": array.tobytes()} | changed


def body_of(document: Any, form: Format = JSON) -> bytes:
    return json.dumps(document).encode() if form is JSON else msgspec.msgpack.encode(document)


def code_of(read: Callable[[], Any]) -> str:
    with pytest.raises(ServiceError) as caught:
        read()
    assert "NaN" not in str(caught.value)
    assert "Infinity" not in str(caught.value)
    assert caught.value.applied == "no"
    return caught.value.code


def detail_of(read: Callable[[], Any]) -> str:
    with pytest.raises(ServiceError) as caught:
        read()
    return str(caught.value)


# ------------------------------------------------------------------- accepted bodies


@pytest.mark.parametrize("form", [JSON, MSGPACK])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_becomes_one_row_of_the_declared_dtype(dtype: str, form: Format) -> None:
    read = wire(("x", dtype, [3])).step(
        body_of({"inputs": {"x": [True, False, True] if dtype == "bool" else [1, 0, 3]}}, form), form
    )

    assert read.inputs["x"].dtype == dtype
    assert read.inputs["x"].tolist() == [[True, False, True] if dtype == "bool" else [1, 0, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_tensor_becomes_the_same_bytes(dtype: str) -> None:
    array = np.array([[1, 0], [1, 1], [0, 1]]).astype(dtype)

    read = wire(("x", dtype, [2])).steps(body_of({"inputs": {"x": packed(array)}}, MSGPACK), MSGPACK)

    assert read.length == 3
    assert read.inputs["x"].dtype == array.dtype
    assert read.inputs["x"].tobytes() == array.tobytes()


def test_a_step_without_options_has_the_defaults() -> None:
    read = ONE.step(b'{"inputs": {"x": [1, 2, 3, 4]}}', JSON)

    assert (read.length, read.chunk, read.keep, read.body.options()) == (1, False, "all", {})


def test_a_step_carries_its_options() -> None:
    body = {"inputs": {"x": [1, 2, 3, 4]}, "seq": 2**53 - 1, "after": encode_state_id(STATE_ID), "create": "must"}

    read = ONE.step(body_of(body), JSON)

    assert read.body.options() == {"seq": 2**53 - 1, "after": STATE_ID, "create": "must"}


@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_the_input_of_a_single_input_model_needs_no_name(form: Format) -> None:
    assert ONE.step(body_of({"inputs": [1, 2, 3, 4]}, form), form).inputs["x"].tolist() == [[1, 2, 3, 4]]


def test_the_packed_input_of_a_single_input_model_needs_no_name() -> None:
    body = body_of({"inputs": packed(np.arange(4, dtype=np.float32))}, MSGPACK)

    assert ONE.step(body, MSGPACK).inputs["x"].tolist() == [[0, 1, 2, 3]]


def test_an_input_named_like_a_key_of_a_packed_tensor_is_no_packed_tensor() -> None:
    body = body_of({"inputs": {"b": packed(np.arange(2, dtype=np.float32))}}, MSGPACK)

    assert wire(("b", "float32", [2])).step(body, MSGPACK).inputs["b"].tolist() == [[0, 1]]


def test_a_scalar_row_is_a_bare_number() -> None:
    read = wire(("x", "int32", [])).step(b'{"inputs": {"x": 7}}', JSON)

    assert read.inputs["x"].tolist() == [7]


def test_a_chunk_of_scalars_is_a_list() -> None:
    read = wire(("x", "int32", [])).steps(b'{"inputs": {"x": [7, 8]}}', JSON)

    assert (read.length, read.inputs["x"].tolist()) == (2, [7, 8])


def test_a_chunk_selects_the_returned_predictions() -> None:
    assert ONE.steps(b'{"inputs": [[1, 2, 3, 4]], "return": "none"}', JSON).keep == "none"


def test_an_integer_is_accepted_for_a_float_of_the_same_value() -> None:
    assert ONE.step(b'{"inputs": {"x": [1, -2, 30000000000000000000000, 4e0]}}', JSON).inputs["x"][0, 2] == np.float32(
        3e22
    )


def test_float64_keeps_every_bit_of_a_json_number() -> None:
    read = wire(("x", "float64", [1])).step(b'{"inputs": [0.1234567890123456789]}', JSON)

    assert read.inputs["x"][0, 0] == 0.1234567890123456789


def test_uint64_keeps_its_largest_number() -> None:
    assert wire(("x", "uint64", [1])).step(b'{"inputs": [18446744073709551615]}', JSON).inputs["x"].tolist() == [
        [2**64 - 1]
    ]


def test_finite_values_whose_squares_overflow_are_accepted() -> None:
    assert ONE.step(b'{"inputs": {"x": [3e38, -3e38, 3e38, 3e38]}}', JSON).inputs["x"][0, 0] == np.float32(3e38)


def test_an_input_name_may_have_colons() -> None:
    read = wire(("serving_default_x:0", "float32", [1])).step(
        b'{"inputs": {"serving_default_x:0": [1]}, "seq": 1}', JSON
    )

    assert read.inputs["serving_default_x:0"].tolist() == [[1]]


def test_an_input_name_may_be_escaped() -> None:
    assert ONE.step(b'{"inputs": {"\\u0078": [1, 2, 3, 4]}}', JSON).inputs["x"].tolist() == [[1, 2, 3, 4]]


def test_an_input_name_that_cannot_be_a_decoder_field_is_accepted() -> None:
    read = wire(('a"\\\n', "float32", [1])).step(body_of({"inputs": {'a"\\\n': [1]}}), JSON)

    assert read.inputs['a"\\\n'].tolist() == [[1]]


# ------------------------------------------------------------------- rejected bodies

BAD_JSON: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"x=1&y=2",
    "truncated": b'{"inputs": {"x": [1, 2, 3',
    "trailing": b'{"inputs": {"x": [1, 2, 3, 4]}} {}',
    "single quotes": b"{'inputs': [1, 2, 3, 4]}",
    "byte order mark": b'\xef\xbb\xbf{"inputs": [1, 2, 3, 4]}',
    "UTF-16": '{"inputs": [1, 2, 3, 4]}'.encode("utf-16"),
    "bad UTF-8 in a key": b'{"inputs": [1, 2, 3, 4], "\xff": 1}',
    "bad UTF-8 in a text": b'{"inputs": [1, 2, 3, 4], "create": "\xed\xa0\x80"}',
    "unpaired surrogate": b'{"inputs": [1, 2, 3, 4], "create": "\\ud800"}',
    "unpaired surrogate in a key": b'{"inputs": [1, 2, 3, 4], "\\udfff": 1}',
    "NUL": b"\x00",
    "control character": b'{"inputs": [1, 2, 3, 4], "create": "\x01"}',
    "leading zero": b'{"inputs": [01, 2, 3, 4]}',
    "plus sign": b'{"inputs": [+1, 2, 3, 4]}',
    "hexadecimal": b'{"inputs": [0x1, 2, 3, 4]}',
    "trailing comma": b'{"inputs": [1, 2, 3, 4,]}',
    "comment": b'{"inputs": [1, 2, 3, 4] /* all */}',
    "5,000 digits": b'{"inputs": [1, 2, 3, ' + b"9" * 5000 + b"]}",
    "33 levels": b'{"inputs": ' + b"[" * 32 + b"]" * 32 + b"}",
    "100,000 levels of arrays": b"[" * 100_000,
    "100,000 levels of objects": b'{"a":' * 100_000,
    "100,000 levels inside": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "twice inputs": b'{"inputs": [1, 2, 3, 4], "inputs": [1, 2, 3, 4]}',
    "twice seq": b'{"inputs": [1, 2, 3, 4], "seq": 1, "seq": 1}',
    "twice an input": b'{"inputs": {"x": [1, 2, 3, 4], "x": [1, 2, 3, 4]}}',
    "twice an unknown key": b'{"inputs": [1, 2, 3, 4], "a": 1, "a": 1}',
    "twice, once escaped": b'{"inputs": {"\\u0078": [1, 2, 3, 4], "x": [1, 2, 3, 4]}}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_invalid_json_is_bad_json(name: str) -> None:
    assert code_of(lambda: ONE.step(BAD_JSON[name], JSON)) == "bad_json"


def test_two_keys_with_escaped_colons_are_two_keys() -> None:
    """Counting colons would be wrong: each escape hides one colon, and the second key adds one."""
    body = b'{"inputs": {"x\\u003a0": [1], "x\\u003a0": [2]}}'

    assert code_of(lambda: wire(("x:0", "float32", [1])).step(body, JSON)) == "bad_json"


def test_a_duplicate_among_very_many_keys_is_found_quickly() -> None:
    keys = ",".join(f'"k{i}":0' for i in range(50_000))

    assert code_of(lambda: ONE.step(f'{{{keys},"k49999":0}}'.encode(), JSON)) == "bad_json"


_PACKED_X = {"d": "float32", "s": [4], "b": bytes(16)}


def _map(*pairs: tuple[str, Any]) -> bytes:
    """Encode a msgpack map, in which a key may occur twice; bytes are values that are encoded already."""
    parts = [
        msgspec.msgpack.encode(key) + (value if isinstance(value, bytes) else msgspec.msgpack.encode(value))
        for key, value in pairs
    ]
    return bytes([0x80 | len(pairs)]) + b"".join(parts)


_INPUTS = ("inputs", {"x": _PACKED_X})
_BYTES = ("b", msgspec.msgpack.encode(bytes(16)))
TWICE_IN_MSGPACK: dict[str, tuple[str, bytes]] = {
    "the inputs": ("inputs", _map(_INPUTS, _INPUTS)),
    "seq": ("seq", _map(_INPUTS, ("seq", 1), ("seq", 2))),
    "an input": ("x", _map(("inputs", _map(("x", [1, 2, 3, 4]), ("x", [1, 2, 3, 4]))))),
    "the bytes of an input": ("b", _map(("inputs", _map(("x", _map(("d", "float32"), ("s", [4]), _BYTES, _BYTES)))))),
    "the position of a source": ("at", _map(_INPUTS, ("source", _map(("id", "k"), ("at", 1), ("at", 2))))),
    "a key in a list": ("k", _map(_INPUTS, ("seq", b"\x91" + _map(("k", 1), ("k", 1))))),
    "an unknown key": ("a", _map(_INPUTS, ("a", 1), ("a", 1))),
}


@pytest.mark.parametrize("what", TWICE_IN_MSGPACK)
def test_a_key_that_occurs_twice_in_msgpack_is_refused_as_in_json(what: str) -> None:
    key, body = TWICE_IN_MSGPACK[what]
    with pytest.raises(ServiceError) as refused:
        ONE.step(body, MSGPACK)

    assert refused.value.code == "bad_json"
    assert f'The body has the key "{key}" twice in one object' in refused.value.problem


def test_a_key_that_occurs_twice_in_columns_or_in_an_id_is_refused_in_msgpack() -> None:
    columns = ("inputs", {"x": {"d": "float32", "s": [1, 4], "b": bytes(16)}})
    positions = _map(("d", "int64"), ("s", [1]), ("s", [1]), ("b", msgspec.msgpack.encode(bytes(8))))
    bulk = _map(("streams", ["a"]), columns, ("source", _map(("id", "k"), ("at", positions))))
    message = _map(_INPUTS, ("id", _map(("k", 1), ("k", 2))))

    assert code_of(lambda: ONE.bulk(bulk, MSGPACK, chunk=False)) == "bad_json"
    assert code_of(lambda: ONE.feed(message, MSGPACK, {}, many=False)) == "bad_json"


BAD_REQUEST: dict[str, bytes] = {
    "null": b"null",
    "array": b"[1, 2, 3, 4]",
    "number": b"1",
    "not finite": b"NaN",
    "text": b'"inputs"',
    "no inputs": b'{"seq": 1}',
    "nothing": b"{}",
    "unknown key": b'{"inputs": [1, 2, 3, 4], "sequence": 1}',
    "return on a single step": b'{"inputs": [1, 2, 3, 4], "return": "all"}',
    **{
        f"{key} {value}": f'{{"inputs": [1, 2, 3, 4], "{key}": {value}}}'.encode()
        for key, values in {
            "seq": ("0", "-1", "1.0", "1e0", "1.5", '"1"', "true", "null", str(2**53), "9" * 400, "[1]", "{}", "NaN"),
            "after": ('""', '"abc"', "1", "null", f'"{"A" * 21}"', f'"{"A" * 23}"', f'"{"+" * 22}"', f'"{"A" * 22}=="'),
            "create": ('"Auto"', '"yes"', "true", "null", "1", '["auto"]'),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("name", BAD_REQUEST)
def test_an_invalid_envelope_is_a_bad_request(name: str) -> None:
    assert code_of(lambda: ONE.step(BAD_REQUEST[name], JSON)) == "bad_request"


@pytest.mark.parametrize("value", ['"First"', "null", "true", "1", '""'])
def test_an_invalid_return_is_a_bad_request(value: str) -> None:
    assert (
        code_of(lambda: ONE.steps(f'{{"inputs": [[1, 2, 3, 4]], "return": {value}}}'.encode(), JSON)) == "bad_request"
    )


def test_an_invalid_seq_is_rejected_with_both_values() -> None:
    assert "`seq` is 0; expected an integer from 1 to 9007199254740991" in detail_of(
        lambda: ONE.step(b'{"inputs": [1, 2, 3, 4], "seq": 0}', JSON)
    )


BAD_INPUT: dict[str, Any] = {
    "no name": {},
    "unknown name": {"z": [1, 2, 3, 4]},
    "one name too many": {"x": [1, 2, 3, 4], "z": [1]},
    "too short": {"x": [1, 2, 3]},
    "too long": {"x": [1, 2, 3, 4, 5]},
    "empty": {"x": []},
    "a batch axis": {"x": [[1, 2, 3, 4]]},
    "a number": {"x": 1},
    "null": {"x": None},
    "null inside": {"x": [1, 2, None, 4]},
    "text": {"x": "1234"},
    "text inside": {"x": ["1", 2, 3, 4]},
    "a boolean inside": {"x": [True, 2, 3, 4]},
    "an object": {"x": {"0": 1}},
    "an object inside": {"x": [{}, 2, 3, 4]},
    "a list inside": {"x": [[1], 2, 3, 4]},
    "alone and too short": [1, 2],
    "alone and null": None,
    "alone and text": "abcd",
}


@pytest.mark.parametrize("form", [JSON, MSGPACK])
@pytest.mark.parametrize("name", BAD_INPUT)
def test_an_input_that_does_not_fit_is_bad_input(name: str, form: Format) -> None:
    assert code_of(lambda: ONE.step(body_of({"inputs": BAD_INPUT[name]}, form), form)) == "bad_input"


@pytest.mark.parametrize("value", [1.0, 1.5, True, "1", None, 2**63, -(2**63) - 1, 10**300])
def test_an_integer_input_accepts_only_integers_in_range(value: Any) -> None:
    assert code_of(lambda: wire(("x", "int64", [1])).step(body_of({"inputs": {"x": [value]}}), JSON)) == "bad_input"


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", 256), ("uint8", -1), ("int8", 128), ("uint64", -1), ("uint64", 2**64)]
)
def test_an_integer_beyond_the_dtype_is_bad_input(dtype: str, value: int) -> None:
    assert code_of(lambda: wire(("x", dtype, [1])).step(body_of({"inputs": [value]}), JSON)) == "bad_input"


@pytest.mark.parametrize("value", [1, 0, "true", None, 1.0])
def test_a_boolean_input_accepts_only_booleans(value: Any) -> None:
    assert code_of(lambda: wire(("x", "bool", [1])).step(body_of({"inputs": [value]}), JSON)) == "bad_input"


def test_a_wrong_shape_is_rejected_with_the_name_and_both_shapes() -> None:
    assert "Input 'x' has shape [3]; expected shape [4]" in detail_of(
        lambda: ONE.step(b'{"inputs": {"x": [1, 2, 3]}}', JSON)
    )


def test_a_wrong_type_is_rejected_with_the_name_position_and_both_types() -> None:
    assert "Input 'a' at index [1] is 1.0; expected an integer (int64)" in detail_of(
        lambda: TWO.step(b'{"inputs": {"a": [1, 1.0], "b": true}}', JSON)
    )


def test_wrong_names_are_rejected_with_both_lists() -> None:
    assert '`inputs` has "a"; expected an object with "a", "b"' in detail_of(
        lambda: TWO.step(b'{"inputs": {"a": [1, 1]}}', JSON)
    )


def test_a_ragged_chunk_is_rejected_with_the_position() -> None:
    assert "Input 'x' at index [1] has length 3; expected length 4" in detail_of(
        lambda: ONE.steps(b'{"inputs": [[1, 2, 3, 4], [1, 2, 3]]}', JSON)
    )


NON_FINITE = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "1e39")


@pytest.mark.parametrize("value", NON_FINITE)
def test_a_value_that_is_not_finite_is_rejected_with_name_and_index(value: str) -> None:
    body = f'{{"inputs": {{"x": [1, 2, {value}, 4]}}, "seq": 1}}'.encode()

    assert code_of(lambda: ONE.step(body, JSON)) == "non_finite"
    assert "Input 'x' at index [2] is not a finite number" in detail_of(lambda: ONE.step(body, JSON))


@pytest.mark.parametrize("value", ["[NaN, 1]", "NaN", "[[1, 2], [3, NaN]]", "[[1, 2], NaN]"])
def test_in_json_a_missing_value_is_null_and_never_nan(value: str) -> None:
    chunk, model = value.startswith("[["), sensors(2)
    read = model.steps if chunk else model.step
    columns = f'{{"streams": ["a", "b"], "inputs": {{"x": [{value}, {value.replace("NaN", "null")}]}}}}'.encode()

    detail = detail_of(lambda: read(f'{{"inputs": {{"x": {value}}}}}'.encode(), JSON))

    assert "not finite" in detail or "not a finite number" in detail
    assert [*model.bulk(columns, JSON, chunk=chunk).faults] == [0]


@pytest.mark.parametrize("names", ['"stream": "a"', '"streams": ["a"]'])
@pytest.mark.parametrize("value", ["NaN", '{"n": [-Infinity]}'])
def test_an_id_that_is_no_json_is_refused_and_not_returned(names: str, value: str) -> None:
    correlation: dict[str, Any] = {}
    inputs = "[[1, 2]]" if "streams" in names else "[1, 2]"
    message = f'{{{names}, "id": {value}, "inputs": {{"x": {inputs}}}}}'.encode()

    assert code_of(lambda: wire(("x", "float32", [2])).feed(message, JSON, correlation, many=True)) == "bad_json"
    assert correlation == ({} if "streams" in names else {"stream": "a"})


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_a_non_finite_literal_in_an_integer_input_is_non_finite(value: str) -> None:
    assert code_of(lambda: wire(("x", "int64", [1])).step(f'{{"inputs": [{value}]}}'.encode(), JSON)) == "non_finite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_packed_value_that_is_not_finite_is_rejected_with_its_index(value: float) -> None:
    body = body_of({"inputs": {"x": packed(np.array([[1, 2, 3, 4], [1, value, 3, 4]], np.float32))}}, MSGPACK)

    assert code_of(lambda: ONE.steps(body, MSGPACK)) == "non_finite"
    assert "at index [1, 1]" in detail_of(lambda: ONE.steps(body, MSGPACK))


# ------------------------------------------------------------------- chunks


@pytest.mark.parametrize("inputs", [[], {"x": []}])
def test_an_empty_chunk_is_bad_input(inputs: Any) -> None:
    assert code_of(lambda: ONE.steps(body_of({"inputs": inputs}), JSON)) == "bad_input"


def test_an_empty_packed_chunk_is_bad_input() -> None:
    body = body_of({"inputs": {"x": packed(np.zeros((0, 4), np.float32))}}, MSGPACK)

    assert code_of(lambda: ONE.steps(body, MSGPACK)) == "bad_input"


def test_a_chunk_at_the_limit_is_accepted() -> None:
    assert ONE.steps(body_of({"inputs": [[1, 2, 3, 4]] * 100}), JSON).length == 100


def test_a_chunk_over_the_limit_is_too_large_with_both_numbers() -> None:
    body = body_of({"inputs": [[1, 2, 3, 4]] * 101})

    assert code_of(lambda: ONE.steps(body, JSON)) == "too_large"
    assert "101 timesteps; at most 100" in detail_of(lambda: ONE.steps(body, JSON))


def test_inputs_of_different_lengths_are_bad_input() -> None:
    body = body_of({"inputs": {"a": [[1, 2]] * 3, "b": [True] * 4}})

    assert code_of(lambda: TWO.steps(body, JSON)) == "bad_input"
    assert "'a': 3" in detail_of(lambda: TWO.steps(body, JSON))


# ------------------------------------------------------------------- packed tensors

ROW = np.arange(4, dtype=np.float32)
BAD_PACKED: dict[str, dict[str, Any]] = {
    "another dtype": packed(ROW.astype(np.float64)),
    "a dtype by another name": packed(ROW, d="<f4"),
    "an unknown dtype": packed(ROW, d="object"),
    "a dtype that is no text": packed(ROW, d=7),
    "one byte too few": packed(ROW, b=ROW.tobytes()[:-1]),
    "one byte too many": packed(ROW, b=ROW.tobytes() + b"\0"),
    "text for bytes": packed(ROW, b="abcd"),
    "another shape": packed(ROW.reshape(2, 2)),
    "a negative shape": packed(ROW, s=[-4]),
    "a shape that overflows": packed(ROW, s=[2**62, 2**62]),
    "a huge axis": packed(ROW, s=[2**64 - 1]),
    "very many axes": packed(ROW, s=[1] * 1000),
    "a shape of floats": packed(ROW, s=[4.0]),
    "no shape": {"d": "float32", "b": ROW.tobytes()},
    "one key too many": packed(ROW, o="C"),
}


@pytest.mark.parametrize("name", BAD_PACKED)
def test_a_packed_tensor_that_does_not_fit_is_bad_input(name: str) -> None:
    assert code_of(lambda: ONE.step(body_of({"inputs": {"x": BAD_PACKED[name]}}, MSGPACK), MSGPACK)) == "bad_input"


def test_a_packed_boolean_is_one_byte_of_0_or_1() -> None:
    body = body_of({"inputs": {"d": "bool", "s": [2], "b": b"\x01\x02"}}, MSGPACK)

    assert code_of(lambda: wire(("x", "bool", [2])).step(body, MSGPACK)) == "bad_input"


def test_json_has_no_packed_tensors() -> None:
    assert (
        code_of(lambda: ONE.step(body_of({"inputs": {"x": {"d": "float32", "s": [4], "b": "AAAA"}}}), JSON))
        == "bad_input"
    )


BAD_MSGPACK = {
    "empty": b"",
    "never used": b"\xc1",
    "truncated": msgspec.msgpack.encode({"inputs": [1, 2, 3, 4]})[:-1],
    "trailing": msgspec.msgpack.encode({"inputs": [1, 2, 3, 4]}) + b"\x00",
    "bad UTF-8": b"\x81\xa6input\xff\x90",
    "a promise of 4 billion items": b"\xdd\xff\xff\xff\xff",
    "100,000 levels": b"\x91" * 100_000,
    "33 levels": b"\x81\xa6inputs" + b"\x91" * 31 + b"\x90",
    "a time out of range": b"\xc7\x0c\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", BAD_MSGPACK)
def test_invalid_msgpack_is_bad_json(name: str) -> None:
    assert code_of(lambda: ONE.step(BAD_MSGPACK[name], MSGPACK)) == "bad_json"


# ------------------------------------------------------------------- bulk bodies


def bulk(document: Any, *, chunk: bool = False, form: Format = JSON, of: RequestDecoder = ONE) -> DecodedBulk:
    return of.bulk(body_of(document, form), form, chunk=chunk)


def bulk_document(**more: Any) -> dict[str, Any]:
    return {"streams": ["a", "b"], "inputs": {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}} | more


def test_a_bulk_step_has_a_row_per_stream_and_a_time_axis_of_one() -> None:
    assert bulk(bulk_document()).inputs["x"].tolist() == [[[1, 2, 3, 4]], [[5, 6, 7, 8]]]


def test_bulk_chunks_have_stream_and_time_axes() -> None:
    read = bulk({"streams": ["a:1", "b"], "inputs": [[[1, 2, 3, 4]] * 3] * 2, "return": "last"}, chunk=True)

    assert (read.inputs["x"].shape, read.length, read.keep) == ((2, 3, 4), 3, "last")


def test_bulk_seq_and_after_may_have_nulls() -> None:
    read = bulk(bulk_document(seq=[None, 7], after=[encode_state_id(STATE_ID), None]))

    assert (read.body.seq, read.body.after) == ([None, 7], [encode_state_id(STATE_ID), None])


@pytest.mark.parametrize(
    "document",
    [
        bulk_document(streams=["a", "a"]),
        bulk_document(streams=["a"]),
        bulk_document(streams=["a", "b", "c"]),
        bulk_document(streams=[], inputs={"x": []}),
        bulk_document(seq=[1]),
        bulk_document(after=[None, None, None]),
        bulk_document(inputs={"x": [[1, 2, 3, 4]]}),
        bulk_document(inputs={"x": [[1, 2], [1, 2]]}),
        bulk_document(inputs={"x": 1}),
        bulk_document(inputs={"z": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
    ],
    ids=lambda document: json.dumps(document)[:40],
)
def test_a_bulk_body_of_inconsistent_lengths_is_bad_input(document: Any) -> None:
    assert code_of(lambda: bulk(document)) == "bad_input"


@pytest.mark.parametrize(
    "document",
    [
        bulk_document(streams="ab"),
        bulk_document(streams=["a", 1]),
        bulk_document(seq=3),
        bulk_document(seq=[1, "2"]),
        bulk_document(seq=[0, 1]),
        bulk_document(after=["x", None]),
        bulk_document(create=["auto", "auto"]),
        bulk_document(more=1),
        {"inputs": {"x": []}},
        {"streams": ["a"]},
    ],
    ids=lambda document: json.dumps(document)[:40],
)
def test_an_invalid_bulk_envelope_is_a_bad_request(document: Any) -> None:
    assert code_of(lambda: bulk(document)) == "bad_request"


def test_more_streams_than_the_queue_holds_are_too_large() -> None:
    few = RequestDecoder(ONE.manifest, max_streams=1)

    assert code_of(lambda: bulk(bulk_document(), of=few)) == "too_large"


def test_an_empty_bulk_seq_is_a_wrong_length() -> None:
    assert code_of(lambda: bulk(bulk_document(seq=[]))) == "bad_input"


@pytest.mark.parametrize(
    ("row", "code"),
    [([1, 2], "bad_input"), ([1, 2, 3, "4"], "bad_input"), (None, "bad_input"), ([1, 2, 3, math.nan], "non_finite")],
)
@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_a_bulk_row_that_does_not_fit_fails_alone(row: Any, code: str, form: Format) -> None:
    read = bulk(bulk_document(inputs={"x": [row, [5, 6, 7, 8]]}), form=form)

    assert {i: fault.code for i, fault in read.faults.items()} == {0: code}
    assert read.inputs["x"][1].tolist() == [[5, 6, 7, 8]]


_ROWS: dict[str, list[Any]] = {
    "float32": [
        [0.1, 2],
        [1e39, 0],
        [2**70, -0.0],
        [10**400, 0],
        [True, 0],
        ["1", 0],
        [1, 2, 3],
        None,
        {"d": 1},
        [math.nan, 1],
    ],
    "int8": [[1, 2], [128, 0], [1.0, 0], [True, 0], [None, 0], [2**70, 0]],
    "bool": [[True, False], [1, 0], [None, True], []],
}


@pytest.mark.parametrize("chunk", [False, True])
@pytest.mark.parametrize("dtype", _ROWS)
def test_a_row_among_many_is_decoded_as_it_is_alone(dtype: str, chunk: bool) -> None:
    rng, of, kinds = random.Random(3), _WIRES[dtype], [_ROWS[dtype][0]] * 60 + _ROWS[dtype]
    rows = [[one, _ROWS[dtype][0]] if chunk else one for one in rng.choices(kinds, k=300)]
    alone = [
        bulk({"streams": ["a", "b"], "inputs": {"x": [row, rows[0]]}}, chunk=chunk, of=of) for row in (rows[0], *rows)
    ][1:]
    streams = [f"s{i}" for i in range(len(rows))]

    read = bulk({"streams": streams, "inputs": {"x": rows}}, chunk=chunk, of=of)

    assert read.faults
    assert {i: one.problem for i, one in read.faults.items()} == {
        i: one.faults[0].problem.replace("of stream 0", f"of stream {i}") for i, one in enumerate(alone) if one.faults
    }
    for i, one in enumerate(alone):
        assert read.inputs["x"][i].tobytes() == one.inputs["x"][0].tobytes()


@pytest.mark.parametrize(("is_packed", "form"), [(False, JSON), (False, MSGPACK), (True, MSGPACK)])
def test_missing_values_are_decoded_as_fast_as_others(is_packed: bool, form: Format) -> None:
    """On the event loop, a body of this length is not decoded row by row."""
    array = np.arange(1200, dtype=np.float32).reshape(300, 4)
    array[7, 1], array[8, 2] = np.nan, np.frombuffer(b"\1\0\xc0\xff", np.float32)[0]  # another NaN
    rows = [[None if math.isnan(x) and form is JSON else x for x in row] for row in array.tolist()]
    body = body_of(
        {"streams": [f"s{i}" for i in range(300)], "inputs": {"x": packed(array) if is_packed else rows}}, form
    )

    read = sensors(4).on_loop.bulk(body, form, chunk=False).inputs["x"]
    array[8, 2] = np.nan

    assert read.tobytes() == array.tobytes()
    assert read[7, 0, 1].tobytes() == read[8, 0, 2].tobytes() == np.float32(np.nan).tobytes()


def test_a_packed_bulk_row_that_is_not_finite_fails_alone() -> None:
    array = np.array([[1, 2, 3, 4], [1, 2, math.inf, 4]], np.float32)

    read = bulk(bulk_document(inputs={"x": packed(array)}), form=MSGPACK)

    assert {i: fault.code for i, fault in read.faults.items()} == {1: "non_finite"}


def test_a_bulk_row_of_another_length_fails_alone() -> None:
    rows = [[[1, 2, 3, 4]] * n for n in (2, 1, 2)]

    read = bulk({"streams": ["a", "b", "c"], "inputs": {"x": rows}}, chunk=True)

    assert (read.length, list(read.faults)) == (2, [1])


def test_an_invalid_stream_id_of_a_bulk_body_fails_alone() -> None:
    assert {i: f.code for i, f in bulk(bulk_document(streams=["a", "b/c"])).faults.items()} == {1: "bad_request"}


# ------------------------------------------------------------------- feeds


def feed(message: bytes, *, many: bool, of: RequestDecoder = ONE) -> DecodedStep | DecodedBulk:
    return of.feed(message, JSON, {}, many=many)


def stream_in(message: bytes) -> str:
    stream: str = getattr(feed(message, many=True).body, "stream")  # noqa: B009 - only a message for a stream has one
    return stream


@pytest.mark.parametrize("name", [7, "x:y", None, [1, {"a": 2}], 1.5, "ü", 'q"\\'])
@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_a_reply_has_the_id_of_its_message_unchanged(name: Any, form: Format) -> None:
    correlation: dict[str, Any] = {}
    ONE.feed(body_of({"inputs": [1, 2, 3, 4], "id": name}, form), form, correlation, many=False)

    module = msgspec.json if form is JSON else msgspec.msgpack
    assert module.decode(encode(correlation, form)) == {"id": name}


@pytest.mark.parametrize("form", [JSON, MSGPACK])
@pytest.mark.parametrize("more", [{"seq": 0}, {"odd": 1}, {"inputs": [1]}])
def test_the_reply_to_a_rejected_message_has_its_stream_and_its_id(more: Any, form: Format) -> None:
    correlation: dict[str, Any] = {}
    message = body_of({"stream": "a", "id": 7, "inputs": [1, 2, 3, 4], **more}, form)

    code_of(lambda: ONE.feed(message, form, correlation, many=True))

    assert encode(correlation, form) == encode({"stream": "a", "id": 7}, form)


def test_a_message_names_its_stream() -> None:
    assert stream_in(b'{"stream": "a:b", "inputs": [1, 2, 3, 4], "seq": 1}') == "a:b"


def test_a_message_with_a_list_of_streams_is_a_bulk_body() -> None:
    assert isinstance(feed(body_of(bulk_document(id=1)), many=True), DecodedBulk)


def test_a_message_with_chunk_has_a_time_axis() -> None:
    body = feed(b'{"inputs": [[1, 2, 3, 4], [1, 2, 3, 4]], "chunk": true, "return": "none"}', many=False)

    assert isinstance(body, DecodedStep)
    assert (body.length, body.chunk, body.keep) == (2, True, "none")


def test_a_stream_named_streams_is_no_bulk_body() -> None:
    assert stream_in(b'{"stream": "streams", "inputs": [1, 2, 3, 4]}') == "streams"


@pytest.mark.parametrize(
    ("many", "document"),
    [
        (True, {"inputs": [1, 2, 3, 4]}),
        (True, {"stream": "a", "streams": ["a"], "inputs": [[1, 2, 3, 4]]}),
        (True, {"stream": 1, "inputs": [1, 2, 3, 4]}),
        (False, {"stream": "a", "inputs": [1, 2, 3, 4]}),
        (False, bulk_document()),
        (False, {"inputs": [1, 2, 3, 4], "return": "all"}),
        (False, {"inputs": [1, 2, 3, 4], "chunk": 1}),
        (False, {"inputs": [1, 2, 3, 4], "seq": [1]}),
        (True, bulk_document(seq=1)),
    ],
    ids=lambda part: json.dumps(part)[:40],
)
def test_an_invalid_message_is_a_bad_request(many: bool, document: Any) -> None:
    assert code_of(lambda: feed(body_of(document), many=many)) == "bad_request"


# ------------------------------------------------------------------- ways of decoding agree


@contextmanager
def caught_exceptions() -> Iterator[list[str]]:
    """Names of the exceptions that any function meets meanwhile, caught or not."""
    met: list[str] = []

    def trace(_frame: FrameType, event: str, arg: Any) -> Any:
        if event == "exception":
            met.append(arg[0].__name__)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield met
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("body_type", [StepBody, FeedMessage])
@pytest.mark.parametrize(("shape", "value"), [([4], [1.0, 2.0, 3.0, 4.0]), ([], 1.0)])
def test_clients_that_write_inputs_in_different_ways_do_not_slow_each_other_down(
    body_type: type[StepBody], shape: list[int], value: Any
) -> None:
    """A model's decoders are shared by all who step it: each body is decoded at the first try."""
    one = TypedStepDecoder([InputSpec(name="x", dtype="float32", shape=shape)], body_type)
    with caught_exceptions() as met:
        for document in [{"inputs": {"x": value}, "seq": 1}, {"inputs": value, "seq": 1}] * 2:
            for more in ({}, {"after": encode_state_id(STATE_ID)}):
                one.read(body_of({**more, **document}))
                one.read(body_of({**document, **more}))

    assert met == []


@contextmanager
def parsings() -> Iterator[list[int]]:
    """The number of bodies that are parsed to plain values meanwhile, as for the words of an error."""
    found = [0]

    def profile(frame: FrameType, event: str, _arg: Any) -> None:
        found[0] += event == "call" and frame.f_code is strict_parse.parse.__code__

    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("form", [JSON, MSGPACK])
@pytest.mark.parametrize("is_named", [True, False])
def test_no_usual_body_is_parsed_to_plain_values(form: Format, is_named: bool) -> None:
    def body(shape: list[int], **more: Any) -> bytes:
        values = np.ones(shape, np.float32)
        value = packed(values) if form is MSGPACK and is_named else values.tolist()
        return body_of({"inputs": {"x": value} if is_named else value, **more}, form)

    one = {"seq": 1, "after": encode_state_id(STATE_ID), "create": "never"}
    many = {"streams": ["a", "b"], "seq": [1, None], "after": [None, encode_state_id(STATE_ID)], "create": "auto"}
    with parsings() as found:
        ONE.step(body([4], **one), form)
        ONE.step(body([4], source={"id": "a:b", "at": 7}), form)
        ONE.steps(body([2, 4], source={"id": "a:b", "at": [7, 9]}), form)
        ONE.bulk(body([2, 4], streams=["a", "b"], source={"id": "a:b", "at": [7, 9]}), form, chunk=False)
        ONE.feed(body([4], source={"id": "a:b", "at": 7}), form, {}, many=False)
        ONE.steps(body([2, 4], **one, **{"return": "last"}), form)
        ONE.peek(body([2, 4], chunk=True), form)
        ONE.bulk(body([2, 4], **many), form, chunk=False)
        ONE.bulk(body([2, 3, 4], **many, **{"return": "none"}), form, chunk=True)
        ONE.feed(body([4], **one, id={"n": ":"}), form, {}, many=False)
        ONE.feed(body([4], **one, stream="a:b", chunk=False), form, {}, many=True)
        ONE.feed(body([2, 4], **many, id="a:b"), form, {}, many=True)

    assert found == [0]


@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_no_valid_body_is_parsed_to_plain_values(form: Format) -> None:
    """Also those that few clients send: only the words of an error need it."""
    two = RequestDecoder(
        manifest_of(
            name="m",
            inputs=[{"name": name, "dtype": "float32", "shape": [2], "missing": "nan"} for name in "ab"],
            outputs=[{"name": "y", "dtype": "float32", "shape": [2]}],
        )
    )
    position, columns = {"id": "a", "at": [7]}, {"streams": ["s", "t"]}
    with parsings() as found:
        ONE.step(body_of({"inputs": [1, 2, 3, 4], "source": position}, form), form)
        two.step(body_of({"inputs": {"a": [None, 1]}}, form), form)
        two.step(body_of({"inputs": {"a": None, "b": [1, 2]}}, form), form)
        two.step(body_of({"inputs": {}}, form), form)
        two.steps(body_of({"inputs": {"b": [[1, None], None, [3, 4]]}}, form), form)
        two.bulk(body_of({**columns, "inputs": {"a": [[1, 2], None]}}, form), form, chunk=False)
        two.bulk(body_of({**columns, "inputs": {"a": [[[1, 2]], None], "b": None}}, form), form, chunk=True)
        two.feed(body_of({"stream": "streams", "inputs": {}, "chunk": False}, form), form, {}, many=True)
        wire(('a"', "float32", [1])).step(body_of({"inputs": {'a"': [1]}}, MSGPACK), MSGPACK)

    assert found == [0]


@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_the_reply_to_wrong_positions_has_the_stream_and_the_id_of_its_message(form: Format) -> None:
    correlation: dict[str, Any] = {}
    message = body_of({"stream": "a", "id": 7, "inputs": [1] * 4, "source": {"id": "k", "at": [1, 2]}}, form)

    assert code_of(lambda: ONE.feed(message, form, correlation, many=True)) == "bad_request"
    assert encode(correlation, form) == encode({"stream": "a", "id": 7}, form)


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("text_of", [json.dumps, lambda document: encode(document, JSON).decode()])
def test_no_usual_message_with_an_object_as_id_is_decoded_twice(is_named: bool, text_of: Any) -> None:
    inputs = {"x": [1, 2, 3, 4]} if is_named else [1, 2, 3, 4]
    assert ONE.read_stream_message is not None
    for document in (
        {"stream": "a", "inputs": inputs, "id": {"n": 1}},
        {"id": {"n": 1}, "inputs": inputs, "stream": "a"},
    ):
        _, decoded, is_plain = ONE.read_stream_message(text_of(document).encode())

        assert (decoded, is_plain) == ((np.array([1, 2, 3, 4], np.float32).tobytes(),), True)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.integers(),
    st.floats(),
    st.sampled_from(["1", "", "a:b"]),
)
_VALUES = st.one_of(
    st.lists(st.floats(width=32), min_size=2, max_size=2),
    st.lists(st.integers(-200, 300), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=2, max_size=2),
    st.lists(st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=2, max_size=2), max_size=3),
    st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=2, max_size=2),
    st.recursive(
        _LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyb"), inner),
        max_leaves=8,
    ),
)
_POSITIONS = st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3), _LEAVES)
_SOURCES = st.one_of(
    st.fixed_dictionaries({"id": st.sampled_from(["a", "a:b", "", "ü", 5])}, optional={"at": _POSITIONS}), _LEAVES
)
UNWORDED = "cannot be read"
"""In the error of a body that is refused, although no fault is found; there is none."""

_DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.one_of(st.fixed_dictionaries({"x": _VALUES}), _VALUES)},
    optional={
        "seq": st.one_of(st.integers(1, 5), _LEAVES),
        "after": st.one_of(st.just(encode_state_id(STATE_ID)), _LEAVES),
        "create": st.sampled_from(["auto", "never", "must", "x", 1]),
        "source": _SOURCES,
        "odd": st.just(1),
    },
)
_WIRES = {dtype: wire(("x", dtype, [2])) for dtype in DTYPES} | {"with missing values": sensors(2)}


def outcome(read: Callable[[], DecodedStep]) -> Any:
    """Return the result of decoding in comparable form: the body, or the error."""
    try:
        step = read()
    except ServiceError as exc:
        return exc.code, exc.problem
    arrays = {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in step.inputs.items()}
    return arrays, step.length, step.keep, step.body.options()


def in_msgpack(document: Any, dtype: str) -> bytes | None:
    """Return a document in msgpack; None: it has an integer that msgpack does not have, or a missing value as NaN."""
    if dtype == "with missing values" and "NaN" in json.dumps(document):
        return None
    try:
        return body_of(document, MSGPACK)
    except OverflowError:
        return None


@settings(max_examples=400, deadline=None)
@given(_DOCUMENTS, st.sampled_from(list(_WIRES)), st.booleans())
def test_a_body_is_the_same_in_both_formats(document: Any, dtype: str, chunk: bool) -> None:
    """In JSON all inputs are decoded at once, in msgpack one by one; there, literals such as NaN are numbers."""
    if (packed_body := in_msgpack(document, dtype)) is None:
        return
    of = _WIRES[dtype]
    read = of.steps if chunk else of.step

    found = outcome(lambda: read(json.dumps(document).encode(), JSON))

    assert found == outcome(lambda: read(packed_body, MSGPACK))
    assert UNWORDED not in str(found)


@settings(max_examples=300, deadline=None)
@given(st.lists(_VALUES, min_size=1, max_size=3), st.sampled_from(list(_WIRES)), st.booleans())
def test_columns_are_the_same_in_both_formats(rows: list[Any], dtype: str, chunk: bool) -> None:
    document, of = {"streams": [f"s{i}" for i in range(len(rows))], "inputs": {"x": rows}}, _WIRES[dtype]
    found = list[Any]()
    for form, body in ((JSON, json.dumps(document).encode()), (MSGPACK, in_msgpack(document, dtype))):
        if body is None:
            return
        try:
            read = of.bulk(body, form, chunk=chunk)
        except ServiceError as error:
            found.append((error.code, error.problem))
        else:
            valid = [i for i in range(len(rows)) if i not in read.faults]
            values = {name: (array.shape, array[valid].tobytes()) for name, array in read.inputs.items()}
            found.append((values, {i: fault.problem for i, fault in read.faults.items()}))

    assert found[0] == found[1]
    assert UNWORDED not in str(found)


_MORE = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.sampled_from(["a", "a:b", "", 5, None]),
        "id": st.sampled_from([1, "x", "x:y", {"a": [1, ":"]}, None]),
        "chunk": st.booleans(),
        "return": st.just("all"),
    },
)


@settings(max_examples=400, deadline=None)
@given(
    _DOCUMENTS,
    _MORE,
    st.sampled_from(list(_WIRES)),
    st.sampled_from(["", '"seq":1,', '"stream":"z",', '"id":":",', '"source":{"id":"a:b","at":3},']),
)
def test_a_body_decoded_in_one_pass_gives_the_same_result(document: Any, more: Any, dtype: str, twice: str) -> None:
    body = ("{" + twice + json.dumps(document | more)[1:]).encode()
    model = _WIRES[dtype]
    whole: list[tuple[Any, Callable[[], Any]]] = [
        (model.read_step, lambda: model.step(body, JSON)),
        (model.read_message, lambda: model.feed(body, JSON, {}, many=False)),
        (model.read_stream_message, lambda: model.feed(body, JSON, {}, many=True)),
    ]
    for read, read_whole in whole:
        try:
            fields, inputs, is_plain = read(body)
        except DECODE_ERRORS:
            continue
        same = read_whole()

        assert same.chunk is False
        assert fields.options() == same.body.options()
        assert json.loads(encode(correlation_of(fields), JSON)) == json.loads(encode(correlation_of(same.body), JSON))
        assert is_plain == (fields.options().keys() <= {"seq", "after", "source"})
        assert (same.inputs["x"].tobytes(),) == inputs


def test_a_usual_message_is_decoded_in_one_pass() -> None:
    message = b'{"stream":"a:b","inputs":{"x":[1,2,3,4]},"seq":7,"id":{"n":1}}'
    assert ONE.read_stream_message is not None

    fields, _, is_plain = ONE.read_stream_message(message)
    with_source, _, is_plain_with_source = ONE.read_stream_message(
        b'{"source":{"id":"a:b","at":7},"stream":"a:b","inputs":[1,2,3,4]}'
    )

    assert with_source.options()["source"].at == (7,)
    assert is_plain_with_source
    assert encode(correlation_of(fields), JSON) == b'{"stream":"a:b","id":{"n":1}}'
    assert (fields.options(), is_plain) == ({"seq": 7}, True)


def test_a_source_whose_id_hides_a_colon_hides_no_key_that_occurs_twice() -> None:
    message = rb'{"seq":1,"seq":2,"source":{"id":"a\u003ab","at":7},"inputs":[1,2,3,4]}'
    assert ONE.read_step is not None

    with pytest.raises(DECODE_ERRORS):
        ONE.read_step(message)
    assert ONE.read_step(message.replace(b'"seq":1,', b"").replace(rb"\u003a", b":"))[2]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([JSON, MSGPACK]))
def test_any_bytes_are_a_body_or_an_error(body: bytes, form: Format) -> None:
    outcome(lambda: ONE.step(body, form))


@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_a_valid_body_with_any_byte_changed_is_a_body_or_an_error(form: Format) -> None:
    sound = body_of({"inputs": {"x": [1.5, 2, 3, 4]}, "seq": 3, "after": encode_state_id(STATE_ID)}, form)
    dice = random.Random(1)

    for place in range(len(sound)):
        for value in (0, 0x22, 0x5C, 0x7F, 0x80, 0xC1, 0xFF, dice.randrange(256)):
            changed = sound[:place] + bytes([value]) + sound[place + 1 :]
            assert outcome(lambda changed=changed: ONE.step(changed, form))  # type: ignore[misc] # bound at once


def test_a_packed_body_with_any_byte_changed_is_a_body_or_an_error() -> None:
    sound = body_of({"inputs": {"x": packed(ROW)}, "seq": 3}, MSGPACK)

    for place in range(len(sound)):
        for value in range(0, 256, 5):
            changed = sound[:place] + bytes([value]) + sound[place + 1 :]
            assert outcome(lambda changed=changed: ONE.step(changed, MSGPACK))  # type: ignore[misc] # bound at once


# ------------------------------------------------------------------- state ids, formats, responses


@given(st.binary(min_size=16, max_size=16))
def test_a_state_id_has_22_characters_and_can_be_decoded(state_id: bytes) -> None:
    text = encode_state_id(state_id)

    assert len(text) == 22
    assert decode_state_id(text) == state_id


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        (None, JSON),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/x-www-form-urlencoded", JSON),
        ("application/msgpack", MSGPACK),
        ("Application/MsgPack; v=1", MSGPACK),
        ("application/x-msgpack", MSGPACK),
        ("application/vnd.msgpack", MSGPACK),
    ],
)
def test_the_content_type_selects_the_format_of_the_body(content_type: str | None, form: Format) -> None:
    assert format_of_body(content_type) is form


@pytest.mark.parametrize(
    ("accept", "body", "form"),
    [
        (None, JSON, JSON),
        (None, MSGPACK, MSGPACK),
        ("*/*", MSGPACK, MSGPACK),
        ("application/json", MSGPACK, JSON),
        ("application/msgpack", JSON, MSGPACK),
        ("application/json, application/msgpack;q=0.5", JSON, JSON),
        ("text/html, application/x-msgpack", JSON, MSGPACK),
        ("text/html", JSON, JSON),
        ("application/json;q=0.5, application/msgpack", JSON, MSGPACK),
        ("application/json; q=0.2 , Application/MsgPack; v=1; q=0.9", JSON, MSGPACK),
        ("application/msgpack;q=0", MSGPACK, MSGPACK),
        ("application/msgpack;q=0, application/json;q=0.1", MSGPACK, JSON),
        ("application/msgpack, */*", JSON, MSGPACK),
        ("application/msgpack;q=0.5, */*", JSON, JSON),
        ("application/*;q=0.5, application/json;q=0.1", MSGPACK, MSGPACK),
        ("application/msgpack;q=high", JSON, MSGPACK),
        ("", MSGPACK, MSGPACK),
    ],
)
def test_accept_selects_the_format_of_the_response(accept: str | None, body: Format, form: Format) -> None:
    assert format_of_answer(accept, body) is form


@pytest.mark.parametrize("form", [JSON, MSGPACK])
@pytest.mark.parametrize("names", [("x",), ("x", "y")])
def test_named_inputs_are_decoded_by_the_typed_decoder(names: tuple[str, ...], form: Format) -> None:
    """In lists, and packed where the format allows it; an exception in the typed decoder is expensive."""
    specs = [InputSpec(name=name, dtype="float32", shape=[2]) for name in names]
    rows = np.array([[1, 2], [3, 4]], np.float32)
    values = [rows.tolist()] if form is JSON else [rows.tolist(), packed(rows)]
    for value in values:
        raw = msgspec.Raw(encode(dict.fromkeys(names, value), form))
        arrays = TypedInputsDecoder(specs).read(raw, form, 1).arrays

        assert {name: array.tolist() for name, array in arrays.items()} == dict.fromkeys(names, rows.tolist())


def prediction(values: list[list[float]], step: int = 3, **more: Any) -> Prediction:
    return Prediction(BatchOutput({"y": np.array([values], np.float32)}, [step], [STATE_ID]), 0, **more)


def test_a_step_response_has_no_time_axis_and_no_false_flags() -> None:
    assert step_response(prediction([[0.5, 1]]), JSON, chunk=False) == {
        "outputs": {"y": [0.5, 1.0]},
        "step": 3,
        "state_id": encode_state_id(STATE_ID),
    }


@pytest.mark.parametrize(
    ("keep", "values", "outputs"),
    [("all", [[1, 2], [3, 4]], {"y": [[1, 2], [3, 4]]}), ("last", [[3, 4]], {"y": [3, 4]}), ("none", [], {})],
)
def test_a_chunk_response_has_the_requested_predictions(keep: Any, values: Any, outputs: Any) -> None:
    assert step_response(prediction(values), JSON, chunk=True, keep=keep)["outputs"] == outputs


def test_created_and_replayed_appear_only_if_true() -> None:
    answer = step_response(prediction([[1, 2]], created=True, replayed=True), JSON, chunk=False)

    assert (answer["created"], answer["replayed"]) == (True, True)


@given(st.data())
def test_a_json_response_equals_its_encoded_document(data: st.DataObject) -> None:
    """Rows of a batch are encoded together; each must be the same as encoded alone."""
    rows = data.draw(st.integers(1, 4))
    arrays = {
        name: data.draw(
            hnp.arrays(data.draw(st.sampled_from(["float32", "float64", "int64", "bool"])), (rows, 2, *shape))
        )
        for name, shape in data.draw(
            st.dictionaries(
                st.sampled_from(["y", 'a"],[\n%b', "z:0"]), st.sampled_from([(), (1,), (3,), (2, 2), (0,)]), max_size=3
            )
        ).items()
    }
    flags = {"replayed": data.draw(st.booleans()), "created": data.draw(st.booleans())}
    ids = [bytes(reversed(STATE_ID)), STATE_ID] * 2
    made = BatchOutput(arrays, range(7, 7 + rows), ids[:rows])

    for row in range(rows):
        found = Prediction(made, row, replayed=flags["replayed"], created=flags["created"])
        assert encode_step(found, JSON, chunk=False) == encode(step_response(found, JSON, chunk=False), JSON)


def test_float32_predictions_can_be_read_exactly_from_json() -> None:
    values = np.frombuffer(struct.pack("<4I", 0x3DCCCCCD, 0x7F7FFFFF, 0x00000001, 0x80000000), np.float32)

    text = encode(step_response(prediction([values.tolist()]), JSON, chunk=False), JSON)

    assert np.array(json.loads(text)["outputs"]["y"], np.float32).tobytes() == values.tobytes()


def test_a_packed_tensor_has_dtype_shape_and_bytes() -> None:
    answer = step_response(prediction([[1, 2], [3, 4]]), MSGPACK, chunk=True)

    assert answer["outputs"]["y"] == packed(np.array([[1, 2], [3, 4]], np.float32))


ERROR = ServiceError("seq_gap", "p")
MANIFEST_OF_TWO = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [1]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [2]}],
}


def bulk_response(form: Format, results: BulkParts | None = None, **more: Any) -> dict[str, Any]:
    specs = Manifest.model_validate(MANIFEST_OF_TWO).answered
    if results is None:
        results = BulkParts(3, [], {1: ERROR, 2: prediction([[5, 6]], replayed=True), 0: prediction([[1, 2]])})
    errors = {i: {"code": error.code} for i, error in results.errors.items()}
    return bulk_response_of_parts(results, errors, specs, form, **{"length": 1, "chunk": False} | more)


@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_rows_in_columns_have_the_response_that_each_row_has_by_itself(form: Format) -> None:
    output = BatchOutput({"y": np.array([[[1, 2]], [[3, 4]], [[5, 6]]], np.float32)}, [7, 8, 9], [STATE_ID] * 3)
    others = {1: prediction([[0, 1]], replayed=True), 4: prediction([[8, 9]], created=True)}
    columns: list[Any] = [
        ([3, 0], BulkPrediction(output, [2, 2, 2], True), [2, 0]),
        ([6, 5], BulkPrediction(output, [1, 1, 1], replayed=True), [1, 0]),
    ]
    parts = BulkParts(7, columns, {**others, 2: ERROR})

    alone = BulkParts(7, [], dict(enumerate(parts.by_row())))

    assert bulk_response(form, parts) == bulk_response(form, alone)
    assert bulk_response(form, parts)["step"] == [7, 3, None, 9, 3, 7, 8]
    assert bulk_response(form, parts)["replayed"] == [1, 5, 6]


@pytest.mark.parametrize("form", [JSON, MSGPACK])
def test_a_request_whose_rows_were_all_applied_before_has_the_response_that_each_row_has_by_itself(
    form: Format,
) -> None:
    output = BatchOutput({"y": np.array([[[1, 2]], [[3, 4]]], np.float32)}, [7, 8], [STATE_ID] * 2)
    found = BulkPrediction(output, [2, 2], replayed=True)
    specs = Manifest.model_validate(MANIFEST_OF_TWO).answered

    together = responses.bulk_response(found, specs, form, chunk=False, keep="all")

    assert together == bulk_response(form, BulkParts(2, [], dict(enumerate(found.as_parts().by_row()))))
    assert together["replayed"] == [0, 1]


def test_a_failed_bulk_row_is_null_and_has_an_error() -> None:
    assert bulk_response(JSON) == {
        "outputs": {"y": [[1, 2], None, [5, 6]]},
        "step": [3, None, 3],
        "state_id": [encode_state_id(STATE_ID), None, encode_state_id(STATE_ID)],
        "errors": {"1": {"code": "seq_gap"}},
        "replayed": [2],
    }


def test_a_failed_bulk_row_is_zeros_in_msgpack() -> None:
    answer = bulk_response(MSGPACK)

    assert answer["outputs"]["y"] == packed(np.array([[1, 2], [0, 0], [5, 6]], np.float32))
    assert answer["step"] == [3, None, 3]


def test_a_bulk_response_of_last_predictions_has_no_time_axis() -> None:
    assert bulk_response(JSON, length=7, chunk=True, keep="last")["outputs"] == {"y": [[1, 2], None, [5, 6]]}
