"""What torch's exporters write otherwise than torch computes it is equal to torch, where numbers are rare too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_parts import nn, of, torch

pytestmark = pytest.mark.torch

WIDE = np.array([[-7, -1, 0, 5], [-(2**30), 2**30, -3, 2], [6, -6, 2**31 - 1, -(2**31)], [1, 2, 3, 4]])
FINE = np.array([[-7.5, -1e-7, 3e-9, 5.5], [1e-6, -2.0, 0.0, 80.0], [-120.0, 30.0, 0.5, -0.5], [1e-3, -1e-4, 7.0, 2.0]])

INTEGERS: dict[str, Callable[[Any], Any]] = {
    "floor_division": lambda x: x // 3,
    "floor_division_by_a_negative": lambda x: x // -3,
    "floor_division_of_a_number": lambda x: 100 // (x.abs() % 9 + 1),
    "floor_divide": lambda x: torch.floor_divide(x, 4),
    "remainder": lambda x: x % 3,
    "remainder_by_a_negative": lambda x: x % -3,
    "fmod": lambda x: torch.fmod(x, 3),
    "right_shift": lambda x: x >> 2,
    "bitwise_right_shift": lambda x: torch.bitwise_right_shift(x, 1),
    "right_shift_by_a_tensor": lambda x: x >> (x.abs() % 4),
    "running_sum": lambda x: x.cumsum(1),
    "sum_of_features": lambda x: x.sum(-1),
}
FLOATS: dict[str, Callable[[Any], Any]] = {
    "floor_division": lambda x: x // 3.0,
    "floor_division_by_a_tensor": lambda x: x // (x.abs() + 1),
    "remainder": lambda x: x % 3.0,
    "log1p": lambda x: torch.log1p(x.abs()) - torch.log1p(x.clamp(-0.5, 0.0)),
    "expm1": torch.expm1,
    "logsigmoid": nn.functional.logsigmoid,
    "logsigmoid_layer": nn.LogSigmoid(),
}

DIVISIONS: dict[str, Callable[[Any], Any]] = {
    "floor_division": lambda x: x // 0.3,
    "floor_division_by_a_negative": lambda x: x // -0.3,
    "floor_division_by_a_tensor": lambda x: x // x.flip(-1),
    "floor_division_by_zero": lambda x: x // (x * 0.0),
    "floor_division_of_a_number": lambda x: 0.7 // x,
    "floor_division_in_place": lambda x: x.clone().floor_divide_(0.3),
    "floor_division_of_integers": lambda x: (x * 1000).long() // 0.3,
    "floor_division_in_float64": lambda x: (x.double() // 0.3).float(),
    "floor_division_in_float16": lambda x: (x.half() // 0.3).float(),
    "floor_divide": lambda x: torch.floor_divide(x, 0.3),
    "quotient_rounded_down": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "method_rounded_down": lambda x: x.divide(0.3, rounding_mode="floor"),
    "quotient_in_place": lambda x: x.clone().div_(0.3, rounding_mode="floor"),
    "quotient_cut": lambda x: torch.div(x * 1e30, 0.3, rounding_mode="trunc"),
    "remainder": lambda x: x % 0.3,
    "remainder_by_a_negative": lambda x: x % -0.3,
    "remainder_by_a_tensor": lambda x: torch.remainder(x, x.flip(-1)),
    "remainder_of_a_number": lambda x: 0.7 % x,
    "remainder_in_place": lambda x: x.clone().remainder_(0.3),
    "remainder_in_float16": lambda x: (x.half() % 0.3).float(),
    "fmod": lambda x: torch.fmod(x, 0.3),
}


def answers(run: Callable[[Any], Any], x: Any, *, example: Any) -> Any:
    """Return what the step graph of an element-wise module gives for `(batch, T, features)`."""
    spec = StepSpec(of(lambda m, x: run(x)), inputs={"x": example}, time_axis=1)
    graph, _ = verify_model(convert(spec, name="numbers"), long_steps=0)
    model = StepModel(graph)
    states, found = model.initial_states(len(x)), []
    for now in x.transpose(1, 0, 2):
        given, states = model.step({"x": now}, states)
        found.append(given["output"])
    return np.stack(found, 1)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_equal_torchs_below_zero_and_where_they_are_wide(name: str, dtype: str) -> None:
    x = WIDE.astype(dtype)[None]
    want = INTEGERS[name](torch.from_numpy(x)).numpy()

    found = answers(INTEGERS[name], x, example=torch.randint(-50, 50, (2, 7, 4), dtype=getattr(torch, dtype)))

    assert found.dtype == want.dtype
    assert found.tolist() == want.tolist()


@pytest.mark.parametrize("name", FLOATS)
def test_digits_are_kept_near_zero_and_far_from_it(name: str) -> None:
    x = FINE.astype(np.float32)[None]
    want = FLOATS[name](torch.from_numpy(x)).numpy()

    np.testing.assert_allclose(answers(FLOATS[name], x, example=torch.randn(2, 7, 4)), want, rtol=2e-6)


def multiples_and_others(count: int) -> Any:
    """Return `(count, 1, 4)`: a random number, a multiple of 0.3 in float32, a wide number, and another multiple."""
    rng = np.random.default_rng(0)
    multiples = (rng.integers(1, 90, (count, 2)) * rng.choice([-1, 1], (count, 2))).astype("float32") * np.float32(0.3)
    wide = np.exp(rng.uniform(-40, 40, count)) * rng.choice([-1, 1], count)
    columns = [rng.normal(0, 3, count), multiples[:, 0], wide, multiples[:, 1]]
    return np.stack(columns, -1).astype("float32")[:, None]


@pytest.mark.parametrize("name", DIVISIONS)
def test_a_division_has_torchs_numbers_where_the_quotient_is_nearly_whole(name: str) -> None:
    x = multiples_and_others(20_000)
    want = DIVISIONS[name](torch.from_numpy(x)).numpy()

    np.testing.assert_array_equal(answers(DIVISIONS[name], x, example=torch.randn(2, 7, 4)), want)


def test_a_sum_of_integers_over_time_has_torchs_width() -> None:
    x = np.full((1, 6, 4), 2**30, "int32")
    want = torch.from_numpy(x).cumsum(1).numpy()

    found = answers(lambda given: given.sum(1), x, example=torch.randint(-50, 50, (2, 7, 4), dtype=torch.int32))

    assert found.tolist() == want.tolist()
