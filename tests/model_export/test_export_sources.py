"""What a SOURCE may be, and what is said about any other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell_export.export_sources import load_source
from stepwell_export.runtime.errors import FileError, MissingExtraError, ModelLoadError, RefusedModelError
from tests import graphs

BROKEN = '    raise ValueError("no data today")'
ZOO = f"""
import keras
from stepwell_export import StepSpec
from stepwell_export.runtime.errors import TensorError

def small():
    return keras.Sequential([keras.Input((None, 2)), keras.layers.SimpleRNN(3), keras.layers.Dense(1)])

class Shelf:
    small = staticmethod(small)

ready = small()

def spec():
    return StepSpec("module", inputs={{"x": 0}}, time_axis=1)

def number():
    return 42

def broken():
{BROKEN}

def own_error():
    raise TensorError("found 3, expected 4.", fix="Send 4.")

not_callable = "text"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The caller's folder, with a module `zoo_of_tests` in it."""
    (tmp_path / "zoo_of_tests.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("zoo_of_tests", None)


def refusal(source: str) -> RefusedModelError:
    with pytest.raises(RefusedModelError) as caught:
        load_source(source)
    assert caught.value.code == "model_refused"
    return caught.value


@pytest.mark.parametrize("name", ["small", "Shelf.small", "ready"])
def test_a_callable_or_a_model_in_the_callers_folder_is_found(here: Path, name: str) -> None:
    assert load_source(f"zoo_of_tests:{name}").output_shape == (None, 1)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_file_of_keras_is_loaded(here: Path, suffix: str) -> None:
    model = load_source("zoo_of_tests:small")
    model.save(here / f"small.{suffix}")

    assert load_source(f"small.{suffix}").count_params() == model.count_params()


@pytest.mark.parametrize("name", ["small.keras", "small.h5", "small.onnx"])
def test_a_missing_file_is_told(here: Path, name: str) -> None:
    with pytest.raises(FileError) as caught:
        load_source(name)

    assert name in caught.value.problem


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_file_that_is_no_model_is_told(here: Path, suffix: str) -> None:
    (here / f"text.{suffix}").write_text("no model")
    with pytest.raises(ModelLoadError):
        load_source(f"text.{suffix}")


def test_an_onnx_file_is_taken_as_it_is(here: Path) -> None:
    (here / "graph.onnx").write_bytes(graphs.fold()[0])

    assert load_source("graph.onnx") == Path("graph.onnx")


@pytest.mark.parametrize("suffix", ["pt", "tflite", "safetensors"])
def test_another_frameworks_file_is_refused_by_what_it_is(here: Path, suffix: str) -> None:
    (here / f"model.{suffix}").write_bytes(b"?")

    assert "package.module:callable" in refusal(f"model.{suffix}").fix


def test_a_step_spec_is_found(here: Path) -> None:
    assert load_source("zoo_of_tests:spec").time_axis == 1


@pytest.mark.parametrize(("name", "kind"), [("number", "builtins.int"), ("not_callable", "builtins.str")])
def test_what_is_no_model_is_told_by_its_type(here: Path, name: str, kind: str) -> None:
    assert f"gives {kind}; expected a keras.Model, a stepwell.StepSpec or" in refusal(f"zoo_of_tests:{name}").problem


def test_a_callable_that_fails_is_told_with_its_line(here: Path) -> None:
    problem = refusal("zoo_of_tests:broken").problem

    assert "ValueError: no data today" in problem
    assert f"zoo_of_tests.py, line {ZOO.splitlines().index(BROKEN) + 1}" in problem


def test_an_error_of_our_own_passes_as_it_is(here: Path) -> None:
    with pytest.raises(Exception, match="found 3, expected 4") as caught:
        load_source("zoo_of_tests:own_error")

    assert type(caught.value).__name__ == "TensorError"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("no_such_zoo:small", "no module 'no_such_zoo'"),
        ("no_such_zoo.sub:small", "no module 'no_such_zoo'"),
        ("zoo_of_tests:large", "zoo_of_tests has no 'large'"),
        ("zoo_of_tests:Shelf.large", "has no 'Shelf.large'"),
        ("zoo_of_tests", "expected a model file or package.module:callable"),
        ("zoo_of_tests:", "expected a model file or package.module:callable"),
        (":small", "expected a model file or package.module:callable"),
        (".", "is a folder"),
        ("", "SOURCE is ''"),
    ],
)
def test_what_cannot_be_found_is_told(here: Path, source: str, told: str) -> None:
    assert told in refusal(source).problem


