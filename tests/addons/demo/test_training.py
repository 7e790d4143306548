"""The documented commands reproduce the demo's model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stepwell.addons.demo.recordings import Recordings

pytest.importorskip("keras", reason="needs Keras: pip install 'stepwell[keras]'")
pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[3] / "examples" / "activity"


def script(name: str) -> ModuleType:
    """Load a script of the example as a module."""
    spec = importlib.util.spec_from_file_location(f"activity_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the model was trained, exported and labelled."""
    import jax

    from stepwell_export.exporter import export_source

    folder = tmp_path_factory.mktemp("activity")
    config: Any = jax.config
    before = config.read("jax_disable_most_optimizations")
    config.update("jax_disable_most_optimizations", False)  # training takes longer than compiling with them
    script("train").main(folder / "model.keras", folder / "recordings.npz")
    config.update("jax_disable_most_optimizations", before)
    export_source(str(folder / "model.keras"), folder / "activity.onnx")
    script("label").main(folder / "activity.onnx")
    return folder


def test_a_newly_trained_model_recognizes_the_held_out_activities(folder: Path) -> None:
    again = Recordings.load(folder / "recordings.npz")

    assert (again.expected[:, -1].argmax(-1) == again.labels).mean() >= 0.9


def test_the_held_out_recordings_are_the_committed_ones(folder: Path) -> None:
    np.testing.assert_array_equal(Recordings.load(folder / "recordings.npz").x, Recordings.load().x)


def test_the_exported_model_is_labelled_and_within_its_tolerance(folder: Path) -> None:
    from stepwell_export.runtime.step_model import StepModel

    manifest = StepModel(folder / "activity.onnx").manifest
    assert (manifest.inputs[0].model_extra or {})["labels"][0] == "accel x"
    assert manifest.verified is not None
    assert manifest.verified.max_abs <= 1e-5
