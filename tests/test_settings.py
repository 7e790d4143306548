"""Settings come from flags and the environment, and have documented defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stepwell.errors import SettingsError
from stepwell.settings import OTHER_VARIABLES, PREFIX, Settings, describe_settings, setting_groups

ROOT = Path(__file__).parents[1]
TEXTS = {".py", ".md", ".js", ".html", ".template", ".conf", ".yml", ".toml", ".lua", ".c", ""}
SERVICE_LINKS = {"STEPWELL_SERVICE_HOST", "STEPWELL_REDIS_PORT_6379_TCP_ADDR"}  # a comment has these two

PROMISED: dict[str, Any] = {
    "models": [Path("models")],
    "host": "127.0.0.1",
    "port": 8000,
    "workers": 1,
    "redis": None,
    "data_dir": Path(".stepwell"),
    "durability": "memory",
    "stream_ttl_s": 604_800,
    "snapshot_ttl_s": None,
    "max_snapshots": 16,
    "max_batch_size": 256,
    "max_wait_ms": 0,
    "queue_limit": 10_000,
    "cache_bytes": 268_435_456,
    "api_keys_file": None,
    "allowed_origins": [],
    "request_timeout_s": 10,
    "run_timeout_s": 5,
    "receive_timeout_s": 10,
    "max_body_bytes": 8_388_608,
    "max_chunk_steps": 4096,
    "max_connections": 10_000,
    "max_websockets": 5000,
    "idempotency_ttl_s": 600,
    "drain_s": 10,
    "ort_threads": 1,
    "execution_providers": ["CPUExecutionProvider"],
    "log_format": "text",
    "watch_models": False,
    "require_preconditions": False,
    "insecure": False,
}

OTHER: dict[str, Any] = {
    "models": [Path("a"), Path("b")],
    "host": "::1",
    "port": 0,
    "workers": 4,
    "redis": "redis://host:6379/0",
    "data_dir": Path("elsewhere"),
    "durability": "fsync",
    "stream_ttl_s": 0.5,
    "max_wait_ms": 2.5,
    "cache_bytes": 0,
    "api_keys_file": Path("keys.json"),
    "allowed_origins": ["https://a.example", "https://b.example"],
    "drain_s": 0,
    "execution_providers": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "log_format": "json",
    "watch_models": True,
    "tenant_rate": 12.5,
    "tenant_max_websockets": 3,
    "tenant_max_streams": 1000,
    "model_probe_s": 5,
    "production": True,
    "insecure": True,
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def settings_error(**flags: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        Settings.load(**flags)
    return caught.value


@pytest.mark.parametrize("name", PROMISED)
def test_a_setting_has_the_documented_default(name: str) -> None:
    assert getattr(Settings.load(), name) == PROMISED[name]


@pytest.mark.parametrize("name", setting_groups())
def test_a_setting_has_a_description(name: str) -> None:
    assert describe_settings()[name]


def test_a_variable_sets_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_QUEUE_LIMIT", "7")

    assert Settings.load().queue_limit == 7


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("STEPWELL_LOGFORMAT", "STEPWELL_LOG_FORMAT"),
        ("STEPWELL_STREAM_TTL", "STEPWELL_STREAM_TTL_S"),
        ("STEPWELL_QUEUE_LIMITS", "STEPWELL_QUEUE_LIMIT"),
        ("stepwell_redis_url", "STEPWELL_REDIS"),
        ("STEPWELL_EXTRA", "STEPWELL_EXTRAS"),
        ("STEPWELL_ZZZZZZZZ", None),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_name(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str | None
) -> None:
    monkeypatch.setenv(name, "60")
    problem = settings_error().problem

    assert name.upper() in problem
    assert re.findall(r"did you mean (\w+)\?", problem) == ([] if nearest is None else [nearest])


def test_all_unknown_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEPWELL_TTL", "STEPWELL_HOSTS"):
        monkeypatch.setenv(name, "x")
    problem = settings_error().problem

    assert "STEPWELL_TTL" in problem
    assert "STEPWELL_HOSTS" in problem


@pytest.mark.parametrize("name", sorted(OTHER_VARIABLES))
def test_a_variable_of_another_program_is_no_setting_and_not_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")

    assert Settings.load() == Settings()


def test_variables_that_kubernetes_sets_for_its_services_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for service, port in (("STEPWELL_REDIS", "6379"), ("STEPWELL_API", "8000")):
        address = f"tcp://10.0.0.1:{port}"
        links = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": port, "SERVICE_PORT_HTTP": port, "PORT": address}
        links |= {f"PORT_{port}_TCP": address, f"PORT_{port}_TCP_PROTO": "tcp", f"PORT_{port}_TCP_PORT": port}
        for name, value in {**links, f"PORT_{port}_TCP_ADDR": "10.0.0.1"}.items():
            monkeypatch.setenv(f"{service}_{name}", value)

    assert Settings.load() == Settings()


def test_every_variable_that_our_files_name_is_known() -> None:
    """In the launcher, compose, images, documentation, examples and source."""
    folders = ("service", "docker", "docs", "tests", "campaign", "benchmarks", "examples", "scripts")
    files = [
        file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in TEXTS and file.is_file()
    ]
    files += [
        ROOT / "stepwell",
        ROOT / "docker" / "Dockerfile",
        ROOT / "stepwell.env.example",
        ROOT / "docker" / "service.env",
        *ROOT.glob("*.md"),
    ]
    files += ROOT.glob("*.yml")
    texts = [file.read_text() for file in files if file != Path(__file__)]
    named = {name for text in texts for name in re.findall(r"\bSTEPWELL_[A-Z0-9_]*[A-Z0-9]\b", text)}
    known = (
        OTHER_VARIABLES | {PREFIX + name.upper() for name in setting_groups()} | {"STEPWELL_FLEET_SITE"}
    )  # of the example

    assert len(named) > 20
    assert named - known == SERVICE_LINKS


@pytest.mark.parametrize(
    ("flags", "address"),
    [
        ({}, None),
        ({"host": "localhost"}, None),
        ({"host": "::1"}, None),
        ({"host": "0.0.0.0"}, "0.0.0.0"),
        ({"host": "::"}, "::"),
        ({"host": "0.0.0.0", "published": "127.0.0.1:8000"}, None),
        ({"host": "0.0.0.0", "published": "[::1]:8000"}, None),
        ({"host": "0.0.0.0", "published": "0.0.0.0:8330"}, "0.0.0.0:8330"),
        ({"host": "0.0.0.0", "published": "8330"}, "8330"),
        ({"host": "127.0.0.1", "published": "10.0.0.7:80"}, "10.0.0.7:80"),
        ({"host": "0.0.0.0", "api_keys_file": Path("keys.json")}, None),
        ({"host": "0.0.0.0", "jwt_keys": "https://id.example/keys"}, None),
    ],
)
def test_an_api_is_open_if_other_machines_reach_it_without_keys(flags: dict[str, Any], address: str | None) -> None:
    assert Settings.load(**flags).open_address == address


def test_a_flag_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_PORT", "1")

    assert Settings.load(port=2).port == 2


def test_a_flag_that_is_not_given_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_PORT", "1")

    assert Settings.load(port=None).port == 1


def test_a_false_flag_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_INSECURE", "true")

    assert Settings.load(insecure=False).insecure is False


def test_folders_in_the_environment_are_separated_as_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_MODELS", os.pathsep.join(["/models", "/opt/demo models"]))

    assert Settings.load().models == [Path("/models"), Path("/opt/demo models")]


@pytest.mark.parametrize("name", ["allowed_origins", "execution_providers"])
def test_lists_in_the_environment_are_separated_by_commas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", "http://a, http://b,,http://c ")

    assert getattr(Settings.load(), name) == ["http://a", "http://b", "http://c"]


def test_other_variables_with_the_prefix_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_REDIS_SERVER", "/usr/bin/redis-server")

    assert Settings.load().redis is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65_536),
        ("port", "http"),
        ("workers", 0),
        ("stream_ttl_s", 0),
        ("stream_ttl_s", "nan"),
        ("stream_ttl_s", 1e-6),
        ("idempotency_ttl_s", 1e17),
        ("request_timeout_s", 1e300),
        ("max_wait_ms", -1),
        ("queue_limit", 0),
        ("cache_bytes", -1),
        ("max_body_bytes", 0),
        ("drain_s", -1),
        ("durability", "disk"),
        ("log_format", "xml"),
        ("insecure", "perhaps"),
        ("data_dir", ""),
        ("api_keys_file", ""),
        ("allowed_origins", "*"),
        ("allowed_origins", "app.example"),
        ("allowed_origins", "https://app.example/page"),
    ],
)
def test_an_invalid_value_is_refused_with_name_and_value(name: str, value: object) -> None:
    assert settings_error(**{name: value}).problem.startswith(f"{name} is {value!r}: ")


def test_an_error_names_flag_and_variable() -> None:
    assert "--max-wait-ms or STEPWELL_MAX_WAIT_MS" in settings_error(max_wait_ms=-1).fix


def test_an_invalid_value_in_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_PORT", "http")

    assert settings_error().problem.startswith("port is 'http': ")


def test_an_unknown_setting_is_refused() -> None:
    assert settings_error(prot=1).problem.startswith("prot is 1: ")


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        Settings.load().port = 1  # type: ignore[misc]  # assigning is the test


@pytest.mark.parametrize("name", OTHER)
def test_a_flag_sets_its_setting(name: str) -> None:
    assert getattr(Settings.load(**{name: OTHER[name]}), name) == OTHER[name]


def test_four_of_the_largest_bodies_may_wait() -> None:
    assert Settings.load(max_body_bytes=2**30).queue_bytes == 4 * 2**30
    assert Settings.load().queue_bytes == 256 * 2**20
