"""What torch's exporters write otherwise than torch computes it is equal to torch, where numbers are rare too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from stepwell_export.verify.runners import stepped
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

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


def ours_and_torchs(functions: Mapping[str, Callable[[Any], Any]], x: Any, *, example: Any) -> dict[str, Any]:
    """Return what the step graph of functions, all of one module, gives for `(batch, T, features)`, and torch."""
    spec = StepSpec(of(lambda m, x: {name: f(x) for name, f in functions.items()}), inputs={"x": example}, time_axis=1)
    graph, _ = verify_model(convert(spec, name="numbers"), long_steps=0)
    model = StepModel(graph)
    found, _ = stepped(model, {"x": x})
    return {name: (found[name], function(torch.from_numpy(x)).numpy()) for name, function in functions.items()}


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers_equal_torchs_below_zero_and_where_they_are_wide(dtype: str) -> None:
    example = torch.randint(-50, 50, (2, 7, 4), dtype=getattr(torch, dtype))

    for name, (found, want) in ours_and_torchs(INTEGERS, WIDE.astype(dtype)[None], example=example).items():
        np.testing.assert_array_equal(found, want, name, strict=True)


def test_digits_are_kept_near_zero_and_far_from_it() -> None:
    pairs = ours_and_torchs(FLOATS, FINE.astype(np.float32)[None], example=torch.randn(2, 7, 4))

    for name, (found, want) in pairs.items():
        np.testing.assert_allclose(found, want, rtol=2e-6, err_msg=name)


def multiples_and_others(count: int) -> Any:
    """Return `(count, 1, 4)`: a random number, a multiple of 0.3 in float32, a wide number, and another multiple."""
    rng = np.random.default_rng(0)
    multiples = (rng.integers(1, 90, (count, 2)) * rng.choice([-1, 1], (count, 2))).astype("float32") * np.float32(0.3)
    wide = np.exp(rng.uniform(-40, 40, count)) * rng.choice([-1, 1], count)
    columns = [rng.normal(0, 3, count), multiples[:, 0], wide, multiples[:, 1]]
    return np.stack(columns, -1).astype("float32")[:, None]


def test_a_division_has_torchs_numbers_where_the_quotient_is_nearly_whole() -> None:
    pairs = ours_and_torchs(DIVISIONS, multiples_and_others(4_000), example=torch.randn(2, 7, 4))

    for name, (found, want) in pairs.items():
        np.testing.assert_array_equal(found, want, name)


def test_a_sum_of_integers_over_time_has_torchs_width() -> None:
    x = np.full((1, 6, 4), 2**30, "int32")
    example = torch.randint(-50, 50, (2, 7, 4), dtype=torch.int32)

    [(found, _)] = ours_and_torchs({"sum": lambda given: given.sum(1)}, x, example=example).values()

    assert found.tolist() == torch.from_numpy(x).cumsum(1).tolist()


def test_functions_that_torchs_exporter_lacks_equal_torchs() -> None:
    def run(m: Any, x: Any) -> Any:
        near = torch.tanh(x) * 0.9
        moved = x.unflatten(-1, (2, 2)).movedim(-1, 2).flatten(2)
        parts = x.sinh(), x.cosh(), x.asinh(), (1 + x * x).acosh(), near.atanh(), x.trunc(), x.frac(), x.erfc(), moved
        return torch.cat([*parts, torch.heaviside(x.round(), x), x.tile(2)], -1)

    _, report = verify_model(convert(whole(of(run)), name="functions"), long_steps=100)

    assert report.parity.max_abs <= 1e-5
