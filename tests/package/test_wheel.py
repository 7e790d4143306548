"""The wheel, installed into an environment of its own: one package, and everything works outside a clone."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold_reference
from tests.package.environment import CLEAN, ROOT, Environment, build, install, serve
from tests.processes import ServiceProcess

UNTYPED = "fastapi.*,jax.*,keras.*,onnx.*,pydantic.*,redis.*,rich.*,starlette.*,torch.*,typer.*,uvicorn.*"
"""Packages that the type checker leaves out: it would read them for a minute, and no public type is from them."""

pytest.importorskip("hatchling", reason="hatchling is not installed; the extra dev has it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture(scope="module")
def serving(installed: Environment) -> Iterator[ServiceProcess]:
    """The installed program with two workers, which vets the models as it would for its users."""
    with serve(installed, "--workers", "2") as one:
        yield one


# -------------------------------------------------------------------- what is in it


def test_the_wheel_has_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}

    assert folders == {"stepwell", f"{wheel.name.split('-py3')[0]}.dist-info"}


def test_a_wheel_of_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    again = build("wheel", source, tmp_path / "wheel")

    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {i.filename: i.CRC for i in second.infolist()}


def test_what_is_built_can_be_published(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("twine", reason="twine is not installed; the extra dev has it")
    files = [str(wheel), str(build("sdist", ROOT, tmp_path))]

    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_an_editable_install_is_the_clone(tmp_path: Path) -> None:
    editable = install(tmp_path / "venv", build("wheel:editable", ROOT, tmp_path))

    code = "import stepwell, service; print(stepwell.__file__, service.__file__, stepwell.Client.__module__)"
    done = editable.run("python", "-c", code)

    assert done.stdout == f"{ROOT / 'stepwell.py'} {ROOT / 'service' / '__init__.py'} stepwell_client.sync\n", (
        done.stderr
    )
    assert editable.run("stepwell", "--version").returncode == 0


# -------------------------------------------------------------------- installed


@pytest.mark.parametrize("name", ["service", "model_export"])
def test_the_environment_gets_no_package_of_a_common_name(installed: Environment, name: str) -> None:
    done = installed.run("python", "-c", f"import {name}")

    assert f"No module named '{name}'" in done.stderr


def test_the_public_names_come_from_the_wheel(installed: Environment) -> None:
    code = "import stepwell; print(stepwell.__file__, stepwell.Client.__module__, *map(type, map(stepwell.__getattr__, "
    code += "['export', 'adopt', 'StepSpec', 'Pipeline', 'register_step_rule', 'StepModel', '__version__'])))"
    done = installed.run("python", "-c", code)

    assert done.returncode == 0, done.stderr
    assert str(installed.bin.parent) in done.stdout
    assert "stepwell.service.client.sync" in done.stdout


@pytest.mark.parametrize("command", [["stepwell"], ["python", "-m", "stepwell"]])
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_program_runs(installed: Environment, command: list[str], argument: str) -> None:
    done = installed.run(*command, argument)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_has_no_tests_and_says_so(installed: Environment) -> None:
    done = installed.run("stepwell", "test")

    assert done.returncode == 3
    assert "expected a clone" in done.stderr


def test_the_service_answers_a_step(serving: ServiceProcess) -> None:
    with httpx2.Client(base_url=serving.url, trust_env=False, timeout=30) as http:
        answer = http.post("/v1/models/fold/streams/a/step", json={"inputs": [7]}).json()

    assert (answer["step"], answer["outputs"]["y"]) == (1, fold_reference([7]))


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/asyncapi.json", "/dashboard/app.js"])
def test_the_service_has_its_pages(serving: ServiceProcess, path: str) -> None:
    assert httpx2.get(serving.url + path, trust_env=False, timeout=30).status_code == 200


def test_the_client_steps_a_stream(installed: Environment, serving: ServiceProcess) -> None:
    code = f"import stepwell; print(stepwell.Client('{serving.url}').model('fold').stream('b').step([7]).step)"

    assert installed.run("python", "-c", code).stdout == "1\n"


def test_an_engine_runs_in_the_process(installed: Environment, serving: ServiceProcess) -> None:
    code = "import stepwell; print(stepwell.Client(':memory:').model('fold').stream('c').step([7]).step)"
    done = installed.run("python", "-c", code)

    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_demo_passes(installed: Environment) -> None:
    done = installed.run("stepwell", "demo", "--once", "--seconds", "3", "--json")

    assert done.returncode == 0, done.stderr
    assert '"ok": true' in done.stdout


def test_a_keras_model_is_exported(installed: Environment) -> None:
    pytest.importorskip("keras", reason="Keras is not installed")
    code = "import keras; keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(4)]).save('pump.keras')"
    made = installed.run("python", "-c", code, KERAS_BACKEND="jax")
    exported = installed.run("stepwell", "export", "pump.keras", "-o", "exported/pump.onnx", KERAS_BACKEND="jax")

    assert (made.returncode, exported.returncode) == (0, 0), made.stderr + exported.stderr
    assert installed.run("stepwell", "inspect", "exported/pump.onnx").returncode == 0


def test_users_get_its_types(installed: Environment) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed; the extra dev has it")
    code = "import stepwell\nreveal_type(stepwell.Client('http://h').model('m').stream('s').step([1.0]).output)\n"
    (installed.folder / "mypy.ini").write_text(f"[mypy]\nstrict = true\n[mypy-{UNTYPED}]\nfollow_imports = skip\n")
    (installed.folder / "typed.py").write_text(code + "stepwell.Client(7)\nstepwell.Cliemt\n")
    python = str(installed.bin / "python")
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "typed.py"]
    done = subprocess.run(command, cwd=installed.folder, env=CLEAN, capture_output=True, text=True)

    assert 'Revealed type is "numpy.ndarray' in done.stdout, done.stdout
    assert 'Argument 1 to "Client" has incompatible type "int"' in done.stdout
    assert 'Module has no attribute "Cliemt"' in done.stdout
    assert "Found 2 errors" in done.stdout
