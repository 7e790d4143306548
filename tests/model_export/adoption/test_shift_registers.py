"""Filters with past values in shift registers: `adopt` does not choose between taps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.runtime.errors import UnclearModelError
from tests import graphs

AR_2 = """ {
            a1 = Constant <value = float {0.6}> ()
            a2 = Constant <value = float {-0.3}> ()
            first = Mul (p, a1)
            second = Mul (q, a2)
            past = Add (first, second)
            y = Add (x, past)
            r = Identity (y)
            s = Identity (p)
        }"""

FILTERS = {
    "AR(2)": "g (float[B,1] x, float[B,1] p, float[B,1] q) => (float[B,1] y, float[B,1] r, float[B,1] s)" + AR_2,
    "AR(2), the older tap first": "g (float[B,1] x, float[B,1] q, float[B,1] p)"
    " => (float[B,1] y, float[B,1] s, float[B,1] r)" + AR_2,
    "biquad in direct form II": """g (float[B,1] x, float[B] p, float[B] q) => (float[B,1] y, float[B] s, float[B] r) {
            a1 = Constant <value = float {0.6}> ()
            a2 = Constant <value = float {-0.3}> ()
            axis = Constant <value = int64[1] {1}> ()
            first = Mul (p, a1)
            second = Mul (q, a2)
            now = Squeeze (x, axis)
            r = Sum (now, first, second)
            b = Add (p, p)
            row = Sum (r, b, q)
            y = Unsqueeze (row, axis)
            s = Identity (p)
        }""",
    "taps reshaped": """g (float[B,1] x, float[B,1] p, float[B,1] q) => (float[B,1] y, float[B,1] k, float[B,1] l) {
            axis = Constant <value = int64[1] {1}> ()
            past = Sub (p, q)
            y = Add (x, past)
            k = Identity (x)
            flat = Squeeze (p, axis)
            l = Unsqueeze (flat, axis)
        }""",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "filter.onnx"
    path.write_bytes(graphs.graph_from_text(text))
    return path


def proposed(error: UnclearModelError) -> dict[str, str]:
    """Return the pairs of the first command line in a message."""
    return dict(re.findall(r"--state (\w+)=(\w+)", error.fix.split(" if ")[0]))


@pytest.mark.parametrize("name", FILTERS)
def test_the_taps_of_a_filter_are_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnclearModelError, match=r"could be followed by .* is a copy of .*, as in a shift register"):
        adopt(written(tmp_path, FILTERS[name]))


def test_states_that_are_counted_from_different_numbers_become_no_inputs(tmp_path: Path) -> None:
    text = """g (float[B,1] x, float[B,1] state_0, float[B,1] state_1, float[B,1] state_2)
        => (float[B,1] y, float[B,1] state_out_1, float[B,1] state_out_2, float[B,1] state_out_3) {
        state_out_1 = Identity (x)
        state_out_2 = Neg (state_0)
        state_out_3 = Neg (state_1)
        y = Add (x, state_2)
    }"""
    with pytest.raises(UnclearModelError) as caught:
        adopt(written(tmp_path, text))

    assert proposed(caught.value) == {
        "state_0": "state_out_1", "state_1": "state_out_2", "state_2": "state_out_3"
    }  # fmt: skip


def test_an_input_that_is_returned_unchanged_is_asked_for(tmp_path: Path) -> None:
    text = """g (float[B,1] x, float[B,1] h, float[B,1] gain)
        => (float[B,1] y, float[B,1] h_next, float[B,1] gain_next) {
        h_next = Add (h, x)
        y = Mul (h_next, gain)
        gain_next = Identity (gain)
    }"""
    with pytest.raises(UnclearModelError) as caught:
        adopt(written(tmp_path, text))

    assert "Output 'gain_next' is a copy of the input 'gain'" in caught.value.problem
