"""How far attention looks back is read from its mask: scores that underflow on ordinary data hide nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from tests.model_export.streaming.zoo_refused import attention

AGES = """
    size = Shape <start = 1, end = 2> (x)
    steps = Squeeze (size, at0)
    places = Range (none, steps, each)
    columns = Unsqueeze (places, at0)
    lines = Unsqueeze (places, at1)
    ages = Sub (lines, columns)
    age = Cast <to = 1> (ages)
    future = Less (ages, none)
"""
"""How many timesteps before each timestep each other is, `(time, time)`."""

NUMBERS: dict[str, Any] = {
    "at0": np.array([0]), "at1": np.array([1]), "none": np.array(0), "each": np.array(1), "four": np.array(4),
    "slope": np.float32(-4), "never": np.float32(-np.inf), "lots": np.float32(-1e9), "loud": np.float32(100),
    "zero": np.float32(0), "steep": np.float32(200),
}  # fmt: skip
CAUSAL = "c = Where (future, never, zero)"

UNDERFLOWS = {
    "a bias that falls with the distance": f"{CAUSAL} b = Mul (age, slope) t = Add (c, b) m = Add (s, t)",
    "the same, in a table with a finite mask": "b = Mul (age, slope) t = Where (future, lots, b) m = Add (s, t)",
    "a decay that follows from the data": f"{CAUSAL} a = Abs (s) r = Mul (a, age) b = Mul (r, slope) u = Add (s, b) "
    "m = Add (u, c)",
}  # fmt: skip


def masked(text: str) -> onnx.ModelProto:
    """Attention of `x (batch, time, 4)` to itself, whose scores `s` become `m`."""
    used = {name: value for name, value in NUMBERS.items() if name in f"{AGES}{text}"}
    model = attention(f"{AGES}\n{text}", **used)
    model.opset_import[0].version = 18
    return model


@pytest.mark.parametrize("name", UNDERFLOWS)
def test_scores_that_underflow_hide_no_timestep(name: str) -> None:
    """On ordinary data all but a few are zero; what is looked at grows with the stream all the same."""
    with pytest.raises(RefusedModelError) as caught:
        convert(masked(UNDERFLOWS[name]), name="decay")
    assert "attends to all timesteps before, so its state would grow without end" in caught.value.problem


@pytest.mark.parametrize("name", UNDERFLOWS)
def test_with_a_declared_length_all_of_the_past_is_looked_at(name: str) -> None:
    """Sixty timesteps of numbers of which only the first, far behind, counts: the original's answers."""
    model = masked(UNDERFLOWS[name])
    content, _ = verify_model(convert(model, name="decay", length=60), long_steps=0)
    step = StepModel(content)
    x = np.zeros((1, 60, 4), np.float32)
    x[:, 0], x[:, 20:] = 60, 9

    answers, _ = step.chunk({"x": x}, step.initial_states(1))
    want = GraphSession(model).run({"x": x})["y"]
    np.testing.assert_allclose(answers["y"], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "b = Mul (age, slope) n = Abs (b) v = Neg (n) n2 = Mul (v, loud) m = Add (s, n2)",
        "n = Abs (age) q = Mul (n, steep) m = Sub (s, q)",
    ],
)
def test_timesteps_to_come_that_underflow_are_looked_at(text: str) -> None:
    with pytest.raises(RefusedModelError) as caught:
        convert(masked(text), name="decay", length=60)
    assert "attends to timesteps to come" in caught.value.problem


BANDS = {
    "minus infinity": "old = GreaterOrEqual (ages, four) h = Or (future, old) m = Where (h, never, s)",
    "two masks, one after the other": "old = GreaterOrEqual (ages, four) u = Where (old, lots, s) "
    "m = Where (future, never, u)",
    "a mask that is joined with one of the data": "old = GreaterOrEqual (ages, four) h = Or (future, old) "
    "q = Greater (s, loud) g = Or (h, q) d = Equal (ages, none) e = Not (d) f = And (g, e) m = Where (f, lots, s)",
    "scores that are scaled behind the mask": "old = GreaterOrEqual (ages, four) h = Or (future, old) "
    "u = Where (h, never, s) m = Mul (u, loud)",
}  # fmt: skip


@pytest.mark.parametrize("name", BANDS)
def test_what_a_mask_hides_by_position_is_the_window(name: str) -> None:
    made = convert(masked(BANDS[name]), name="band")
    verify_model(made, long_steps=100)

    assert past(made.manifest.states) == {3}


def past(states: Any) -> set[int]:
    """Return how many timesteps before the present one are carried."""
    return {state.shape[0] for state in states if state.input.endswith(".past")}


def test_a_bias_down_to_minus_ten_thousand_is_no_mask() -> None:
    """A steep slope has as low numbers as a mask; between them and zero it has all others, too."""
    model = masked(f"{CAUSAL} n = Neg (steep) o = Add (n, n) b = Mul (age, o) t = Add (c, b) m = Add (s, t)")

    with pytest.raises(RefusedModelError) as caught:
        convert(model, name="steep")
    assert "attends to all timesteps before" in caught.value.problem
