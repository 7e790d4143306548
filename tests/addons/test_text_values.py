"""Numbers and stream ids of texts."""

from __future__ import annotations

import math

import pytest

from stepwell.addons.text_values import number_of, stream_id_of
from stepwell.errors import ServiceError

ODD_IDS = ["0042", "42", "4_2", "48e2", "1.10", "1e3", "007"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("42", 42), ("-7", -7), ("1.10", 1.1), ("48e2", 4800.0), ("1E-2", 0.01), ("0", 0), (" 5\t", 5), ("-0.5", -0.5)],
)
def test_a_number_of_json_is_the_number(text: str, number: float) -> None:
    """Integers stay integers, so that inputs of integers take them."""
    found = number_of(text)

    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize(
    "text", ["0042", "+42", "4_2", ".5", "5.", "\uff14\uff12", "0x10", "nan", "inf", "", "1 2", "--1"]
)
def test_what_json_has_not_is_no_number(text: str) -> None:
    """Python reads most of these as numbers."""
    assert number_of(text) is None


def test_a_number_beyond_floats_is_infinite() -> None:
    """The check for finite values refuses it, with the input's name."""
    assert number_of("1e999") == math.inf
    assert number_of("9" * 5000) == math.inf


@pytest.mark.parametrize("text", ODD_IDS)
def test_a_streams_id_is_the_text_as_it_stands(text: str) -> None:
    """Whatever number it looks like."""
    assert stream_id_of(text) == text
    assert stream_id_of(text.encode()) == text


def test_an_integer_as_an_id_is_its_decimal_text() -> None:
    """JSON and msgpack have integers as ids."""
    assert stream_id_of(-42) == "-42"


@pytest.mark.parametrize(
    "value", [42.0, True, None, ["42"], "+42", " 42", "42 ", "\uff14\uff12", "", ".", b"\xff", 10**500, "a b"]
)
def test_other_values_are_no_id(value: object) -> None:
    """Refused with what was found, never changed into another stream's id."""
    with pytest.raises(ServiceError, match="stream id is") as refused:
        stream_id_of(value)

    assert refused.value.code == "bad_request"
