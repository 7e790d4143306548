"""Pods of the Kubernetes manifests, run by Docker as a kubelet would: user, variables, limits, probes and signals."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from tests.deploy.stack import docker
from tests.processes import free_port

Secrets = Mapping[str, Mapping[str, str]]
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


class Pod:
    """One running pod with one container.

    Attributes:
        port: Where the container's port is published, on 127.0.0.1.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        name: str,
        network: str,
        image: str,
        folder: Path,
        service: str = "",
        secrets: Secrets | None = None,
    ) -> None:
        """Start the container.

        Args:
            spec: The pod, as the manifest has it.
            name: Name of the container.
            network: The Docker network that stands for the cluster's.
            service: Name of the Kubernetes Service that has this pod alone; other pods reach it by that name.
            image: What to run instead of the manifest's image.
            folder: Where the files of mounted Secrets go.
            secrets: The data of each Secret.
        """
        [self._container] = spec["containers"]
        self._spec = spec
        self._secrets = secrets or {}
        self._folder = folder
        self.name = name
        self.port = free_port()
        user = spec["securityContext"]
        limits = self._container["resources"]["limits"]
        [port] = self._container["ports"]
        options = ["--name", name, "--network", network, "--publish", f"127.0.0.1:{self.port}:{port['containerPort']}"]
        options += ["--network-alias", service] if service else []
        options += ["--user", f"{user['runAsUser']}:{user['runAsGroup']}"]
        options += [f"--memory={_bytes(limits['memory'])}", f"--cpus={min(float(limits['cpu']), os.cpu_count() or 1)}"]
        options += self._security() + self._environment() + self._mounts(user["fsGroup"])
        docker("run", "--detach", *options, image, *self._container["args"])

    def _security(self) -> list[str]:
        context = self._container["securityContext"]
        options = [f"--cap-drop={name}" for name in context["capabilities"]["drop"]]
        if context["readOnlyRootFilesystem"]:
            options.append("--read-only")
        if not context["allowPrivilegeEscalation"]:
            options.append("--security-opt=no-new-privileges")
        return options

    def _environment(self) -> list[str]:
        options = []
        for variable in self._container.get("env", ()):
            value = variable.get("value")
            if value is None:
                source = variable["valueFrom"]["secretKeyRef"]
                value = self._secrets[source["name"]][source["key"]]
            options.append(f"--env={variable['name']}={value}")
        return options

    def _mounts(self, group: int) -> list[str]:
        volumes = {volume["name"]: volume for volume in self._spec.get("volumes", ())}
        options = []
        for mount in self._container["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "emptyDir" in volume:
                size = _bytes(volume["emptyDir"]["sizeLimit"])
                options.append(f"--tmpfs={mount['mountPath']}:size={size},gid={group},mode=2777")
            elif "secret" in volume:
                folder = self._write_secret(volume["secret"], group)
                options.append(f"--volume={folder}:{mount['mountPath']}:ro")
            else:  # a claim
                options.append(f"--volume={mount['mountPath']}")
        return options

    def _write_secret(self, secret: dict[str, Any], group: int) -> Path:
        folder = self._folder / str(secret["secretName"])
        if folder.exists():  # another pod has it, too
            return folder
        folder.mkdir()
        folder.chmod(0o755)
        for key, text in self._secrets[secret["secretName"]].items():
            (folder / key).write_text(text)
            mode = secret["defaultMode"]
            if os.getuid() == 0:
                os.chown(folder / key, 0, group)
            else:  # nobody but root can give a file to a group of the container
                mode |= 0o004
            (folder / key).chmod(mode)
        return folder

    def wait_ready(self) -> None:
        """Wait until the probes succeed: first the one of the start, then that of readiness.

        Raises:
            AssertionError: A probe failed as often as Kubernetes allows, or the container ended; with its log.
        """
        for kind in ("startupProbe", "readinessProbe"):
            probe = self._container[kind]
            attempts = probe["failureThreshold"] if kind == "startupProbe" else 120  # it may take its time
            for _ in range(attempts):
                if self._passes(probe):
                    break
                assert self.state("Running") == "true", self.log()
                threading.Event().wait(probe["periodSeconds"])
            else:
                raise AssertionError(f"{kind} failed {attempts} times\n{self.log()}")

    def _passes(self, probe: dict[str, Any]) -> bool:
        if "exec" in probe:
            command = ["docker", "exec", self.name, *probe["exec"]["command"]]
            return subprocess.run(command, capture_output=True).returncode == 0
        url = f"http://127.0.0.1:{self.port}{probe['httpGet']['path']}"
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(url, timeout=probe["timeoutSeconds"], trust_env=False).is_success
        return False

    def delete(self, in_hook: Callable[[], None]) -> int:
        """End the pod as a kubelet does: the hook, the signal of the image, and a kill after the grace period.

        Args:
            in_hook: Called while the hook runs.

        Returns:
            The exit code of its process; 137 after a kill.
        """
        seconds = self._container["lifecycle"]["preStop"]["sleep"]["seconds"]
        hook = threading.Thread(target=threading.Event().wait, args=(seconds,))
        hook.start()
        in_hook()
        hook.join()
        docker("stop", f"--time={self._spec['terminationGracePeriodSeconds'] - seconds}", self.name)
        code = int(self.state("ExitCode"))
        self.remove()
        return code

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", "exec", self.name, *command], capture_output=True, text=True)

    def state(self, field: str) -> str:
        """Return a field of the container's state, as Docker has it."""
        return docker("inspect", f"--format={{{{.State.{field}}}}}", self.name)

    def log(self) -> str:
        return subprocess.run(["docker", "logs", self.name], capture_output=True, text=True).stderr[-3000:]

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], capture_output=True)


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]
