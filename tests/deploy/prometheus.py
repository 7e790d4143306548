"""A Prometheus with the shipped configuration, as a process; only addresses and durations differ."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import yaml  # type: ignore[import-untyped]  # comes with uvicorn[standard], without types

from tests.processes import free_port

FOLDER = Path(__file__).parents[2] / "docker/observability"
PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
WINDOW = "10s"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the result of a query at this moment.

        Raises:
            AssertionError: Prometheus reports an error.
        """
        reply = self._http.get("/api/v1/query", params={"query": expr}).json()
        assert reply["status"] == "success", (expr, reply)
        result = reply["data"]["result"]
        return result if reply["data"]["resultType"] == "vector" else [result]

    def exemplars(self, query: str) -> list[dict[str, Any]]:
        """Return the exemplars of the last hour."""
        now = time.time()
        params: dict[str, Any] = {"query": query, "start": now - 3600, "end": now + 60}
        found: list[dict[str, Any]] = self._http.get("/api/v1/query_exemplars", params=params).json()["data"]
        return found

    def targets(self) -> list[dict[str, Any]]:
        active: list[dict[str, Any]] = self._http.get("/api/v1/targets").json()["data"]["activeTargets"]
        return active

    def rules(self) -> list[dict[str, Any]]:
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {rule["name"] for rule in self.rules() if rule["state"] == "firing"}


@contextlib.contextmanager
def prometheus(folder: Path, targets: Sequence[str], *, key: str = "none") -> Iterator[Prometheus]:
    """Run Prometheus on the shipped files until the block ends.

    It scrapes the targets each second, queries are over 10 seconds, and an alert waits for one second.

    Args:
        folder: Where its files go.
        targets: Host and port of each replica.
        key: The key for the scrapes.
    """
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / "rules.yml")]
    del config["alerting"]
    job, *_ = config["scrape_configs"]  # the others are of profiles of compose
    config["scrape_configs"] = [job]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    job["authorization"]["credentials_file"] = str(folder / "key")
    folder.mkdir()
    (folder / "key").write_text(key)
    (folder / "rules.yml").write_text(hastened((FOLDER / "rules.yml").read_text()))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [str(PROMETHEUS), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append("--enable-feature=exemplar-storage")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
            while not is_ready(http):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)  # noqa: TID251 - nothing reports what another process does
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(20)


def hastened(rules: str) -> str:
    """Return rules with short windows and short waits."""
    return re.sub(r"for: \w+", "for: 1s", re.sub(r"\[\w+\]", f"[{WINDOW}]", rules))


def is_ready(http: httpx2.Client) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return http.get("/-/ready").status_code == 200
    return False
