"""Skips the files of this folder where PyTorch is not installed; its table of operators is made once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

MISSING = [name for name in ("torch", "onnxscript") if find_spec(name) is None]


class SkippedFile(pytest.Module):
    """A test file that is skipped before it is imported: its imports already need PyTorch."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """Skip."""
        pytest.skip(f"{' and '.join(MISSING)}: not installed (STEPWELL_EXTRAS=torch)", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip each file of this folder if a package is missing; an `importorskip` here would end `pytest THIS_FOLDER`."""
    return SkippedFile.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="module", autouse=True)  # for these tests alone: others run in the same process
def one_table_of_operators() -> Iterator[None]:
    """Make the table from PyTorch's operators to ONNX once: PyTorch makes the same one for each export, in 0.25 s."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with patch.object(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))):
        yield
