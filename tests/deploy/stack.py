"""The stack of docker-compose.yml under a name and a port of its own, for the tests that need it running."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).parents[2]

# A replica's own view through the Python in its image; the image has no curl.
READ_METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def docker(*arguments: str, **environment: str) -> str:
    """Run docker and return what it printed.

    Raises:
        AssertionError: It failed; with its own words.
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
        """Start what is not running and wait until all of it is healthy."""
        docker(
            *("compose", "--project-name", self.project, "up", "--detach", "--wait", *more),
            PUBLISH=self.address,
            REPLICAS="2",
        )

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans")

    def containers(self, name: str = "service") -> list[str]:
        """The ids of the running containers of one name."""
        return self.compose("ps", "--quiet", "--status", "running", name).split()

    def everything(self) -> dict[str, list[str]]:
        """What Docker still holds of this project, by kind."""
        label = f"label=com.docker.compose.project={self.project}"
        return {
            "containers": docker("ps", "--all", "--quiet", "--filter", label).split(),
            "networks": docker("network", "ls", "--quiet", "--filter", label).split(),
            "volumes": docker("volume", "ls", "--quiet", "--filter", label).split(),
        }

    def client(self) -> httpx.Client:
        """A client that opens a connection of its own for each request, so that any replica may get it."""
        return httpx.Client(base_url=f"http://{self.address}", timeout=20, headers={"Connection": "close"})

    def requests_taken(self, container: str) -> int:
        """HTTP requests that one replica has counted."""
        lines = docker("exec", container, "python", "-c", READ_METRICS).splitlines()
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("stepwell_requests_total"))
