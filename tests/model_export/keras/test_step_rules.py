"""Step rules for layers of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.exporter import export_source
from stepwell_export.keras import register_step_rule
from stepwell_export.keras.own_layers import STEP_RULES
from stepwell_export.keras.rule_registry import Call
from stepwell_export.keras.sequence import export_keras
from stepwell_export.keras.value import Value
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_parts import L, of, ops

GUIDE = Path(__file__).parents[3] / "docs" / "step-rules.md"


@pytest.fixture(autouse=True)
def own_rules() -> Iterator[None]:
    """Forget the rules that a test registers."""
    before = dict(STEP_RULES)
    yield
    STEP_RULES.clear()
    STEP_RULES.update(before)


class RunningMean(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """The mean of each feature over the timesteps so far: cannot be stepped without a rule."""

    def call(self, x: Any) -> Any:
        def step(carried: Any, now: Any) -> Any:
            total, count = carried[0] + now, carried[1] + 1
            return (total, count), total / count

        zeros = ops.zeros_like(x[:, 0])
        _, means = ops.scan(step, (zeros, zeros), ops.swapaxes(x, 0, 1))
        return ops.swapaxes(means, 0, 1)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


class Steeper(RunningMean):
    """A subclass that computes something else."""

    def call(self, x: Any) -> Any:
        return 3 * super().call(x)


class Renamed(RunningMean):
    """A subclass that computes as its parent does."""


def running_mean(call: Call) -> Value:
    """A rule that emits ONNX operators."""
    x = call.value
    total, count = call.state("total", x.row), call.state("count", (1,))
    new_total, new_count = call.op("Add", total, x), call.op("Add", count, call.constant([1.0]))
    call.next_state(total, new_total)
    call.next_state(count, new_count)
    return x.like(call.op("Div", new_total, new_count))


def test_a_layer_with_a_rule_is_stepped_and_equal() -> None:
    register_step_rule(RunningMean)(running_mean)

    graph, report = export_model(of(lambda x: L.GRU(3)(RunningMean(name="mean")(x))), name="m")

    assert report.parity.max_abs < 1e-5
    assert [state.input for state in StepModel(graph).manifest.states][:2] == ["mean.total", "mean.count"]


def test_a_rule_may_be_written_with_keras_ops_alone() -> None:
    @register_step_rule(RunningMean)
    def rule(call: Call) -> Value:
        x, count = call.value, call.state("count", (1,))
        mean = call.state("mean", x.row)
        new_mean, new_count = call.run(lambda x, m, n: (m + (x - m) / (n + 1), n + 1), x, mean, count)
        call.next_state(mean, new_mean)
        call.next_state(count, new_count)
        return new_mean

    _, report = export_model(of(lambda x: L.Dense(2)(RunningMean()(x))), name="m")

    assert report.parity.max_abs < 1e-5


def test_a_constant_array_of_whole_numbers_keeps_its_dtype() -> None:
    @register_step_rule(RunningMean)
    def rule(call: Call) -> Value:
        picked = call.op("Gather", call.value, call.constant(np.array([3, 2, 1, 0])), axis=1)
        return call.value.like(call.op("Mul", picked, call.constant(2)))

    exported = export_keras(of(RunningMean()), name="m")

    x = np.arange(4, dtype=np.float32)[None]
    outputs, _ = StepModel(exported.proto.SerializeToString(), exported.manifest).step({"x": x}, {})
    np.testing.assert_array_equal(next(iter(outputs.values())), 2 * x[:, ::-1])


def test_a_rule_that_takes_all_rows_together_is_refused_by_its_layer() -> None:
    """Its nodes are not those of Keras, whose own rules never take the batch; seldom may it show."""

    @register_step_rule(RunningMean)
    def rule(call: Call) -> Value:
        largest = call.op("ReduceMax", call.value, call.constant(np.array([0])))
        return call.value.like(call.op("Div", call.value, call.op("Max", largest, call.constant([80.0]))))

    with pytest.raises(RefusedModelError) as caught:
        export_model(of(lambda x: L.GRU(3)(RunningMean(name="loud")(x))), name="m")
    assert "Layer 'loud' (RunningMean) reduces over the rows of the batch" in caught.value.problem


def test_a_rule_may_run_other_layers_by_their_rules() -> None:
    class Gated(keras.Layer):  # type: ignore[misc]  # Keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.gate = RunningMean(), L.Dense(4, "sigmoid")

        def call(self, x: Any) -> Any:
            return self.gate(x) * self.mean(x)

    register_step_rule(RunningMean)(running_mean)

    @register_step_rule(Gated)
    def gated(call: Call) -> Value:
        (gate,), (mean,) = call.run(call.layer.gate, call.value), call.run(call.layer.mean, call.value)
        return call.value.like(call.op("Mul", gate, mean))

    assert export_model(of(Gated()), name="m")[1].parity.max_abs < 1e-5


def test_a_cell_may_have_a_rule_as_well() -> None:
    class Decay(keras.Layer):  # type: ignore[misc]  # Keras has no types
        """Looks at numbers, so it cannot be traced."""

        state_size = output_size = 4

        def call(self, x: Any, states: Any) -> Any:
            level = states[0] * float(np.asarray(ops.convert_to_numpy(0.5))) + x
            if isinstance(x, keras.KerasTensor):
                raise TypeError("no symbols here")
            return level, [level]

        def compute_output_spec(self, x: Any, states: Any) -> Any:
            return keras.KerasTensor(x.shape), [keras.KerasTensor(x.shape)]

    @register_step_rule(Decay)
    def decay(call: Call) -> list[Value]:
        x, (level,) = call.args
        (new,) = call.run(lambda level, x: 0.5 * level + x, level, x)
        return [new, new]

    assert export_model(of(L.RNN(Decay(), return_sequences=True)), name="m")[1].parity.max_abs < 1e-5


def test_a_subclass_that_computes_as_its_parent_has_its_parents_rule() -> None:
    register_step_rule(RunningMean)(running_mean)

    assert export_model(of(Renamed()), name="m")[1].parity.max_abs < 1e-5
    with pytest.raises(RefusedModelError, match=r"\(Steeper\) cannot be stepped"):
        export_model(of(Steeper()), name="m")


def test_an_own_rule_wins_over_the_one_that_comes_with_the_exporter() -> None:
    @register_step_rule(L.ReLU)
    def refused(call: Call) -> Value:
        raise call.refuse("it is not wanted here", "Use tanh.")

    with pytest.raises(RefusedModelError, match="it is not wanted here") as caught:
        export_model(of(L.ReLU(name="odd")), name="m")

    assert caught.value.fix == "Use tanh."


def test_a_rule_that_computes_something_else_fails_verification() -> None:
    from stepwell_export.runtime.errors import ParityError

    register_step_rule(RunningMean)(lambda call: call.value)

    with pytest.raises(ParityError, match="first differs at timestep 2"):
        export_model(of(RunningMean()), name="m")


def test_a_state_without_a_next_value_is_told_by_its_name() -> None:
    @register_step_rule(RunningMean)
    def forgetful(call: Call) -> Value:
        call.state("total", call.value.row)
        return call.value

    with pytest.raises(RefusedModelError, match=r"State 'mean\.total' .* never gets a next value"):
        export_model(of(RunningMean(name="mean")), name="m")


def test_a_rule_that_returns_the_name_of_a_tensor_is_told_what_to_return() -> None:
    register_step_rule(RunningMean)(lambda call: call.op("Abs", call.value))

    with pytest.raises(RefusedModelError, match=r"its step rule returned \['mean/Abs'\]; expected a Value"):
        export_model(of(RunningMean(name="mean")), name="m")


def test_without_a_rule_the_refusal_names_how_to_write_one() -> None:
    with pytest.raises(RefusedModelError) as caught:
        export_model(of(RunningMean()), name="m")

    assert "register_step_rule" in caught.value.fix


def test_something_else_than_a_class_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="takes layer classes"):
        register_step_rule(running_mean)  # type: ignore[arg-type]  # the mistake


def test_registering_a_rule_imports_no_framework() -> None:
    code = (
        "import sys; from stepwell_export import register_step_rule; register_step_rule(object);"
        "print([m for m in ('keras', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_example_of_the_guide_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that docs/step-rules.md shows, given to `export` as package.module:callable."""
    (module,) = re.findall(r"```python\n# pump_model\.py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "pump_model.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)

    exported = export_source("pump_model:build", tmp_path / "pump.onnx")

    assert exported.report.parity.max_abs < 1e-5
    assert next(state.input for state in StepModel(exported.path).manifest.states) == "leaky.level"
    assert np.isfinite(exported.report.max_abs_alone)
