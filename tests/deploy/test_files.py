"""The deployment files, checked without Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from stepwell.addons.alert.rules import read_rules
from stepwell.addons.connect.config import read_config
from stepwell.addons.embedded_store.server import AOF_REWRITE_MIN_SIZE
from stepwell.error_codes import CODES
from stepwell.settings import setting_groups

REPOSITORY = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")

COMPOSE_TEXT = (REPOSITORY / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\2", COMPOSE_TEXT))
NGINX = (REPOSITORY / "docker/nginx.conf.template").read_text()

OVER_GRPC: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\2", (REPOSITORY / "docker/grpc.yml").read_text()))


def variables(name: str) -> dict[str, str]:
    """Return the variables of a file, by name."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


OF_COMPOSE = variables(".env.example")
OF_THE_SERVICE = variables("stepwell.env.example")


def container(name: str) -> dict[str, Any]:
    """Return one container of the compose file, with defaults for its variables."""
    found: dict[str, Any] = COMPOSE["services"][name]
    return found


def default_of(setting: str) -> Any:
    return setting_groups()[setting].model_fields[setting].get_default(call_default_factory=True)


def test_each_container_has_a_read_only_image_no_privilege_and_limits() -> None:
    for name, each in COMPOSE["services"].items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert "cap_add" not in each, name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each["deploy"]["resources"]["limits"].keys() == {"memory", "cpus", "pids"}, name


def test_our_images_run_as_an_unprivileged_user() -> None:
    dockerfile = (REPOSITORY / "docker/Dockerfile").read_text()

    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["10001:10001"] * 3


