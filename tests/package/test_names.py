"""`import stepwell` gives the public names, each of which is imported when it is first used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
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


@pytest.mark.parametrize("name", CONTRACT)
def test_a_name_of_the_contract_is_public(name: str) -> None:
    assert name in stepwell.__all__


@pytest.mark.parametrize("name", sorted(set(stepwell.__all__) - {"convert_onnx", "verify_model"}))
def test_a_public_name_can_be_imported(name: str) -> None:
    assert getattr(stepwell, name) is not None
    assert name in dir(stepwell)


@pytest.mark.parametrize("name", ["convert_onnx", "verify_model"])
def test_a_public_name_that_needs_onnx_can_be_imported(name: str) -> None:
    pytest.importorskip("onnx")

    assert getattr(stepwell, name) is not None


def test_the_version_is_that_of_the_installed_package() -> None:
    assert stepwell.__version__ == version("stepwell")


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Cliemt'"):
        stepwell.Cliemt  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", stepwell.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "python.md").read_text()


def test_python_m_stepwell_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "stepwell", "--version"], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, f"stepwell {version('stepwell')}\n")
