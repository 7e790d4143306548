"""`StreamTemplate`: ids that are made of fields, and the escape of what no id has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell_client.wire.ids import is_stream_id
from stepwell_client.wire.stream_templates import StreamTemplate, escaped, unescaped

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(ANY_TEXT)
def test_the_escape_is_reversible_and_can_be_a_part_of_an_id(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert is_stream_id("pump-" + escaped(text))


def test_what_an_id_has_stays_as_it_is() -> None:
    texts = ["0042", "pump 7", "a@b", "é/x", "a:b.c_d-e"]

    assert list(map(escaped, texts)) == ["0042", "pump@207", "a@40b", "@C3@A9@2Fx", "a:b.c_d-e"]


def test_placeholders_are_filled_in_their_order() -> None:
    template = StreamTemplate("{plant}:pump-{id}")

    assert (template.names, template.fill(["north east", "7"])) == (["plant", "id"], "north@20east:pump-7")


def test_what_is_no_template_and_an_empty_value_are_refused() -> None:
    for text, said in (
        ("pump-{id", "is no template"),
        ("pump-{}", "is no template"),
        ("pump {id}", "has 'pump '"),
        ("a}{b}", "has 'a}'"),
    ):
        with pytest.raises(ValueError, match="stream id") as error:
            StreamTemplate(text)

        assert said in str(error.value)
    with pytest.raises(ValueError, match="is empty"):
        StreamTemplate("pump-{id}").fill([""])
