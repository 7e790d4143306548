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


def test_each_setting_has_the_documented_default_and_a_description() -> None:
    settings = Settings.load()

    assert {name: getattr(settings, name) for name in PROMISED} == PROMISED
    assert [name for name in setting_groups() if not describe_settings()[name]] == []


def test_a_variable_sets_its_setting_unless_a_flag_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUEUE_LIMIT", "7"), ("PORT", "1"), ("INSECURE", "true")):
        monkeypatch.setenv(f"STEPWELL_{name}", value)
    settings = Settings.load(queue_limit=None, port=2, insecure=False)

    assert (settings.queue_limit, settings.port, settings.insecure) == (7, 2, False)


def test_all_unknown_variables_are_refused_with_the_nearest_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = {
        "STEPWELL_LOGFORMAT": "STEPWELL_LOG_FORMAT",
        "stepwell_redis_url": "STEPWELL_REDIS",
        "STEPWELL_EXTRA": "STEPWELL_EXTRAS",
        "STEPWELL_ZZZZZZZZ": None,
    }
    for name in nearest:
        monkeypatch.setenv(name, "60")
    problem = settings_error().problem

    assert [name for name in nearest if name.upper() not in problem] == []
    assert set(re.findall(r"did you mean (\w+)\?", problem)) == {*nearest.values()} - {None}


def test_variables_of_other_programs_and_of_kubernetes_are_no_settings_and_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in OTHER_VARIABLES:
        monkeypatch.setenv(name, "x")
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
        ({"host": "::1"}, None),
        ({"host": "0.0.0.0"}, "0.0.0.0"),
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


def test_folders_in_the_environment_are_separated_as_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_MODELS", os.pathsep.join(["/models", "/opt/demo models"]))

    assert Settings.load().models == [Path("/models"), Path("/opt/demo models")]


def test_lists_in_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_ALLOWED_ORIGINS", "http://a, http://b,,http://c ")

    assert Settings.load().allowed_origins == ["http://a", "http://b", "http://c"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", "http"),
        ("workers", 0),
        ("stream_ttl_s", 0),
        ("stream_ttl_s", "nan"),
        ("stream_ttl_s", 1e-6),
        ("idempotency_ttl_s", 1e17),
        ("queue_limit", 0),
        ("durability", "disk"),
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


def test_an_error_names_flag_and_variable_also_of_an_invalid_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--max-wait-ms or STEPWELL_MAX_WAIT_MS" in settings_error(max_wait_ms=-1).fix
    monkeypatch.setenv("STEPWELL_PORT", "http")
    assert settings_error().problem.startswith("port is 'http': ")


def test_an_unknown_setting_is_refused() -> None:
    assert settings_error(prot=1).problem.startswith("prot is 1: ")


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        Settings.load().port = 1  # type: ignore[misc]  # assigning is the test


def test_a_flag_sets_its_setting() -> None:
    settings = Settings.load(**OTHER)

    assert {name: getattr(settings, name) for name in OTHER} == OTHER


def test_four_of_the_largest_bodies_may_wait() -> None:
    assert Settings.load(max_body_bytes=2**30).queue_bytes == 4 * 2**30
    assert Settings.load().queue_bytes == 256 * 2**20
