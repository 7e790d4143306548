"""A model that stages stand around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.model_export.streaming.zoo_parts import graph


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A running sum `y` over rows of 2, `x`: its answers show every input."""
    path = tmp_path / "sums.onnx"
    onnx.save(graph("(float[b, t, 2] x) => (float[b, t, 2] y) { y = CumSum (x, a) }", a=np.int64(1)), path)
    return path
