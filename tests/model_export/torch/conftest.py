"""Skips the files of this folder where PyTorch is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

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
