"""Nothing of a model or a machine is reported to anyone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

MODEL = "service/stepwell/addons/demo/models/activity.onnx"
LOAD = f"import pathlib, stepwell_export as m; m.StepModel(pathlib.Path('{MODEL}'))"


def test_loading_a_model_leaves_no_reports_in_the_home_folder(tmp_path: Path) -> None:
    """onnxruntime keeps the reports that it means to send under `~/.cache` (seen with 1.32 on Linux)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}

    subprocess.run([sys.executable, "-c", LOAD], cwd=REPOSITORY, env={**environment, "HOME": str(tmp_path)}, check=True)

    assert list(tmp_path.iterdir()) == []
