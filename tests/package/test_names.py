"""`import stepwell` gives the public names, each of which is imported when it is first used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import stepwell

ROOT = Path(__file__).parents[2]
HEAVY = {"fastapi", "httpx2", "jax", "keras", "numpy", "onnx", "onnxruntime", "redis", "torch"}
CONTRACT = ("Client", "AsyncClient", "export", "adopt", "StepSpec", "Pipeline", "register_step_rule", "StepModel")


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages that a Python process has after running some code."""
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


def test_importing_stepwell_loads_nothing_else() -> None:
    assert loaded_by("import stepwell; dir(stepwell)") & (HEAVY | {"stepwell_client", "stepwell_export"}) == set()


def test_the_client_loads_nothing_of_the_server_or_the_exporter() -> None:
    assert loaded_by("import stepwell; stepwell.Client") & HEAVY == {"httpx2", "numpy"}


def test_a_spec_loads_no_framework() -> None:
    """A training script that returns a `StepSpec` needs no onnxruntime."""
    assert loaded_by("import stepwell; stepwell.StepSpec") & HEAVY <= {"numpy"}


def test_each_public_name_can_be_imported_and_is_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    need_onnx = set() if find_spec("onnx") else {"convert_onnx", "verify_model"}

    assert set(CONTRACT) <= set(stepwell.__all__) <= set(dir(stepwell))
    assert [name for name in {*stepwell.__all__} - need_onnx if getattr(stepwell, name) is None] == []
    assert [name for name in stepwell.__all__ if f"`{name}`" not in page] == []


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Cliemt'"):
        stepwell.Cliemt  # type: ignore[attr-defined]  # noqa: B018


def test_python_m_stepwell_is_the_program_with_the_version_of_the_package() -> None:
    done = subprocess.run([sys.executable, "-m", "stepwell", "--version"], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, f"stepwell {version('stepwell')}\n")
    assert stepwell.__version__ == version("stepwell")
