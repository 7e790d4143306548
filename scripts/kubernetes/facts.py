"""Facts that compose, the image and the settings of the service already have, read from where they are."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from stepwell.settings import Settings

REPOSITORY: Final = Path(__file__).parents[2]
_VARIABLE: Final = re.compile(r"\$\{(\w+):-([^}]*)\}")


def version() -> str:
    """Return the version of the service."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def container(name: str) -> dict[str, Any]:
    """Return a container of docker-compose.yml, with the defaults of its variables."""
    text = _VARIABLE.sub(r"\2", (REPOSITORY / "docker-compose.yml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"][name]
    return found


def limits(name: str) -> dict[str, str]:
    """Return the limits of a container of compose, in the units of Kubernetes."""
    found = container(name)["deploy"]["resources"]["limits"]
    return {"cpu": str(found["cpus"]), "memory": re.sub("([mg])$", lambda unit: unit[1].upper() + "i", found["memory"])}


def redis_command() -> list[str]:
    """Return compose's command for Redis, with the lines of docker/redis.conf as options."""
    program, _, *options = container("redis")["command"]
    lines = (REPOSITORY / "docker/redis.conf").read_text().splitlines()
    given = {name.removeprefix("--") for name in options[::2]}
    for line in lines:
        if line and not line.startswith("#"):
            name, *values = shlex.split(line)
            if name not in given:
                options += [f"--{name}", *values]
    return [program, *options]


def default_of(setting: str) -> Any:
    """Return the default of a setting of the service."""
    return Settings.model_fields[setting].get_default(call_default_factory=True)
