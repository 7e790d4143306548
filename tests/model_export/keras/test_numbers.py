"""Each function of numbers is Keras' own at every size: near zero, near one, very large, infinite, missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from stepwell_export.converted import verify_model
from stepwell_export.keras import convert
from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from tests.model_export.keras.sequence_graph import all_ours_and_keras, ours_and_keras
from tests.model_export.keras.zoo_parts import L

SPECIAL = [
    0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -1.5, 2, 3, -2, -3, 7, -7, 0.1, 0.3, 1 - 6e-8, 1 + 1.2e-7, np.inf, -np.inf,
    np.nan, 1e-30, -1e-30, 20, -20, 88, -87, 100, -100, 3.4e38, -3.4e38,
]  # fmt: skip

ONE: dict[str, Callable[..., Any]] = {
    name: getattr(ops, name)
    for name in (
        "abs", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cbrt", "ceil", "celu", "cos", "deg2rad",
        "elu", "erf", "exp", "expm1", "floor", "hard_sigmoid", "hard_silu", "hard_tanh", "isfinite", "leaky_relu",
        "log", "log10", "log1p", "log2", "log_sigmoid", "nan_to_num", "negative", "rad2deg", "reciprocal", "relu",
        "relu6", "round", "rsqrt", "selu", "sigmoid", "sign", "signbit", "silu", "sin", "soft_shrink",
        "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sqrt", "square", "tan", "tanh", "trunc",
    )
}  # fmt: skip
ONE |= {
    "threshold": lambda x: ops.threshold(x, 0.5, -3.0),
    "to_int32": lambda x: ops.cast(x, "int32"),
    "to_uint8": lambda x: ops.cast(ops.cast(x, "uint8"), "int32"),
    "to_bool": lambda x: ops.cast(x, "bool"),
    "equals_zero": lambda x: ops.where(x == 0, 5.0, x),
    "differs_from_zero": lambda x: ops.where(x != 0, 5.0, x),
}
TWO: dict[str, Callable[..., Any]] = {
    name: getattr(ops, name)
    for name in (
        "add", "arctan2", "divide", "divide_no_nan", "equal", "floor_divide", "fmod", "greater", "heaviside", "less",
        "maximum", "minimum", "mod", "multiply", "not_equal", "power", "subtract",
    )
}  # fmt: skip
OF_THE_OPERAND: dict[str, Callable[..., Any]] = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    "squareplus": ops.squareplus,
    "tanh_shrink": ops.tanh_shrink,
}
"""What Keras itself computes as a difference of numbers as large as the operand."""
OF_THE_LOGARITHM: dict[str, Callable[..., Any]] = {
    "cosh": ops.cosh,
    "exp2": ops.exp2,
    "sinh": ops.sinh,
    "erfc": ops.erfc,
}
"""What Keras itself computes as the exponential of a rounded number, of up to 88."""


def numbers(seed: int = 0) -> Array:
    """Return numbers of both signs from 1e-8 to 1e8, and special ones, shape (1, timesteps, 1) float32."""
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal(24) * 10.0**power for power in range(-8, 9)]
    return np.concatenate([*drawn, SPECIAL]).astype(np.float32)[None, :, None]


def pairs() -> tuple[Array, Array]:
    """Return numbers for two operands, all pairs of special ones among them."""
    x, y, many = numbers(), numbers(1), len(SPECIAL)
    special = np.asarray(SPECIAL, np.float32)[None, :, None]
    return np.concatenate([x, np.repeat(special, many, 1)], 1), np.concatenate([y, np.tile(special, (1, many, 1))], 1)


def ulps(found: Array, expected: Array, size: Array | None = None) -> float:
    """Return the largest difference, in units of the last place of the expected numbers, or of other ones."""
    assert found.dtype == expected.dtype
    if found.dtype != np.float32:
        return 0.0 if np.array_equal(found, expected) else np.inf
    with np.errstate(all="ignore"):
        same = (found == expected) | (np.isnan(found) & np.isnan(expected))
        unit = np.spacing(np.abs(expected if size is None else size))
        apart = np.abs(found.astype(np.float64) - expected) / np.where(unit > 1e-43, unit, 1e-37)
        tiny = np.abs(found.astype(np.float64) - expected) < 1.2e-38  # Keras flushes such numbers to zero
    apart = np.where(np.isnan(apart), np.inf, apart)
    return float(np.where(same | tiny, 0, apart).max())


def beyond(
    limit: float, functions: Mapping[str, Callable[..., Any]], *arrays: Array, size: Any = None
) -> dict[str, float]:
    """Return by how much each function is off that is off by more than a limit."""
    off = {name: ulps(*both, size) for name, both in all_ours_and_keras(functions, *arrays).items()}
    return {name: units for name, units in off.items() if units > limit}


def test_a_function_of_one_number_is_within_a_few_units_of_the_last_place() -> None:
    assert beyond(12, ONE, numbers()) == {}


def test_a_sinc_is_within_a_few_units_of_its_largest_value() -> None:
    """JAX 0.12 computes it otherwise than before: it is 0 for whole numbers, and for what overflows times pi."""
    x = numbers()
    x = x[:, np.abs(x[0, :, 0]) < 1e30]
    found, expected = ours_and_keras(ops.sinc, x)
    assert ulps(found, expected, np.ones_like(expected)) <= 4


def test_a_function_of_two_numbers_is_within_a_few_units_of_the_last_place() -> None:
    assert beyond(4, TWO, *pairs()) == {}


def test_a_division_with_a_rest_is_equal_where_the_quotient_is_nearly_whole() -> None:
    """Also where the quotient in float32 ends on a half, above 2**22."""
    rng = np.random.default_rng(0)
    multiples = np.concatenate([rng.integers(-9, 9, 4000) * 1000, rng.integers(-(2**23), 2**23, 4000)])
    x = (multiples.astype(np.float32) * np.float32(0.3))[None, :, None]

    assert beyond(0, {name: partial(TWO[name], x2=0.3) for name in ("floor_divide", "mod", "fmod")}, x) == {}


def test_a_difference_is_within_a_few_units_of_what_it_is_taken_from() -> None:
    x = numbers()
    assert beyond(4, OF_THE_OPERAND, x, size=np.nan_to_num(x)) == {}


def test_a_large_exponential_is_within_the_rounding_of_its_logarithm() -> None:
    assert beyond(64, OF_THE_LOGARITHM, numbers()) == {}


def test_a_logarithm_of_a_sum_is_within_a_few_units_of_the_larger_logarithm() -> None:
    x, y = pairs()
    found, expected = ours_and_keras(ops.logaddexp, x, y)
    assert ulps(found, expected, np.nan_to_num(np.maximum(np.abs(np.maximum(x, y)), np.abs(expected)))) <= 4


def test_the_long_side_of_a_triangle_neither_overflows_nor_vanishes() -> None:
    x, y = pairs()
    is_number = ~(np.isnan(x) | np.isnan(y))  # Keras on JAX has an infinite side beside a missing one
    assert ulps(*ours_and_keras(ops.hypot, x[is_number][None, :, None], y[is_number][None, :, None])) <= 4


# ---------------------------------------------------------------- along axes

ALONG: dict[str, Callable[..., Any]] = {
    "logsumexp": lambda x: ops.logsumexp(x, axis=-1),
    "softmax": ops.softmax,
    "norm": lambda x: ops.norm(x, axis=-1),
    "norm_of_order_1": lambda x: ops.norm(x, ord=1, axis=-1),
    "normalize": lambda x: ops.normalize(x, axis=-1),
    "std": lambda x: ops.std(x, axis=-1),
    "var": lambda x: ops.var(x, axis=-1),
    "rms_normalization": lambda x: ops.rms_normalization(x, axis=-1),
    "prod": lambda x: ops.prod(x, axis=-1),
    "glu": ops.glu,
}


def test_a_function_along_features_is_within_a_few_units_of_the_last_place() -> None:
    rng = np.random.default_rng(1)
    scales = [rng.standard_normal((20, 4)) * 10.0**power for power in range(-8, 9)]
    rows = [[0, 0, 0, 0], [1, 1, 1, 1], [100000, 100001, 100000, 100001], [87, -87, 0, 1], [-np.inf, 1, 2, 3]]
    x = np.concatenate([*scales, rows]).astype(np.float32)[None]
    assert beyond(12, ALONG, x) == {}


def test_logarithms_of_probabilities_keep_the_digits_of_large_scores() -> None:
    x = np.random.default_rng(1).standard_normal((1, 40, 4)) + np.logspace(0, 8, 40)[None, :, None]
    found, expected = ours_and_keras(ops.log_softmax, x.astype(np.float32))
    assert ulps(found, expected, np.maximum(np.abs(expected), 1)) <= 4


# ---------------------------------------------------------------- whole numbers

INTEGERS: dict[str, Callable[..., Any]] = {
    "mod": lambda x: x % 1000,
    "mod_of_a_negative_number": lambda x: x % -7,
    "floor_divide": lambda x: x // 7,
    "floor_divide_by_a_negative_number": lambda x: x // -3,
    "floor_divide_by_minus_one": lambda x: x // -1,
    "fmod": lambda x: ops.fmod(x, 7),
    "by_zero": lambda x: ops.stack([x // (x % 2), x % (x % 2)], axis=-1),
    "hash": lambda x: (x * -1640531527) // 65536 % 1000,
    "as_uint8": lambda x: ops.cast(ops.cast(x, "uint8") // 3 + ops.cast(x, "uint8") * 3, "int32"),
    "sum": lambda x: ops.sum(x, axis=-1),
    "sum_of_squares": lambda x: ops.sum(x * x, axis=-1),
    "cumsum": lambda x: ops.cumsum(x, axis=-1),
    "square": lambda x: x**2,
    "fifth_power": lambda x: ops.power(x, 5),
    "no_power": lambda x: x**0,
    "equals": lambda x: ops.where(x == 0, 1, x),
    "round": ops.round,
    "floor": ops.floor,
    "trunc": ops.trunc,
    "relu": ops.relu,
    "look_up": lambda x: ops.take(np.arange(10.0, dtype="float32"), x % 10),
    "one_hot": lambda x: ops.one_hot(x % 5, 5),
    "as_float": lambda x: ops.cast(x, "float32"),
}


def integers() -> Array:
    """Return whole numbers over all of int32, and special ones, shape (1, timesteps, 4) int32."""
    drawn = np.random.default_rng(2).integers(-(2**31), 2**31, (200, 4))
    ends = [[2**31 - 1] * 4, [-(2**31)] * 4, [0] * 4, [1, -1, 2, -2], [2**24 + 1, -(2**24) - 1, 1000, -1000]]
    return np.concatenate([drawn, ends]).astype(np.int32)[None]


def test_a_function_of_whole_numbers_is_exact() -> None:
    assert beyond(0, INTEGERS, integers()) == {}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.prod(x, axis=-1),
        lambda x: ops.matmul(x, np.ones((4, 2), "int32")),
        lambda x: ops.einsum("bti,io->bto", x, np.ones((4, 2), "int32")),
    ],
)
def test_products_of_whole_numbers_that_may_overflow_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(RefusedModelError, match=r"(?s)whole numbers.*float32"):
        ours_and_keras(function, integers())


TRUTHS: dict[str, Callable[..., Any]] = {
    "max": lambda x: ops.max(x, axis=-1), "min": lambda x: ops.min(x, axis=-1), "sum": lambda x: ops.sum(x, axis=-1),
    "prod": lambda x: ops.prod(x, axis=-1), "cumsum": lambda x: ops.cumsum(x, axis=-1), "square": ops.square,
    "argmax": lambda x: ops.argmax(x, axis=-1), "sort": lambda x: ops.sort(x, axis=-1), "abs": ops.abs,
    "equal": lambda x: x == x[..., ::-1],
}  # fmt: skip


def test_a_function_of_truths_has_keras_dtype_and_value() -> None:
    truths = np.array([[True, False, True, True], [False] * 4, [True] * 4])[None]
    assert beyond(0, TRUTHS, truths) == {}


def test_ids_that_are_cast_and_reshaped_have_the_vocabulary_of_their_table() -> None:
    ids = keras.Input((None, 1), dtype="int64")
    rows = L.Embedding(50, 3)(ops.squeeze(ops.cast(ids, "int32"), 2))

    exported = export_keras(keras.Model(ids, L.GRU(2)(rows)), name="m")

    assert [facts.vocabulary for facts in exported.facts.values()] == [50]


def test_a_model_that_counts_in_wide_integers_is_exported_and_equal() -> None:
    """Ids of a thousand million, taken modulo the size of a table, and a running sum that overflows."""
    ids = keras.Input((None, 2), dtype="int32")
    rows = L.Embedding(1000, 3)(ops.mod(ids, 1000))
    total = ops.cast(ops.sum(ids * ids, axis=-1) % 7, "float32")
    y = ops.concatenate([L.Reshape((-1, 6))(rows), ops.expand_dims(total, -1)], axis=-1)
    made = convert(keras.Model(ids, L.GRU(2, return_sequences=True)(y)), name="m")
    wide = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 40, 2)).astype(np.int32)

    report = verify_model(made, user_data={made.manifest.inputs[0].name: wide}, long_steps=0)[1]

    assert report.parity.max_abs < 1e-5