def test_what_is_published_is_on_loopback() -> None:
    published = {name: each["ports"] for name, each in COMPOSE["services"].items() if "ports" in each}

    assert published == {
        "proxy": ["127.0.0.1:8000:8080"],
        "mqtt": ["127.0.0.1:1883:1883"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "alertmanager": ["127.0.0.1:9093:9093"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_the_stack_is_the_proxy_two_replicas_and_redis_unless_a_profile_is_chosen() -> None:
    assert {name for name, each in COMPOSE["services"].items() if "profiles" not in each} == {
        "proxy",
        "service",
        "redis",
    }
    assert container("service")["deploy"]["replicas"] == 2
    assert container("service")["volumes"] == ["./models:/models:ro"]


def test_only_the_service_and_its_alarms_reach_redis() -> None:
    on_store = {name for name, each in COMPOSE["services"].items() if "store" in each.get("networks", [])}

    assert on_store == {"redis", "service", "alert"}
    assert COMPOSE["networks"]["store"]["internal"] is True


def test_a_replica_may_take_longer_to_stop_than_to_drain() -> None:
    assert float(container("service")["stop_grace_period"].removesuffix("s")) > default_of("drain_s") + 5


def test_the_proxys_timeout_is_longer_than_the_services() -> None:
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", NGINX)

    assert float(seconds) > default_of("request_timeout_s")


def test_redis_is_durable_never_evicts_and_rewrites_its_file_as_the_embedded_store_does() -> None:
    expected = {
        *("appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction", "rdbcompression no"),
        f"auto-aof-rewrite-min-size {AOF_REWRITE_MIN_SIZE}",
    }
    assert expected <= set((REPOSITORY / "docker/redis.conf").read_text().splitlines())


def test_the_data_of_redis_outlives_its_container() -> None:
    assert "redis-data:/data" in container("redis")["volumes"]
    assert "redis-data" in COMPOSE["volumes"]


def test_the_examples_of_a_connector_and_of_alarms_have_only_known_keys() -> None:
    assert read_config(REPOSITORY / "docker/connect.toml").service.model == "activity"
    assert container("connect")["volumes"] == ["./docker/connect.toml:/etc/stepwell/connect.toml:ro"]
    assert read_rules(REPOSITORY / "docker/alert.toml").models == ["activity"]
    assert container("alert")["volumes"] == ["./docker/alert.toml:/etc/stepwell/rules.toml:ro"]


def test_the_service_needs_no_training_framework() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", each)[0] for each in project["dependencies"]}

    assert needed.isdisjoint({"keras", "torch", "jax", "tensorflow", "onnx"})


def test_the_env_example_lists_each_variable_with_its_default() -> None:
    assert dict(VARIABLE.findall(COMPOSE_TEXT)) == OF_COMPOSE


def test_no_variable_of_compose_looks_like_a_setting() -> None:
    """Those of the service are called STEPWELL_..., and in `.env` they would have no effect."""
    assert [name for name in OF_COMPOSE if name.startswith("STEPWELL_")] == []


def test_the_services_example_has_settings_with_their_defaults() -> None:
    """But for those that the stack starts with other values of."""
    started_with = variables("docker/service.env")
    names = {name: name.removeprefix("STEPWELL_").lower() for name in OF_THE_SERVICE}
    assert set(names.values()) <= setting_groups().keys()
    assert {name: OF_THE_SERVICE[name] for name in started_with} == started_with
    for name in ("DURABILITY", "WORKERS", "STREAM_TTL_S", "MAX_BODY_BYTES", "LOG_FORMAT"):
        assert OF_THE_SERVICE[f"STEPWELL_{name}"] == str(default_of(name.lower()))
    assert OF_COMPOSE["MAX_BODY_BYTES"] == str(default_of("max_body_bytes"))  # of the proxy


def test_the_settings_of_the_service_are_in_a_file_of_its_own() -> None:
    """With `.env` as its env_file, a changed REPLICAS would replace every replica at once."""
    assert container("service")["env_file"] == ["docker/service.env", {"path": "stepwell.env", "required": False}]
    assert [name for name, each in COMPOSE["services"].items() if "env_file" in each] == ["service"]


def test_redis_may_use_twice_the_memory_of_its_streams() -> None:
    """A rewrite of the append-only file copies the pages that change meanwhile."""
    assert (OF_COMPOSE["REDIS_MAXMEMORY"], OF_COMPOSE["REDIS_MEMORY"]) == ("1gb", "2g")


def test_the_proxy_answers_problems_in_the_format_of_the_service() -> None:
    outcomes = re.findall(r"""^\s+(?:default|"~\[1-9\]")\s+'("type".*)';$""", NGINX, re.MULTILINE)
    bodies = re.findall(r"return \d+ '(.*)';", NGINX)
    problems = [
        json.loads(text) for text in sorted({one.replace("$outcome", each) for one in bodies for each in outcomes})
    ]
    assert {problem["applied"] for problem in problems} == {"no", "unknown"}
    for problem in problems:
        assert problem.keys() == {"type", "title", "status", "detail", "code", "applied", "retry"}
        row = CODES[problem["code"]]
        assert (problem["retry"], problem["status"], problem["title"]) == (row.retry, row.status, row.title)
        assert problem["type"] == f"/docs/errors#{problem['code']}"


def test_the_proxy_never_retries_a_post_that_was_sent() -> None:
    """nginx does so only with `non_idempotent`; a step without `seq` and key would be applied twice."""
    [rule] = re.findall(r"^\s*proxy_next_upstream (.*);", NGINX, re.MULTILINE)

    assert rule.split() == ["error", "timeout", "http_503"]


def needs_compose() -> None:
    """Skip the test without Docker's plugin compose; the docker command may be there first while both are installed."""
    if shutil.which("docker") is None or subprocess.run(["docker", "compose"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed: apt-get install docker-cli docker-compose")


def test_compose_accepts_the_file() -> None:
    needs_compose()
    done = subprocess.run(
        ["docker", "compose", "--profile", "*", "config", "--quiet"], cwd=REPOSITORY, capture_output=True, text=True
    )

    assert done.stderr == ""
    assert done.returncode == 0


# ------------------------------------------------------------------- gRPC


def test_grpc_is_off_in_the_stack() -> None:
    assert default_of("grpc_port") is None
    assert "GRPC" not in COMPOSE_TEXT.upper() + (REPOSITORY / "docker/service.env").read_text().upper()


def test_the_ports_of_grpc_are_those_of_the_proxys_file() -> None:
    nginx = (REPOSITORY / "docker/nginx-grpc.conf").read_text()
    [volume] = OVER_GRPC["services"]["proxy"]["volumes"]
    port = OVER_GRPC["services"]["service"]["environment"]["STEPWELL_GRPC_PORT"]

    assert f"grpc_pass grpc://$grpc_replicas:{port};" in nginx
    assert "listen 8081;" in nginx
    assert volume == "./docker/nginx-grpc.conf:/etc/nginx/grpc/grpc.conf:ro"
    assert "include /etc/nginx/grpc/*.conf;" in NGINX


def test_compose_reads_both_files_as_one() -> None:
    needs_compose()
    files = ["-f", "docker-compose.yml", "-f", "docker/grpc.yml"]
    command = ["docker", "compose", *files, "--env-file", "/dev/null", "config", "--format", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    services = json.loads(done.stdout)["services"]

    assert {str(one["target"]): (one["host_ip"], one["published"]) for one in services["proxy"]["ports"]} == {
        "8080": ("127.0.0.1", "8000"),
        "8081": ("127.0.0.1", "8001"),
    }
    assert services["service"]["environment"]["STEPWELL_GRPC_PORT"] == "8001"
    assert services["service"]["environment"]["STEPWELL_REDIS"] == "redis://redis:6379/0"
    assert services["service"]["build"]["args"]["SERVICE_EXTRAS"] == "grpc"
    assert services["proxy"]["read_only"] is True
