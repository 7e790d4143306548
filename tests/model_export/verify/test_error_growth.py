"""The long run: drift is refused, a model that makes much of any rounding is told, and what is cut short is said."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from stepwell_export.converted import ConvertedModel, _long_lengths
from stepwell_export.runtime.errors import ParityError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.error_growth import steps_for
from stepwell_export.verify.parity import PrefixAnswers, verify_parity
from stepwell_export.verify.tolerance import RTOL, Tolerance
from tests import graphs

Sequences = Mapping[str, Array]


def running_sum(inputs: Sequences) -> dict[str, Array]:
    return {"y": np.cumsum(inputs["x"], axis=1, dtype=np.float32)}


def logistic() -> graphs.Built:
    """A map that doubles any difference at each timestep: s' = 4 s (1 - s), moved a little by x."""
    numbers = {"one": 1, "four": 3.9, "tiny": 1e-6, "low": 0.01, "high": 0.99}
    nodes = (
        "rest = Sub (one, s) both = Mul (s, rest) near = Mul (both, four) small = Mul (x, tiny) "
        "moved = Add (near, small) s_next = Clip (moved, low, high) y = Identity (s_next)"
    )
    return graphs.of_nodes(nodes, 1, {name: np.array(value, np.float32) for name, value in numbers.items()})


def logistic_original(inputs: Sequences) -> dict[str, Array]:
    """The same in other roundings."""
    x = inputs["x"].astype(np.float32)
    s, answers = np.zeros(x[:, 0].shape, np.float32), []
    for t in range(x.shape[1]):
        s = np.clip(np.float32(3.9) * s - np.float32(3.9) * s * s + np.float32(1e-6) * x[:, t], 0.01, 0.99)
        s = s.astype(np.float32)
        answers.append(s)
    return {"y": np.stack(answers, axis=1)}


def test_a_difference_that_grows_with_every_timestep_is_refused() -> None:
    """Too small to be seen in 64 timesteps; a sum of steps that all are a little too large."""

    def too_large(inputs: Sequences) -> dict[str, Array]:
        return {"y": running_sum(inputs)["y"] + 1e-5 * np.arange(inputs["x"].shape[1])[:, None]}

    with pytest.raises(ParityError) as caught:
        verify_parity(too_large, StepModel(*graphs.total()), against="numpy", tolerance=Tolerance(1e-3, 0))

    assert "'y' drifts away from the original: over 2000 timesteps" in caught.value.problem
    assert "so it is not rounding" in caught.value.problem


def test_a_model_that_makes_much_of_any_rounding_passes_and_is_told() -> None:
    report = verify_parity(
        logistic_original, StepModel(*logistic()), against="numpy", steps=6, long_steps=600, seeds=[0]
    )

    assert report.drift is not None
    assert "makes much of any rounding" in report.drift.note
    assert report.parity.max_abs < 1e-4


def test_the_long_run_is_compared_as_long_as_the_original_is_finite() -> None:
    def overflows(inputs: Sequences) -> dict[str, Array]:
        answers = running_sum(inputs)["y"]
        answers[:, 700:] = np.inf
        return {"y": answers}

    report = verify_parity(overflows, StepModel(*graphs.total()), against="numpy", tolerance=Tolerance(1e-3, RTOL))

    assert report.drift is not None
    assert (report.drift.steps, report.drift.compared) == (2000, 700)
    assert report.drift.note == "from timestep 701 on the original's answers are not finite"
    assert report.parity.model_dump()["long_steps"] == 700


def test_the_beginning_and_the_end_are_told_apart() -> None:
    def off_at_the_end(inputs: Sequences) -> dict[str, Array]:
        answers = running_sum(inputs)["y"]
        answers[:, 1990:] += np.float32(0.01)
        return {"y": answers}

    drift = verify_parity(
        off_at_the_end, StepModel(*graphs.total()), against="numpy", tolerance=Tolerance(0.1, RTOL)
    ).drift

    assert drift is not None
    assert drift.first < 1e-3
    assert drift.last == pytest.approx(0.01, rel=0.1)
    assert drift.at_step > 1990


def test_an_answer_for_the_end_alone_is_compared_there() -> None:
    def last(inputs: Sequences) -> dict[str, PrefixAnswers]:
        return {"y": PrefixAnswers([inputs["x"].shape[1]], running_sum(inputs)["y"][:, -1:] + np.float32(1e-4))}

    drift = verify_parity(last, StepModel(*graphs.total()), against="numpy", tolerance=Tolerance(1e-3, RTOL)).drift

    assert drift is not None
    assert (drift.at_step, drift.first) == (2000, 0.0)
    assert drift.last > 0


@pytest.mark.parametrize(("numbers", "steps"), [(0, 2000), (1_000_000, 2000), (4_000_000, 500), (100_000_000, 256)])
def test_the_long_run_of_a_larger_model_is_shorter_on_every_machine(numbers: int, steps: int) -> None:
    assert steps_for(numbers) == steps


def test_a_shorter_long_run_is_said_with_the_reason() -> None:
    wide = graphs.lstm(2, 1000)
    candidate = ConvertedModel(onnx.load_from_string(wide[0]), wide[1], lambda inputs: {}, "numpy")

    assert _long_lengths(candidate) == {"the model has 4,014,000 weights": 498}


def test_an_original_of_one_length_has_no_long_run_and_it_is_told() -> None:
    asked: list[int] = []

    def original(inputs: Sequences) -> dict[str, Array]:
        asked.append(inputs["x"].shape[1])
        return running_sum(inputs)

    report = verify_parity(original, StepModel(*graphs.total()), against="numpy", steps=12, long_steps=0)

    assert set(asked) == {12}
    assert ("long run", "the original was run over 12 timesteps at most") in [
        (left.what, left.why) for left in report.skipped
    ]
