"""A reload ends when every worker has reloaded, also those that are starting, and does not wait for dead ones."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stepwell.models import reload as workers
from stepwell.models.changes import ReloadReport
from stepwell.models.reload import ReloadCoordinator

OTHER = """
import asyncio, sys
from pathlib import Path
from stepwell.models.changes import ReloadReport
from stepwell.models.reload import ReloadCoordinator

async def reload():
    print("reloaded", flush=True)
    return ReloadReport()

async def main():
    other = ReloadCoordinator(reload, Path(sys.argv[1]))
    print("joined", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await other.watch()

asyncio.run(main())
"""


class CountingRegistry:
    """Counts its reloads."""

    def __init__(self) -> None:
        self.reloads = 0
        self.reloaded = asyncio.Event()

    async def reload(self) -> ReloadReport:
        self.reloads += 1
        self.reloaded.set()
        return ReloadReport(loaded=[f"pump/{self.reloads}"])


@contextlib.asynccontextmanager
async def another_process(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker that has joined, and follows reloads once it receives a line."""
    pipe = subprocess.PIPE
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OTHER, str(folder), stdin=pipe, stdout=pipe
    )  # fmt: skip
    assert await line(other) == "joined"
    try:
        yield other
    finally:
        with contextlib.suppress(ProcessLookupError):
            other.kill()
        await other.wait()


async def line(other: asyncio.subprocess.Process) -> str:
    assert other.stdout is not None
    return (await other.stdout.readline()).decode().strip()


def follow(other: asyncio.subprocess.Process) -> None:
    assert other.stdin is not None
    other.stdin.write(b"\n")


async def test_a_single_worker_reloads_itself() -> None:
    shelf = CountingRegistry()

    assert (await ReloadCoordinator(shelf.reload, None).reload_everywhere()).loaded == ["pump/1"]


async def test_a_reload_is_reported_by_its_own_request_and_happens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_POLL_S", 0.001)
    registry = CountingRegistry()
    here = ReloadCoordinator(registry.reload, tmp_path)
    watching = asyncio.gather(*(here.watch() for _ in range(4)))
    try:
        for n in range(1, 40):
            assert (await here.reload_everywhere()).loaded == [f"pump/{n}"]
    finally:
        watching.cancel()

    assert registry.reloads == n


async def test_a_reload_waits_for_a_worker_that_is_starting(tmp_path: Path) -> None:
    shelf = CountingRegistry()
    here = ReloadCoordinator(shelf.reload, tmp_path)
    async with another_process(tmp_path) as other:
        reload = asyncio.create_task(here.reload_everywhere())
        done, _ = await asyncio.wait([reload], timeout=0.5)
        follow(other)

        assert not done
        assert (await reload).loaded == ["pump/1"]
        assert await line(other) == "reloaded"


async def test_a_reload_does_not_wait_for_a_dead_worker(tmp_path: Path) -> None:
    shelf = CountingRegistry()
    here = ReloadCoordinator(shelf.reload, tmp_path)
    async with another_process(tmp_path) as other:
        other.kill()
        await other.wait()

        assert (await here.reload_everywhere()).failed == []


async def test_a_worker_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_RELOAD_TIMEOUT_S", 0.3)
    here = ReloadCoordinator(CountingRegistry().reload, tmp_path)
    async with another_process(tmp_path) as other:
        report = await here.reload_everywhere()

    assert [f"worker {other.pid}" in failed for failed in report.failed] == [True]


async def test_concurrent_reloads_are_each_done(tmp_path: Path) -> None:
    shelf = CountingRegistry()
    here = ReloadCoordinator(shelf.reload, tmp_path)
    async with another_process(tmp_path) as other:
        follow(other)
        await asyncio.gather(here.reload_everywhere(), here.reload_everywhere())

    assert shelf.reloads == 2


async def test_a_reload_that_waits_for_another_workers_turn_holds_up_nothing_else(tmp_path: Path) -> None:
    here = ReloadCoordinator(CountingRegistry().reload, tmp_path)
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        reload = asyncio.create_task(here.reload_everywhere())
        done, _ = await asyncio.wait([reload], timeout=0.2)

    assert not done
    assert (await reload).loaded == ["pump/1"]


async def test_an_unreadable_folder_is_read_again_later(tmp_path: Path) -> None:
    """The follower survives the error, and reports success only after it has read the folder."""
    failures = [OSError("gone"), OSError("gone")]
    shelf = CountingRegistry()

    async def reload() -> ReloadReport:
        if failures:
            raise failures.pop()
        return await shelf.reload()

    here = ReloadCoordinator(reload, tmp_path)
    (tmp_path / "generation").write_text("1")
    following = asyncio.create_task(here.watch())
    await shelf.reloaded.wait()
    following.cancel()

    assert not failures
