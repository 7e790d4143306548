"""A service with the model of the conformance cases, and Node."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.all_clients.model import doubling
from tests.graphs import fold, two_inputs, write_models
from tests.npm import NEEDS_NODE, node_command, npm_install
from tests.processes import ServiceProcess, service_process

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service; each test uses streams of its own."""
    models = write_models(tmp_path_factory.mktemp("models"), doubling, fold, two_inputs)
    with service_process(models, tmp_path_factory.mktemp("sw"), "--history", "doubling=64") as running:
        yield running


@pytest.fixture(scope="session")
def node() -> list[str]:
    """The command of a Node that can run the TypeScript client, with its WebSocket."""
    command = node_command()
    if command is None:
        pytest.skip(NEEDS_NODE)
    return command


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `npm install` makes of the client's development packages, once for the whole run."""
    folder = tmp_path_factory.mktemp("npm")
    shutil.copy(CLIENT / "package.json", folder)
    return npm_install(folder)


@pytest.fixture(scope="session")
def installed_runtime(node: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client and onnxruntime-web, which Node and browsers can run."""
    folder = tmp_path_factory.mktemp("runtime")
    modules = npm_install(folder, "onnxruntime-web@1")
    shutil.copytree(CLIENT, modules / "@stepwell" / "client", ignore=shutil.ignore_patterns("node_modules"))
    return folder
