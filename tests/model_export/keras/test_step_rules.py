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
    """The mean of each feature over the timesteps so far, by a product with a matrix of timesteps."""

    def call(self, x: Any) -> Any:
        places = ops.arange(ops.shape(x)[1])
        weights = ops.cast(places[:, None] >= places, x.dtype)
        weights = weights / ops.sum(weights, axis=1, keepdims=True)
        return ops.einsum("ts,bsf->btf", weights, x)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


class Steeper(RunningMean):
    """A subclass that computes something else."""

    def call(self, x: Any) -> Any:
        return 3 * super().call(x)


class Renamed(RunningMean):
    """A subclass that computes as its parent does."""


def zeros(_: Any, x: Any) -> Any:
    return {"total": ops.zeros_like(x), "count": ops.zeros_like(x[:, :1])}


def running_mean(_: Any, state: Any, x: Any) -> Any:
    total, count = state["total"] + x, state["count"] + 1
    return {"total": total, "count": count}, total / count


def test_a_layer_with_a_rule_is_stepped_and_equal() -> None:
    register_step_rule(RunningMean, start=zeros)(running_mean)

    graph, report = export_model(of(lambda x: L.GRU(3)(RunningMean(name="mean")(x))), name="m")

    assert report.parity.max_abs < 1e-5
    assert sum(state.input.startswith("mean.") for state in StepModel(graph).manifest.states) == 2


def test_a_rule_may_call_other_layers_and_needs_no_state() -> None:
    class Gated(keras.Layer):  # type: ignore[misc]  # Keras has no types
        def __init__(self) -> None:
            super().__init__()
            self.gate = L.Dense(4, "sigmoid")

        def call(self, x: Any) -> Any:
            return self.gate(x) * x

    register_step_rule(Gated)(lambda layer, state, x: (state, layer.gate(x) * x))

    assert export_model(of(Gated()), name="m")[1].parity.max_abs < 1e-5


def test_a_rule_that_takes_all_rows_together_is_refused_by_its_layer() -> None:
    register_step_rule(RunningMean)(lambda layer, state, x: (state, x / ops.maximum(ops.max(x, axis=0), 80.0)))

    with pytest.raises(RefusedModelError) as caught:
        export_model(of(lambda x: L.GRU(3)(RunningMean(name="loud")(x))), name="m")
    assert "Layer 'loud' (RunningMean) reduces over the rows of the batch" in caught.value.problem


def test_a_subclass_that_computes_as_its_parent_has_its_parents_rule() -> None:
    register_step_rule(RunningMean, start=zeros)(running_mean)

    assert export_model(of(Renamed()), name="m")[1].parity.max_abs < 1e-5
    with pytest.raises(RefusedModelError, match=r"\(Steeper\)"):
        export_model(of(Steeper()), name="m")


def test_a_rule_that_computes_something_else_fails_verification() -> None:
    from stepwell_export.runtime.errors import ParityError

    register_step_rule(RunningMean)(lambda layer, state, x: (state, x))

    with pytest.raises(ParityError, match="first differs at timestep 2"):
        export_model(of(RunningMean()), name="m")


def test_without_a_rule_the_refusal_names_how_to_write_one() -> None:
    with pytest.raises(RefusedModelError) as caught:
        export_model(of(RunningMean()), name="m")

    assert "write a step rule for RunningMean: stepwell.register_step_rule" in caught.value.fix


def test_a_loop_over_timesteps_needs_no_rule() -> None:
    class Scanned(RunningMean):
        def call(self, x: Any) -> Any:
            def step(carried: Any, now: Any) -> Any:
                total, count = carried[0] + now, carried[1] + 1
                return (total, count), total / count

            start = (ops.zeros_like(x[:, 0]), ops.zeros_like(x[:, 0]))
            return ops.swapaxes(ops.scan(step, start, ops.swapaxes(x, 0, 1))[1], 0, 1)

    assert export_model(of(Scanned()), name="m")[1].parity.max_abs < 1e-5


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
    assert next(state.input for state in StepModel(exported.path).manifest.states).startswith("leaky.")
    assert np.isfinite(exported.report.max_abs_alone)
