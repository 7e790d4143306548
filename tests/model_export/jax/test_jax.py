"""Functions of JAX become step graphs that equal them; what decides by values or by the length is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="JAX is missing: pip install 'stepwell[keras]'")

import jax
from jax import lax
from jax import numpy as jnp

from stepwell_export.converted import verify_model
from stepwell_export.exporter import export_source
from stepwell_export.jax import convert
from stepwell_export.runtime.errors import RefusedModelError, StepwellError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.spec import StepSpec
from tests.model_export.jax.zoo import ZOO, example

SCALES = [1e-8, 1e-4, 1.0, 1e4, 1e8]


@pytest.mark.many
@pytest.mark.parametrize("name", ZOO)
def test_every_function_of_the_zoo_is_stepped(name: str) -> None:
    _, report = verify_model(convert(ZOO[name](), name=name), long_steps=100)

    assert not report.weak
    assert report.parity.against.startswith("jax ")


def test_a_callable_of_the_command_is_exported(tmp_path: Path) -> None:
    done = export_source(ZOO["lstm"](), tmp_path / "m.onnx")

    assert done.path.is_file()
    assert [spec.name for spec in StepModel(done.path).manifest.inputs] == ["x"]


def test_a_function_with_large_weights_is_written_whole(tmp_path: Path) -> None:
    weights = (np.random.default_rng(0).standard_normal((520, 520)) / 40).astype("f4")

    def mixed(x: Any) -> Any:
        def turn(level: Any, now: Any) -> tuple[Any, Any]:
            level = jnp.tanh(level @ weights + now)
            return level, level[:, :2]

        ys = lax.scan(turn, jnp.zeros((x.shape[0], 520)), jnp.moveaxis(x, 1, 0))[1]
        return jnp.moveaxis(ys, 0, 1)

    spec = StepSpec(mixed, inputs={"x": example(520)}, time_axis=1)
    done = export_source(spec, tmp_path / "m.onnx")

    assert done.path.stat().st_size > weights.nbytes
    assert [spec.shape for spec in StepModel(done.path).manifest.states] == [[520]]


def test_what_a_recurrence_starts_from_is_sent_where_the_function_takes_it() -> None:
    def decaying(x: Any, first: Any) -> Any:
        def turn(level: Any, now: Any) -> tuple[Any, Any]:
            level = jnp.tanh(0.5 * level + now)
            return level, level

        return jnp.swapaxes(lax.scan(turn, first, jnp.swapaxes(x, 0, 1))[1], 0, 1)

    spec = StepSpec(decaying, inputs={"x": example(), "first": np.ones((2, 3), np.float32)}, time_axis=1)
    made = convert(spec, name="m")
    _, report = verify_model(made, long_steps=100)

    assert [given.name for given in made.manifest.inputs] == ["x", "first"]
    assert not report.weak


def refused(function: Callable[..., Any], **more: Any) -> RefusedModelError:
    with pytest.raises(RefusedModelError) as caught:
        convert(StepSpec(function, **{"inputs": {"x": example()}, "time_axis": 1, **more}), name="m")
    return caught.value


def _if(x: Any) -> Any:
    return x if x.max() > 8 else -x


def _float(x: Any) -> Any:
    return x * float(x[0, 0, 0])


def _numpy(x: Any) -> Any:
    return x + np.asarray(x).mean()


def _all_close(x: Any) -> Any:
    return x * 2 if jnp.allclose(x, 0) else x


def _while(x: Any) -> Any:
    return lax.while_loop(lambda y: jnp.any(jnp.abs(y) > 1), lambda y: y / 2, x)


def _cond(x: Any) -> Any:
    return lax.cond(x[0, 0, 0] > 3, lambda y: -y, lambda y: y, x)


@pytest.mark.parametrize("function", [_if, _float, _numpy, _all_close])
def test_a_decision_by_a_value_is_refused_with_its_line(function: Any) -> None:
    error = refused(function)

    assert "decides by the value of an array (test_jax.py, line" in error.problem
    assert f"line {function.__code__.co_firstlineno + 1})" in error.problem


@pytest.mark.parametrize(("function", "word"), [(_while, "while"), (_cond, "cond")])
def test_a_branch_by_a_value_is_refused(function: Any, word: str) -> None:
    assert word in refused(function).problem


def run(function: Callable[..., Any], given: Any) -> Any:
    """Return the answers of the step graph of a function of timesteps, in one batch; `given` has one row for each."""
    made = convert(StepSpec(function, inputs={"x": given[:, None]}, time_axis=1), name="m")
    step = StepModel(made.proto.SerializeToString(), made.manifest)
    return next(iter(step.step({"x": given}, step.initial_states(len(given)))[0].values()))


ENDS = np.array([0.0, -0.0, 1e-30, -1e-8, 1.0, -1.0, 3e38, np.inf, -np.inf, np.nan, 90.0, 2.5], np.float32)


@pytest.mark.parametrize("function", [jnp.log1p, jnp.expm1, jnp.cbrt, jax.nn.sigmoid, jax.scipy.special.erfc])
def test_a_function_of_one_number_keeps_its_digits_at_the_ends(function: Any) -> None:
    np.testing.assert_allclose(run(function, ENDS[:, None])[:, 0], function(ENDS), rtol=2e-6, atol=1e-37)


def test_an_angle_is_that_of_jax_at_zeros_and_infinities() -> None:
    pairs = np.stack(np.meshgrid(ENDS, ENDS), -1).reshape(-1, 2)

    found = run(lambda x: jnp.arctan2(x[..., 0], x[..., 1])[..., None], pairs)

    np.testing.assert_allclose(found[:, 0], jnp.arctan2(pairs[:, 0], pairs[:, 1]), rtol=2e-6, atol=1e-37)


def test_a_divisor_of_zero_fails_no_other_row() -> None:
    given = np.array([[7, 0], [7, 2], [-7, 0], [-(2**31), -1]], np.int32)

    found = run(lambda x: jnp.stack([lax.div(x[..., 0], x[..., 1]), lax.rem(x[..., 0], x[..., 1])], -1), given)

    assert found.tolist() == [[-1, 7], [3, 1], [-1, -7], [-(2**31), 0]]


def test_a_float_becomes_the_nearest_integer_that_there_is() -> None:
    given = np.array([[3e9], [-3e9], [np.nan], [2.9]], np.float32)

    assert run(lambda x: x.astype(jnp.int32), given).tolist() == [[2**31 - 1], [-(2**31)], [0], [2]]


def test_an_id_outside_a_table_is_nan_in_its_own_row_alone() -> None:
    given = np.array([[2], [11], [-1], [-12]], np.int32)

    found = run(lambda x: jnp.take(jnp.arange(11.0), x, axis=0), given)

    np.testing.assert_array_equal(found, [[2], [np.nan], [10], [np.nan]])


@pytest.mark.parametrize(
    "function", [lambda x: jnp.prod(x, -1, keepdims=True), lambda x: x @ jnp.ones((3, 2), jnp.int32)]
)
def test_products_of_whole_numbers_that_may_overflow_are_refused(function: Any) -> None:
    assert "whole numbers" in refused(function, inputs={"x": np.zeros((2, 20, 3), np.int32)}).problem


def test_a_function_that_draws_random_numbers_is_refused_with_its_line() -> None:
    def noisy(x: Any) -> Any:
        return x + jax.random.normal(jax.random.key(0), x.shape)

    error = refused(noisy)

    assert "draws random numbers, so that no retry could get the same answer (test_jax.py, line" in error.problem


def test_a_row_in_a_batch_has_the_sigmoid_of_the_row_alone_bit_for_bit() -> None:
    spec = StepSpec(jax.nn.sigmoid, inputs={"x": example()}, time_axis=1)

    _, report = verify_model(convert(spec, name="m"))

    assert report.max_abs_alone == 0


def _longer(x: Any) -> Any:
    return x if x.shape[1] > 2500 else -x


def _loop(x: Any) -> Any:
    return jnp.stack([x[:, n] * 2 for n in range(x.shape[1])], axis=1)


def _table(x: Any) -> Any:
    return x + jnp.ones((20, 3))


@pytest.mark.parametrize("function", [_longer, _loop])
def test_a_decision_by_the_length_is_refused_with_its_line(function: Any) -> None:
    assert f"(test_jax.py, line {function.__code__.co_firstlineno + 1})" in refused(function).problem


def test_a_table_of_the_examples_length_is_refused() -> None:
    assert "fails on arrays of open length" in refused(_table).problem


def test_a_table_of_a_declared_length_is_looked_up_by_the_position() -> None:
    table = np.random.default_rng(3).standard_normal((20, 3)).astype(np.float32)
    spec = StepSpec(lambda x: x + jnp.asarray(table)[: x.shape[1]], inputs={"x": example()}, time_axis=1, length=20)

    content, report = verify_model(convert(spec, name="m"))

    assert report.parity.steps == 20
    assert [state.input for state in StepModel(content).manifest.states] == ["timesteps"]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x[:, ::-1], "rev"),
        (lambda x: jnp.roll(x, -1, axis=1), ""),
        (lambda x: x - x.mean(axis=1, keepdims=True), ""),
        (lambda x: x[:, :, None] * x[:, None], "shape"),
    ],
    ids=["backwards", "ahead", "mean of the sequence", "two axes of time"],
)
def test_what_looks_ahead_is_refused(function: Any, reason: str) -> None:
    assert reason in str(refused(function)) or refused(function).layer


@pytest.mark.parametrize(
    "hostile",
    [
        {"inputs": {"x": np.zeros((2, 0, 3), np.float32)}},
        {"inputs": {"x": np.zeros(3, np.float32)}},
        {"inputs": {"x": ["a"]}},
        {"time_axis": 2},
        {"output_names": ["a", "b", "c"]},
    ],
    ids=["no timesteps", "one axis", "texts", "another axis", "names"],
)
def test_wrong_specs_are_errors_with_what_to_do(hostile: dict[str, Any]) -> None:
    with pytest.raises(StepwellError) as caught:
        convert(StepSpec(lambda x: x, **{"inputs": {"x": example()}, "time_axis": 1, **hostile}), name="m")

    assert caught.value.fix


_PRIMITIVES: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(jnp, name) for name in (
        "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh",
        "exp", "exp2", "expm1", "log", "log1p", "sqrt", "cbrt", "abs", "sign", "floor", "ceil", "round", "isfinite",
        "square", "reciprocal", "isnan",
    )},
    **{n: getattr(jax.nn, n) for n in ("relu", "gelu", "silu", "softplus", "elu", "selu", "soft_sign")},
    "erf": jax.scipy.special.erf, "rsqrt": lax.rsqrt, "cube": lambda x: x**3, "inverse square": lambda x: x**-2,
    "mod": lambda x: jnp.mod(x, 0.7), "remainder": lambda x: lax.rem(x, 0.7), "clip": lambda x: jnp.clip(x, -1, 2),
    "floor division": lambda x: x // 0.3, "atan2": lambda x: jnp.arctan2(x, x[..., ::-1]),
    "round away": lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
    "integer division": lambda x: (jnp.clip(x * 9, -1e6, 1e6).astype(jnp.int32) // -4).astype(jnp.float32),
    "bits": lambda x: (jnp.clip(x * 9, 0, 1e6).astype(jnp.int32) & 5 ^ 3).astype(jnp.float32),
    "sorted": lambda x: jnp.sort(x, axis=-1), "largest": lambda x: lax.top_k(x, 2)[0],
    "taken along": lambda x: jnp.take_along_axis(x, jnp.argmax(x, axis=-1, keepdims=True), axis=-1),
    "where": lambda x: jnp.where(x > 0, x, jnp.where(x < -1, 0, 1)),
    "padded": lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, 2)), constant_values=3),
    "norm": lambda x: x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6),
    "any": lambda x: jnp.any(x > 1, axis=-1, keepdims=True),
}  # fmt: skip


_OF_FINITE = {"atan2", "integer division", "bits", "taken along"}
"""Numbers that are not finite have no such result, or another one where onnxruntime looks for the largest."""

_OF_SIGMOID = {"silu", "gelu"}
"""A sigmoid, and 1 + tanh, are as exact as their largest value, not for what is nearly 0."""


def test_primitives_equal_those_of_jax_at_every_size() -> None:
    """Within 16 units in the last place of the result, NaN and infinity where JAX has them."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.standard_normal((200, 3)) * scale for scale in SCALES]).astype(np.float32)
    rows = np.concatenate([rows, np.array([[0, 0, 1], [0.5, 1.5, -2.5]], np.float32)])
    of_any = {name: function for name, function in _PRIMITIVES.items() if name not in _OF_FINITE}
    odd = np.concatenate([rows, np.array([[-0.0, -np.inf, np.inf], [np.nan, 1, 2]], np.float32)])

    assert _beyond(_PRIMITIVES, rows) == []
    assert _beyond(of_any, odd) == []


