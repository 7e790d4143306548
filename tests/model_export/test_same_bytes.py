"""A model exported twice is one file, whatever else the machine does and however Python orders its sets."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from stepwell_export.exporter import export_source
from tests.model_export.streaming.zoo_parts import batch_first

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S = 0.05

EXPORT = "import sys; from pathlib import Path; from stepwell_export.exporter import export_source as e; "
EXPORT += "e(sys.argv[1], Path(sys.argv[2]), name='m')"

KERAS = """
import keras
import numpy as np

def build():
    keras.utils.clear_session()  # names of layers are counted from the start
    wide = keras.layers.GRU(200, return_sequences=True)
    layers = [keras.Input((None, 8)), wide, keras.layers.Conv1D(8, 3, padding="causal")]
    model = keras.Sequential([*layers, keras.layers.LSTM(16), keras.layers.Dense(4, activation="softmax")])
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.2, weight.shape) for weight in model.get_weights()])
    return model
"""

TORCH = """
import torch
from stepwell_export import StepSpec

class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(4, 48, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(48, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])

def build():
    torch.manual_seed(1)
    return StepSpec(Module(), inputs={"x": torch.randn(2, 9, 4)}, time_axis=1)
"""


def exported_on_a_busy_machine(source: str, folder: Path) -> bytes:
    """Return what a process of its own writes, which is stopped again and again, and orders sets in another way."""
    target = folder / "busy" / "m.onnx"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "2"}
    command = [sys.executable, "-c", EXPORT, source, str(target)]
    with subprocess.Popen(command, env=environ, cwd=folder) as process:
        while not ends_within(process, 4 * PAUSE_S):
            process.send_signal(signal.SIGSTOP)
            ends_within(process, PAUSE_S)
            process.send_signal(signal.SIGCONT)
    assert process.returncode == 0
    return target.read_bytes()


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within a time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caller's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def assert_one_file(source: str, folder: Path) -> None:
    """Export twice: here, and as on a busy machine."""
    path = export_source(source, folder / "calm" / "m.onnx", name="m").path

    assert exported_on_a_busy_machine(source, folder) == path.read_bytes()


def test_a_sequence_graph_exported_twice_is_one_file(here: Path) -> None:
    wide = {"W": (1, 600, 4), "R": (1, 600, 200), "B": (1, 1200), "D": (200, 5)}
    model = batch_first("yg = GRU <hidden_size = 200> (xt, W, R, B)\nyt = MatMul (yg, D)", **wide)
    onnx.save(model, str(here / "wide.onnx"))

    assert_one_file("wide.onnx", here)


@pytest.mark.slow
def test_a_keras_model_exported_twice_is_one_file(here: Path) -> None:
    pytest.importorskip("keras", reason="Keras is not installed")
    (here / "own_model.py").write_text(KERAS)

    assert_one_file("own_model:build", here)


@pytest.mark.torch
def test_a_module_exported_twice_is_one_file(here: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra `torch`)")
    (here / "own_module.py").write_text(TORCH)

    assert_one_file("own_module:build", here)
