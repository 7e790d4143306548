"""`stepwell check` reports what `serve` would refuse and which models fail."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from stepwell.addons.embedded_store.server import EmbeddedStore
from stepwell.commands.check import Checked, check, examine
from stepwell.settings import Settings
from tests import graphs
from tests.servers import Server

app = typer.Typer()
app.command()(check)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    graphs.write_model(folder, "pump", graphs.lstm)
    return folder


def run_check(models: Path, server: Server, **given: Any) -> Checked:
    return examine(Settings.load(**{"models": [models], "redis": server.url, "port": 0} | given))


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_valid_configuration_runs_every_model(models: Path, shared_redis: Server) -> None:
    graphs.write_model(models, "total", graphs.total)
    found = run_check(models, shared_redis)

    assert found.exit_code == 0
    assert [(one["name"], one["version"], one["step_ms"] > 0) for one in found.models] == [
        ("pump", 1, True),
        ("total", 1, True),
    ]
    assert found.store["policy"] == "noeviction"


def test_the_embedded_store_is_started_and_stopped(models: Path, short_path: Path, shared_redis: Server) -> None:
    found = run_check(models, shared_redis, redis=None, data_dir=short_path)

    assert (found.exit_code, found.store["appendonly"]) == (0, True)
    store = EmbeddedStore(short_path)
    store.start()  # the folder is unlocked
    store.stop()


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"artifacts": "off"}, "pump/1: `artifacts` is off"), ({"artifact_max_bytes": 10}, "pump/1: its files have ")],
)
def test_a_model_whose_artifact_is_not_kept_is_reported(
    models: Path, shared_redis: Server, given: dict[str, Any], reason: str
) -> None:
    found = run_check(models, shared_redis, **given)

    assert (found.exit_code, len(found.not_kept)) == (0, 1)
    assert found.not_kept[0].startswith(reason)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"artifacts": "of"}, "`artifacts` is 'of', and no file can be created in that folder"),
        ({"host": "0.0.0.0"}, "no api_keys_file"),
        ({"api_keys_file": Path("nowhere.json")}, "nowhere.json"),
        ({"execution_providers": ["NoSuchProvider", "CPUExecutionProvider"]}, "NoSuchProvider"),
        ({"durability": "fsync"}, "appendfsync"),
        ({"durability": "replica"}, "no replica"),
        ({"redis": "redis://127.0.0.1:1", "request_timeout_s": 0.1}, "cannot be used"),
        ({"redis": "http://store"}, "http"),
        ({"host": "no.such.host.invalid", "insecure": True}, "no.such.host.invalid"),
    ],
)
def test_a_configuration_that_serve_refuses_is_reported(
    models: Path, shared_redis: Server, given: dict[str, Any], expected: str
) -> None:
    found = run_check(models, shared_redis, **given)

    assert found.exit_code == 3
    assert expected in found.refusals[0]["problem"]
    assert len(found.refusals) == 1
    assert len(found.models) == 1


def test_a_mistyped_models_folder_is_refused_with_the_one_that_is_there(models: Path, shared_redis: Server) -> None:
    mistyped = models.with_name("modles")
    found = run_check(mistyped, shared_redis)

    assert found.exit_code == 3
    assert str(mistyped) in found.refusals[0]["problem"]
    assert found.refusals[0]["fix"] == f"Did you mean {models}?"


def test_files_that_look_like_models_but_are_none_are_named(models: Path, shared_redis: Server) -> None:
    (models / "valve.keras").write_bytes(b"")
    (models / "fan").mkdir()
    (models / "pump.onnx").rename(models / "fan" / "model.onnx")
    (models / "belt" / "2").mkdir(parents=True)
    (models / "belt" / "2" / "belt.onnx").write_bytes(b"")
    found = run_check(models, shared_redis)

    assert [line.split(":")[0] for line in found.ignored] == ["belt/2/belt.onnx", "fan/model.onnx", "valve.keras"]
    assert "fan/1/model.onnx" in found.ignored[1]
    assert f"stepwell export {models.name}/valve.keras -o {models.name}/valve.onnx" in found.ignored[2]


def test_a_trained_model_beside_its_export_is_not_named(models: Path, shared_redis: Server) -> None:
    (models / "pump.keras").write_bytes(b"")

    assert run_check(models, shared_redis).ignored == []


def test_a_second_file_of_the_same_version_is_reported(tmp_path: Path, shared_redis: Server) -> None:
    first = graphs.write_model(tmp_path, "pump", graphs.fold, version=1)
    second = graphs.write_model(tmp_path, "pump", graphs.fold)

    found = run_check(tmp_path, shared_redis)

    assert found.ignored == [f"{second}: pump/1 is {first} already; rename one of them"]


def test_an_evicting_store_is_reported(models: Path, redis_server: Server) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    assert "allkeys-lru" in run_check(models, redis_server).refusals[0]["problem"]
    assert run_check(models, redis_server, allow_eviction=True).exit_code == 0


def test_a_port_in_use_is_reported(models: Path, shared_redis: Server) -> None:
    with taken_port() as port:
        found = run_check(models, shared_redis, port=port)

    assert (found.exit_code, str(port) in found.refusals[0]["problem"]) == (3, True)
    assert "beside the service that runs there, with --port 0" in found.refusals[0]["fix"]


def test_a_data_folder_in_use_is_reported(models: Path, short_path: Path, shared_redis: Server) -> None:
    store = EmbeddedStore(short_path)
    store.start()
    found = run_check(models, shared_redis, redis=None, data_dir=short_path)

    assert "in use" in found.refusals[0]["problem"]
    assert "beside the service that runs there, with --data-dir" in found.refusals[0]["fix"]
    assert store.running
    store.stop()


def test_a_broken_model_fails_and_a_valid_one_passes(models: Path, shared_redis: Server) -> None:
    (models / "broken.onnx").write_bytes(b"no graph")
    found = run_check(models, shared_redis)

    assert (found.exit_code, len(found.models)) == (1, 1)
    assert found.failed[0].startswith("broken.onnx")


def test_the_command_prints_its_findings(models: Path, shared_redis: Server) -> None:
    words = ["--models", str(models), "--redis", shared_redis.url, "--port", "0"]
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["ok"] is True
    (models / "broken.onnx").write_bytes(b"no graph")
    for form in ([], ["--json"]):
        done = CliRunner().invoke(app, [*words, "--host", "0.0.0.0", *form], env={"COLUMNS": "200"})
        parts = ("pump", "broken.onnx", "no api_keys_file", "noeviction")

        assert done.exit_code == 3
        assert [part for part in parts if part not in done.stdout] == []


def test_history_of_a_model_that_is_not_served_is_a_failure(models: Path, shared_redis: Server) -> None:
    found = run_check(models, shared_redis, history="pump=8,pmup=64,1")

    assert found.failed == ["`history` names the model 'pmup', which is not served; models are: pump"]
    assert found.exit_code == 1
