"""Something rare in the original that the step graph lacks is found, or makes the proof weak by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import stepwell
from stepwell_export.runtime.errors import ParityError, WeakProofError
from stepwell_export.runtime.step_model import StepModel
from tests import graphs
from tests.model_export.verify import rare

FRAMEWORKS = [
    pytest.param("torch", marks=pytest.mark.torch),
    "keras",
    "onnx",
]


@pytest.mark.parametrize("case", rare.CASES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_rare_event_that_the_step_graph_lacks_is_found(framework: str, case: str) -> None:
    with pytest.raises(ParityError, match="first differs at timestep"):
        rare.compared(rare.ORIGINALS[framework](case))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_comparison_that_no_input_reaches_makes_the_proof_weak_by_name(framework: str) -> None:
    report = rare.compared(rare.ORIGINALS[framework]("out_of_reach"))

    assert report.weak
    assert any(reason.startswith("Greater") and "never true" in reason for reason in report.reasons)


@pytest.mark.torch
def test_a_lag_that_is_longer_than_what_is_compared_makes_the_proof_weak() -> None:
    report = rare.compared(rare.in_torch("lag_of_a_day"))

    assert [reason.endswith("was never over 86,400 timesteps") for reason in report.reasons] == [True]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_original_whose_decisions_go_both_ways_is_not_weak(framework: str) -> None:
    report = rare.compared(rare.ORIGINALS[framework]("nothing"))

    assert not report.weak
    assert report.covered.decisions >= 1


# ------------------------------------------------------------------------------------------------ exports


def torch_source(folder: Path) -> Any:
    pytest.importorskip("torch", reason="torch is not installed")
    import torch

    class Alarm(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def forward(self, x: Any) -> Any:
            return x.cumsum(1) + (torch.tanh(x) > 1.5).float()

    return stepwell.StepSpec(Alarm(), inputs={"x": torch.zeros(2, 7, 2)}, time_axis=1, output_names=["y"])


def keras_source(folder: Path) -> Any:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    x = keras.Input((None, 2), name="x")
    alarm = keras.ops.cast(keras.ops.greater(keras.ops.tanh(x), 1.5), "float32")
    return keras.Model(x, keras.layers.Add(name="y")([keras.ops.cumsum(x, axis=1), alarm]))


def onnx_source(folder: Path) -> Any:
    text = (
        "g (float[B, T, 2] x) => (float[B, T, 2] y) "
        "{ s = CumSum (x, one) t = Tanh (x) b = Greater (t, huge) a = Cast <to = 1> (b) y = Add (s, a) }"
    )
    weights = {"one": np.array(1), "huge": np.array(1.5, np.float32)}
    path = folder / "alarm.onnx"
    onnx.save(onnx.load_from_string(graphs.graph_from_text(text, weights)), path)
    return str(path)


SOURCES = [pytest.param(torch_source, marks=pytest.mark.torch), keras_source, onnx_source]


@pytest.mark.parametrize("source", SOURCES)
def test_an_export_whose_comparison_was_never_true_writes_nothing(
    tmp_path: Path, source: Callable[[Path], Any]
) -> None:
    with pytest.raises(WeakProofError, match=r"Greater .* was never true"):
        stepwell.export(source(tmp_path), tmp_path / "out" / "m.onnx")

    assert not (tmp_path / "out" / "m.onnx").exists()


def test_own_sequences_settle_it_and_the_manifest_has_what_was_not_covered(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).standard_normal((2, 40, 2)).astype(np.float32))

    stepwell.export(onnx_source(tmp_path), tmp_path / "m.onnx", verify=tmp_path / "own.npz")

    verified = StepModel(tmp_path / "m.onnx").manifest.model_dump()["verified"]
    assert [text.endswith("was never true") for text in verified["covered"]["one_sided"]] == [True]
