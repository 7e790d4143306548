"""The page "which models work" is made of what the tests show."""

from __future__ import annotations

import pytest

from tests.model_export.merging import merged
from tests.model_export.models_page import PAGE, SECTIONS, part_of


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_is_as_the_tests_have_it(name: str) -> None:
    """Where it is not: python -m tests.model_export.models_page."""
    if name == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed (STEPWELL_EXTRAS=torch)")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (STEPWELL_EXTRAS=torch)")

    assert part_of(PAGE.read_text(), name) == SECTIONS[name]()


def test_parts_of_a_zoo_with_one_name_for_two_entries_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"have \['frames'\]"):
        merged({"frames": 1, "gru": 2}, {"frames": 3})
