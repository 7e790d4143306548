"""`stepwell export package.module:callable`, where the callable returns a `StepSpec`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import MissingExtraError, RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_parts import torch, whole

pytestmark = pytest.mark.torch

GUIDE = Path(__file__).parents[3] / "docs" / "pytorch.md"

MODULE = """
import torch
from stepwell_export import StepSpec

class Pump(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(3, 5, batch_first=True), torch.nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0])

def whole():
    torch.manual_seed(0)
    return StepSpec(Pump(), inputs={"x": torch.zeros(2, 10, 3)}, time_axis=1, output_names=["wear"])

def stepwise():
    torch.manual_seed(0)
    return StepSpec(torch.nn.GRUCell(3, 5), inputs={"x": torch.zeros(2, 3)}, states={"h": torch.zeros(1, 5)})

def alone():
    return Pump()

ready = Pump()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The caller's folder, with a module `pumps_of_tests` in it."""
    (tmp_path / "pumps_of_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("pumps_of_tests", None)


def test_the_example_of_the_guide_exports(here: Path) -> None:
    """The module at the top of docs/pytorch.md, with weights that were saved as PyTorch does it."""
    (module,) = re.findall(r"save this as `pump_model.py`:\n\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (here / "pump_model_of_the_guide.py").write_text(module)
    sys.path.insert(0, str(here))
    torch.save(importlib.import_module("pump_model_of_the_guide").Pump().state_dict(), "pump.pt")

    manifest = StepModel(export_source("pump_model_of_the_guide:spec", here / "pump.onnx").path).manifest

    assert [state.input for state in manifest.states] == ["lstm.h", "lstm.c"]
    assert [output.name for output in manifest.outputs] == ["wear"]


def test_a_module_over_whole_sequences_is_written_with_its_report(here: Path) -> None:
    np.savez(here / "own.npz", x=np.ones((20, 3), np.float32))
    done = export_source("pumps_of_tests:whole", here / "pump.onnx", verify=here / "own.npz")
    manifest = StepModel(done.path).manifest

    assert [output.name for output in manifest.outputs] == ["wear"]
    assert manifest.verified == done.report.parity
    assert done.report.parity.against == f"torch {torch.__version__}"
    assert done.report.parity.sequences == ["random", "user"]
    assert manifest.reference is not None
    assert (manifest.reference.timesteps, manifest.reference.inputs["x[2]"].max) == (20, 1.0)


def test_a_module_that_gives_no_answer_besides_its_state_is_refused_and_nothing_written(here: Path) -> None:
    with pytest.raises(RefusedModelError, match="at least one output"):
        export_source("pumps_of_tests:stepwise", here / "pump.onnx")

    assert [path.name for path in here.iterdir() if path.suffix == ".onnx"] == []


@pytest.mark.parametrize("name", ["alone", "ready"])
def test_a_module_without_examples_is_told_to_give_them(here: Path, name: str) -> None:
    with pytest.raises(RefusedModelError, match="a PyTorch module alone") as caught:
        export_source(f"pumps_of_tests:{name}", here / "pump.onnx")

    assert "StepSpec(module" in caught.value.fix


def test_a_missing_package_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError) as caught:
        convert(whole(torch.nn.Linear(4, 2)), name="missing")

    assert "onnxscript" in caught.value.problem
    assert "stepwell[torch]" in caught.value.fix
    assert "\n" not in str(caught.value)


def test_a_spec_is_exported_from_python_without_a_module_to_name(tmp_path: Path) -> None:
    spec = whole(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh()))
    done = export_source(spec, tmp_path / "plain.onnx")

    assert StepModel(done.path).manifest.name == "plain"


def test_what_is_no_model_is_told_from_python_too(tmp_path: Path) -> None:
    with pytest.raises(RefusedModelError, match=r"builtins\.int; expected a keras\.Model, a stepwell\.StepSpec or"):
        export_source(42, tmp_path / "plain.onnx")
