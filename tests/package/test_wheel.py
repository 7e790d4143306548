"""The three distributions as wheels in environments of their own: each alone, and the service outside a clone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold_reference
from tests.package.environment import CLEAN, ROOT, SOURCES, Environment, build, install, serve
from tests.processes import ServiceProcess

UNTYPED = "fastapi.*,jax.*,keras.*,onnx.*,pydantic.*,redis.*,rich.*,starlette.*,torch.*,typer.*,uvicorn.*"
"""Packages that the type checker leaves out: it would read them for a minute, and no public type is from them."""

pytest.importorskip("hatchling", reason="hatchling is not installed; the extra dev has it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build("wheel", source, tmp_path_factory.mktemp(name)) for name, source in SOURCES.items()}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(tmp_path_factory.mktemp("venv"), *wheels.values())


@pytest.fixture(scope="module")
def client_alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(tmp_path_factory.mktemp("client"), wheels["stepwell_client"])


@pytest.fixture(scope="module")
def exporter_alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(tmp_path_factory.mktemp("exporter"), wheels["stepwell_export"])


@pytest.fixture(scope="module")
def serving(installed: Environment) -> Iterator[ServiceProcess]:
    with serve(installed, "--workers", "2") as one:
        yield one


# -------------------------------------------------------------------- what is in it


@pytest.fixture(scope="module")
def sdists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build("sdist", source, tmp_path_factory.mktemp(name)) for name, source in SOURCES.items()}


@pytest.mark.parametrize("package", SOURCES)
def test_a_wheel_of_the_sdist_is_the_same_and_has_one_package(
    wheels: dict[str, Path], sdists: dict[str, Path], package: str, tmp_path: Path
) -> None:
    with tarfile.open(sdists[package]) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    [source] = (tmp_path / "source").iterdir()
    again = build("wheel", source, tmp_path / "wheel")

    with zipfile.ZipFile(wheels[package]) as first, zipfile.ZipFile(again) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {i.filename: i.CRC for i in second.infolist()}
        folders = {name.split("/")[0] for name in first.namelist()}
    assert folders == {package, f"{wheels[package].name.split('-py3')[0]}.dist-info"}


def test_what_is_built_can_be_published(wheels: dict[str, Path], sdists: dict[str, Path]) -> None:
    pytest.importorskip("twine", reason="twine is not installed; the extra dev has it")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, [*wheels.values(), *sdists.values()])]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_an_editable_install_is_the_clone(tmp_path: Path) -> None:
    built = [build("wheel:editable", source, tmp_path / name) for name, source in SOURCES.items()]
    editable = install(tmp_path / "venv", *built)

    code = f"import {', '.join(SOURCES)}; print(*({', '.join(f'{name}.__file__' for name in SOURCES)},))"
    done = editable.run("python", "-c", code)

    folders = (ROOT / "service", ROOT / "model_export", ROOT / "clients" / "python")
    files = [folder / name / "__init__.py" for folder, name in zip(folders, SOURCES, strict=True)]
    assert done.stdout.split() == [str(file) for file in files], done.stderr
    assert editable.run("stepwell", "--version").returncode == 0


# -------------------------------------------------------------------- one alone


def test_the_client_alone_steps_a_stream_and_has_no_engine(client_alone: Environment, serving: ServiceProcess) -> None:
    code = "import sys, stepwell_client; "
    code += f"print(stepwell_client.Client('{serving.url}').model('fold').stream('alone').step([7]).step); "
    code += "print({'stepwell', 'stepwell_export', 'fastapi', 'redis', 'onnxruntime', 'pydantic'} & {*sys.modules}); "
    code += "stepwell_client.Client(':memory:')"
    done = client_alone.run("python", "-c", code)

    assert done.stdout == "1\nset()\n"
    assert "Run `pip install stepwell`" in done.stderr  # for the engine of `:memory:`


def test_the_exporter_alone_exports_a_model_and_steps_it(exporter_alone: Environment) -> None:
    pytest.importorskip("keras", reason="Keras is not installed")
    code = "import sys, keras, numpy, stepwell_export\n"
    code += "model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(4)])\n"
    code += "path = stepwell_export.export(model, 'models/pump.onnx').path\n"
    code += "print(stepwell_export.StepModel(path).manifest.name)\n"
    code += "print({'stepwell', 'stepwell_client', 'fastapi', 'redis'} & {*sys.modules})"

    done = exporter_alone.run("python", "-c", code, KERAS_BACKEND="jax")

    assert done.stdout == "pump\nset()\n", done.stderr


def test_the_client_imports_what_its_project_file_names() -> None:
    project = tomllib.loads((SOURCES["stepwell_client"] / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["progress"]]
    trees = [ast.parse(file.read_text()) for file in (SOURCES["stepwell_client"] / "stepwell_client").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    used = {name.partition(".")[0] for name in named} - {*sys.stdlib_module_names, "stepwell_client"}

    assert used == {re.split(r"[^\w-]", line)[0] for line in lines}


# -------------------------------------------------------------------- installed


def test_the_public_names_come_from_the_wheels(installed: Environment) -> None:
    code = "import stepwell; print(stepwell.__file__, stepwell.Client.__module__, *map(type, map(stepwell.__getattr__, "
    code += "['export', 'adopt', 'StepSpec', 'Pipeline', 'register_step_rule', 'StepModel', '__version__'])))"
    done = installed.run("python", "-c", code)

    assert done.returncode == 0, done.stderr
    assert str(installed.bin.parent) in done.stdout
    assert "stepwell_client.sync" in done.stdout


def test_brokers_and_addons_are_found_by_their_entry_points(installed: Environment) -> None:
    code = "from stepwell_export.runtime.registered import load, registered; "
    code += "groups = ('stepwell.addons', 'stepwell.brokers', 'stepwell.stores'); "
    code += "print(*(name for group in groups for name in registered(group))); "
    code += "print(type(load(registered('stepwell.brokers')['file'])).__name__)"

    found = "alert artifacts asyncapi copies dashboard drift fast_path fleet grpc jwt oip openapi releases "
    found += "reset_all rollouts savepoints state_runs tracing watch "
    found += "amqp amqps file kafka kafkas mqtt mqtts nats natss redis rediss redis+cluster rediss+cluster Broker"
    assert installed.run("python", "-c", code).stdout.split() == found.split()


def test_the_program_has_no_tests_and_says_so(installed: Environment) -> None:
    done = installed.run("stepwell", "test")

    assert done.returncode == 3
    assert "expected a clone" in done.stderr


def test_the_service_answers_a_step_and_has_its_pages(serving: ServiceProcess) -> None:
    with httpx2.Client(base_url=serving.url, trust_env=False, timeout=30) as http:
        answer = http.post("/v1/models/fold/streams/a/step", json={"inputs": [7]}).json()
        for path in ("/", "/docs", "/openapi.json", "/asyncapi.json", "/dashboard/app.js"):
            assert http.get(path).status_code == 200, path

    assert (answer["step"], answer["outputs"]["y"]) == (1, fold_reference([7]))


def test_an_engine_runs_in_the_process(installed: Environment, serving: ServiceProcess) -> None:
    code = "import stepwell; print(stepwell.Client(':memory:').model('fold').stream('c').step([7]).step)"
    done = installed.run("python", "-c", code)

    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_demo_passes(installed: Environment) -> None:
    done = installed.run("stepwell", "demo", "--once", "--seconds", "3", "--json")

    assert done.returncode == 0, done.stderr
    assert '"ok": true' in done.stdout


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