def _beyond(functions: Mapping[str, Callable[[Any], Any]], rows: Array) -> list[str]:
    """Return the names of the functions of which the step graph, one for all of them, gives something else."""
    spec = StepSpec(lambda x: [function(x) for function in functions.values()], inputs={"x": example()}, time_axis=1)
    made = convert(spec, name="m")
    model = StepModel(made.proto.SerializeToString(), made.manifest)
    found = model.step({"x": rows}, model.initial_states(len(rows)))[0]
    names = [output.name for output in made.manifest.outputs]
    wanted = {name: np.asarray(function(jnp.asarray(rows)[:, None]))[:, 0] for name, function in functions.items()}
    pairs = zip(wanted.items(), names, strict=True)
    return [name for (name, numbers), output in pairs if not _is_same(name, found[output], numbers)]


def _is_same(name: str, found: Array, wanted: Array) -> bool:
    if found.dtype != wanted.dtype or wanted.dtype.kind != "f":
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    is_finite = np.isfinite(wanted)
    off = np.abs(found[is_finite].astype(float) - wanted[is_finite])
    least = 1.0 if name in _OF_SIGMOID else 1e-30
    is_near = off <= 16 * np.finfo(np.float32).eps * np.maximum(np.abs(wanted[is_finite]), least)
    return bool(is_near.all()) and np.array_equal(found[~is_finite], wanted[~is_finite], equal_nan=True)
