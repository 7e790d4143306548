"""An export of large weights keeps them in memory few times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MOST = 6
"""Times the weights: a file as it is parsed and read, the original's session, the step graph's, and some room."""

PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from stepwell_export.exporter import export_source
from tests.model_export.streaming.zoo_parts import graph


def made(units):
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.normal(0, 0.1, (1, 4 * units, 4)), "R": rng.normal(0, 0.01, (1, 4 * units, units)),
        "V": rng.normal(0, 0.1, (units, 2)),
    }
    text = f\"\"\"(float[b, t, 4] x) => (float[b, t, 2] y) {{
        first = Transpose <perm = [1, 0, 2]> (x)
        all, h, c = LSTM <hidden_size = {units}> (first, W, R)
        one = Constant <value_ints = [1]> ()
        rows = Squeeze (all, one)
        answers = Transpose <perm = [1, 0, 2]> (rows)
        y = MatMul (answers, V)
    }}\"\"\"
    return graph(text, **{name: value.astype(np.float32) for name, value in weights.items()})


def kilobytes(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what + ":"))


folder = Path(sys.argv[1])
sizes = {"small": 8, "large": 1200}
for name, units in sizes.items():
    (folder / f"{name}.onnx").write_bytes(made(units).SerializeToString())
for name in sizes:
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    export_source(folder / f"{name}.onnx", folder / f"{name}.step.onnx", accept_weak=True)
print((kilobytes("VmHWM") - before) * 1024 / (folder / "large.onnx").stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process")
def test_an_export_keeps_large_weights_few_times(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, capture_output=True, text=True)

    assert float(done.stdout) < MOST