def test_a_module_that_fails_is_told_with_its_line(here: Path) -> None:
    (here / "fails_early.py").write_text("\nraise ValueError('too early')\n")
    problem = refusal("fails_early:small").problem

    assert "ValueError: too early" in problem
    assert "fails_early.py, line 2" in problem


@pytest.mark.parametrize("script", ["sys.exit(0)", "def build():\n    sys.exit(0)"], ids=["module", "callable"])
def test_a_script_that_ends_itself_does_not_end_the_command_as_if_all_was_done(here: Path, script: str) -> None:
    (here / "ends_early.py").write_text(f"import sys\n{script}\n")
    sys.modules.pop("ends_early", None)

    assert "SystemExit: 0" in refusal("ends_early:build").problem


def test_a_module_that_misses_a_package_is_told_by_that_package(here: Path) -> None:
    (here / "needs_more.py").write_text("import no_such_package\n")

    assert "No module named 'no_such_package'" in refusal("needs_more:small").problem


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("onnxscript", "torch"), ("h5py", "keras")])
def test_a_package_that_an_extra_brings_is_told_with_the_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    (here / "needs_an_extra.py").write_text(f"def make():\n    import {package}\n")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtraError, match=f"needs {package}, which is not installed") as caught:
        load_source("needs_an_extra:make")

    assert f"pip install 'stepwell[{extra}]'" in caught.value.fix
    sys.modules.pop("needs_an_extra")


OWN_WAVE = """
from stepwell_export.spec import StepSpec

def build():
    return StepSpec("module", inputs={"x": 0}, time_axis=1)
"""


@pytest.mark.parametrize("before", ["", "import wave; "], ids=["not_imported", "imported"])
def test_the_callers_file_goes_before_a_module_of_python_that_has_its_name(tmp_path: Path, before: str) -> None:
    """The clone's folder may stand on the path already, at its end, as an editable install puts it."""
    (tmp_path / "wave.py").write_text(OWN_WAVE)
    here = str(tmp_path)
    code = (
        f"import sys; {before}sys.path = [p for p in sys.path if p not in ('', {here!r})] + [{here!r}]; "
        "from stepwell_export.export_sources import load_source; print(type(load_source('wave:build')).__name__)"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, cwd=tmp_path)

    assert (done.stdout.strip(), done.stderr) == ("StepSpec", "")


def backend_chosen(folder: Path, **environment: str) -> str:
    """Return the backend that Keras takes in a process of its own, with its home in `folder`."""
    code = "from stepwell_export.keras import load_keras; import keras; print(keras.backend.backend())"
    environ = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environ |= {"KERAS_HOME": str(folder), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    return done.stdout.strip()


def test_keras_takes_a_backend_that_is_installed_whatever_its_settings_file_says(tmp_path: Path) -> None:
    """Keras writes "tensorflow" into that file by itself, also where there is no TensorFlow."""
    pytest.importorskip("jax", reason="JAX is not installed")
    (tmp_path / "keras.json").write_text('{"backend": "no_such_backend"}')

    assert backend_chosen(tmp_path) == "jax"


def test_a_backend_that_the_user_set_is_left_alone(tmp_path: Path) -> None:
    assert backend_chosen(tmp_path, KERAS_BACKEND="numpy") == "numpy"
