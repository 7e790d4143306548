"""F36, embedded store: a full disk rejects steps, which succeed again once there is space."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.graphs import fold, fold_reference, write_model
from tests.processes import ServiceProcess, service_process

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")]


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system with a size of four megabytes."""
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("may not mount a small disk here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path) -> None:
    """Write to a file until the disk is full."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"x" * 4096)


def step(one: ServiceProcess, seq: int) -> httpx2.Response:
    body = {"inputs": [seq], "seq": seq}
    return httpx2.post(f"{one.url}/v1/models/fold/streams/a/step", json=body, timeout=30, trust_env=False)


def test_a_full_disk_rejects_steps_until_there_is_space(disk: Path, tmp_path: Path) -> None:
    """With a store that flushes each commit; with one that does each second: tests/faults/test_trouble.py."""
    write_model(tmp_path / "models", "fold", fold)
    flags = ("--durability", "fsync", "--drain-s", "0", "--request-timeout-s", "2")
    with service_process(tmp_path / "models", disk, *flags) as one:
        told = [step(one, 1).json()]
        filler = disk / "filler"
        fill(filler)
        while (answer := step(one, len(told) + 1)).status_code == 200:
            told.append(answer.json())
        refused = answer.json()
        filler.unlink()
        while (answer := step(one, len(told) + 1)).status_code != 200:
            assert answer.status_code == 503, answer.text
        told.append(answer.json())
        one.kill()
        one.start()
        status = httpx2.get(f"{one.url}/v1/models/fold/streams/a", trust_env=False, timeout=30).json()

    assert (refused["code"], refused["retry"]) in (("store_unavailable", "same"), ("outcome_unknown", "same"))
    assert [answer["outputs"]["y"][0] for answer in told] == fold_reference(range(1, len(told) + 1))
    assert status["step"] == len(told)
