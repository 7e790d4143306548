"""Filters with past values in shift registers: `adopt` does not choose between taps, and proposes the right pairing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stepwell_export.adoption.autoconfigure import adopt, write_sidecar
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests import graphs


@dataclass(frozen=True, slots=True)
class Filter:
    """A linear filter of single numbers: `y[n] = sum(b[k] x[n - k]) - sum(a[k] y[n - k])`."""

    text: str
    b: tuple[float, ...]
    a: tuple[float, ...] = ()

    def response(self, x: Array) -> Array:
        """Return the outputs for one sequence, shape `(T,)` float64."""
        y = np.zeros(len(x))
        for n in range(len(x)):
            past_x = sum(b * x[n - k] for k, b in enumerate(self.b) if k <= n)
            y[n] = past_x - sum(a * y[n - k] for k, a in enumerate(self.a, 1) if k <= n)
        return y


FILTERS = {
    "AR(2)": Filter(
        """g (float[B,1] x, float[B,1] p, float[B,1] q) => (float[B,1] y, float[B,1] r, float[B,1] s) {
            a1 = Constant <value = float {0.6}> ()
            a2 = Constant <value = float {-0.3}> ()
            first = Mul (p, a1)
            second = Mul (q, a2)
            past = Add (first, second)
            y = Add (x, past)
            r = Identity (y)
            s = Identity (p)
        }""",
        (1.0,),
        (-0.6, 0.3),
    ),
    "AR(2), the older tap first": Filter(
        """g (float[B,1] x, float[B,1] q, float[B,1] p) => (float[B,1] y, float[B,1] s, float[B,1] r) {
            a1 = Constant <value = float {0.6}> ()
            a2 = Constant <value = float {-0.3}> ()
            first = Mul (p, a1)
            second = Mul (q, a2)
            past = Add (first, second)
            y = Add (x, past)
            r = Identity (y)
            s = Identity (p)
        }""",
        (1.0,),
        (-0.6, 0.3),
    ),
    "AR(3)": Filter(
        """g (float[B,1] x, float[B,1] p, float[B,1] q, float[B,1] r)
            => (float[B,1] y, float[B,1] k, float[B,1] l, float[B,1] m) {
            a1 = Constant <value = float {0.5}> ()
            a2 = Constant <value = float {-0.3}> ()
            a3 = Constant <value = float {0.2}> ()
            first = Mul (p, a1)
            second = Mul (q, a2)
            third = Mul (r, a3)
            past = Sum (first, second, third)
            y = Add (x, past)
            k = Identity (y)
            l = Identity (p)
            m = Identity (q)
        }""",
        (1.0,),
        (-0.5, 0.3, -0.2),
    ),
    "moving average of three": Filter(
        """g (float[B,1] x, float[B,1] p, float[B,1] q) => (float[B,1] y, float[B,1] k, float[B,1] l) {
            y = Mean (x, p, q)
            k = Identity (x)
            l = Identity (p)
        }""",
        (1 / 3, 1 / 3, 1 / 3),
    ),
    "biquad": Filter(
        """g (float[B,1] x, float[B,1] p, float[B,1] q, float[B,1] u, float[B,1] v)
            => (float[B,1] y, float[B,1] k, float[B,1] l, float[B,1] m, float[B,1] n) {
            half = Constant <value = float {0.5}> ()
            a1 = Constant <value = float {0.6}> ()
            a2 = Constant <value = float {-0.3}> ()
            b = Mul (p, half)
            c = Mul (q, half)
            d = Mul (u, a1)
            e = Mul (v, a2)
            y = Sum (x, b, c, d, e)
            k = Identity (x)
            l = Identity (p)
            m = Identity (y)
            n = Identity (u)
        }""",
        (1.0, 0.5, 0.5),
        (-0.6, 0.3),
    ),
    "AR(2) whose answers have another shape": Filter(
        """g (float[B,1] x, float[B] p, float[B] q) => (float[B,1] y, float[B] r, float[B] s) {
            a1 = Constant <value = float {0.6}> ()
            a2 = Constant <value = float {-0.3}> ()
            axis = Constant <value = int64[1] {1}> ()
            first = Mul (p, a1)
            second = Mul (q, a2)
            now = Squeeze (x, axis)
            r = Sum (now, first, second)
            y = Unsqueeze (r, axis)
            s = Identity (p)
        }""",
        (1.0,),
        (-0.6, 0.3),
    ),
    "biquad in direct form II": Filter(
        """g (float[B,1] x, float[B] p, float[B] q) => (float[B,1] y, float[B] s, float[B] r) {
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
        (1.0, 2.0, 1.0),
        (-0.6, 0.3),
    ),
    "taps reshaped": Filter(
        """g (float[B,1] x, float[B,1] p, float[B,1] q) => (float[B,1] y, float[B,1] k, float[B,1] l) {
            axis = Constant <value = int64[1] {1}> ()
            past = Sub (p, q)
            y = Add (x, past)
            k = Identity (x)
            flat = Squeeze (p, axis)
            l = Unsqueeze (flat, axis)
        }""",
        (1.0, 1.0, -1.0),
    ),
}


def written(folder: Path, text: str) -> Path:
    path = folder / "filter.onnx"
    path.write_bytes(graphs.graph_from_text(text))
    return path


def proposed(error: UnclearModelError) -> dict[str, str]:
    """Return the pairs of the first command line in a message."""
    return dict(re.findall(r"--state (\w+)=(\w+)", error.fix.split(" if ")[0]))


@pytest.mark.parametrize("name", FILTERS)
def test_the_taps_of_a_filter_are_asked_for_and_the_proposed_pairing_is_the_filter(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, FILTERS[name].text)
    with pytest.raises(UnclearModelError) as caught:
        adopt(path)
    write_sidecar(path, adopt(path, hints=Overrides(states=proposed(caught.value))).manifest)
    model = StepModel(path)
    x = np.random.default_rng(0).normal(size=40)
    outputs, _ = model.chunk({"x": x.reshape(1, -1, 1).astype(np.float32)}, model.initial_states(1))

    np.testing.assert_allclose(outputs["y"].ravel(), FILTERS[name].response(x), atol=1e-5)


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
