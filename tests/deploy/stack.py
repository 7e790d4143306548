"""The stack of docker-compose.yml, with its own project name and port, for tests that need it running."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx2

REPOSITORY = Path(__file__).parents[2]

# Read a replica's metrics with the Python of its image, which has no curl.
READ_METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"


def docker(*arguments: str, **environment: str) -> str:
    """Run docker and return its output.

    Raises:
        AssertionError: The command failed; with its output.
    """
    done = subprocess.run(
        ["docker", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Stack:
    """One running stack."""

    project: str
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> str:
        return docker(
            "compose", "--project-name", self.project, "--profile", "*", *arguments, PUBLISH=self.address, REPLICAS="2"
        )

    def up(self, *more: str) -> None:
        """Start what is not running, and wait until every container is healthy."""
        docker(
            *("compose", "--project-name", self.project, "up", "--detach", "--wait", *more),
            PUBLISH=self.address,
            REPLICAS="2",
        )

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans")

    def containers(self, name: str = "service") -> list[str]:
        """Return the ids of the running containers of a service."""
        return self.compose("ps", "--quiet", "--status", "running", name).split()

    def remaining(self) -> dict[str, list[str]]:
        """Return what Docker still has of this project, by kind."""
        label = f"label=com.docker.compose.project={self.project}"
        return {
            "containers": docker("ps", "--all", "--quiet", "--filter", label).split(),
            "networks": docker("network", "ls", "--quiet", "--filter", label).split(),
            "volumes": docker("volume", "ls", "--quiet", "--filter", label).split(),
        }

    def client(self) -> httpx2.Client:
        """Return a client that opens a new connection for each request, so that any replica may get it."""
        return httpx2.Client(base_url=f"http://{self.address}", timeout=20, headers={"Connection": "close"})

    def steps_taken(self, container: str) -> int:
        """Return the number of timesteps that a replica has applied."""
        lines = docker("exec", container, "python", "-c", READ_METRICS).splitlines()
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("stepwell_steps_total"))
