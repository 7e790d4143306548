"""`StreamTemplate`: ids that are made of fields, and the escape of what no id has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell_client.wire.ids import is_stream_id
from stepwell_client.wire.stream_templates import StreamTemplate, escaped, unescaped

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(ANY_TEXT)
def test_the_escape_is_reversible(text: str) -> None:
    assert unescaped(escaped(text)) == text


@given(ANY_TEXT)
def test_an_escaped_text_can_be_a_part_of_an_id(text: str) -> None:
    assert is_stream_id("pump-" + escaped(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0042", "0042"), ("pump 7", "pump@207"), ("a@b", "a@40b"), ("é/x", "@C3@A9@2Fx"), ("a:b.c_d-e", "a:b.c_d-e")],
)
def test_what_an_id_has_stays_as_it_is(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_placeholders_are_filled_in_their_order() -> None:
    template = StreamTemplate("{plant}:pump-{id}")

    assert (template.names, template.fill(["north east", "7"])) == (["plant", "id"], "north@20east:pump-7")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pump-{id", "is no template"),
        ("pump-{}", "is no template"),
        ("pump {id}", "has 'pump '"),
        ("a}{b}", "has 'a}'"),
    ],
)
def test_what_is_no_template_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="stream id") as error:
        StreamTemplate(text)

    assert said in str(error.value)


def test_an_empty_value_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        StreamTemplate("pump-{id}").fill([""])
