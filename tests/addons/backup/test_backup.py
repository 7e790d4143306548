"""`stepwell backup` and `stepwell restore`: a store that is being written to a file, and an embedded store from one."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import typer
from typer.testing import Result

from stepwell.addons.backup import command as commands
from stepwell.addons.backup.rdb import BackupError, restore, write_backup
from stepwell.addons.embedded_store.server import EmbeddedStore, EmbeddedStoreError
from tests.commands.program import invoke
from tests.graphs import fold, write_model
from tests.processes import ServiceProcess
from tests.servers import AOF, server, servers
from tests.store.clusters import cluster

app = typer.Typer()
app.command()(commands.backup)
app.command()(commands.restore)


@pytest.fixture(params=servers().values(), ids=list(servers()))
def binary(request: pytest.FixtureRequest) -> Path:
    """Each available server."""
    path: Path = request.param
    return path


@pytest.fixture
def running(binary: Path, short_path: Path) -> Iterator[ServiceProcess]:
    """A service on an embedded store."""
    models = write_model(short_path / "models", "fold", fold).parent
    env = {"STEPWELL_REDIS_SERVER": str(binary), "STEPWELL_DRAIN_S": "0"}
    one = ServiceProcess(models, short_path / "one", env=env).start()
    yield one
    one.stop()


def run(*words: object, **env: str) -> Result:
    return invoke(app, [str(word) for word in words], **env)


def send(service: ServiceProcess, stream: str, seq: int) -> dict[str, Any]:
    """Send the timestep `seq` of a stream, whose value is `seq`."""
    path = f"{service.url}/v1/models/fold/streams/{stream}/step"
    reply: dict[str, Any] = httpx2.post(path, json={"inputs": [seq], "seq": seq}, trust_env=False, timeout=20).json()
    return reply


def test_a_store_goes_back_to_a_backup_that_was_made_under_load(
    running: ServiceProcess, short_path: Path, binary: Path
) -> None:
    """Clients read where to continue from the response, and then get what they got before."""
    data, file = running.folder / "data", short_path / "backup.rdb"
    finished = threading.Event()
    n_stepped = 0

    def keep_stepping() -> None:
        nonlocal n_stepped
        while not finished.is_set():
            assert send(running, "a", n_stepped + 1)["step"] == n_stepped + 1
            n_stepped += 1

    send(running, "a", 1)
    n_stepped = 1
    stepping = threading.Thread(target=keep_stepping)
    stepping.start()
    try:
        made = json.loads(run("backup", file, "--data-dir", data, "--json").stdout)
    finally:
        finished.set()
        stepping.join()
    in_use = run("restore", file, "--data-dir", data).exception
    send(running, "younger", 1)
    newest = send(running, "a", n_stepped + 1)
    assert running.stop() == 0
    restored = json.loads(run("restore", file, "--data-dir", data, "--json", STEPWELL_REDIS_SERVER=str(binary)).stdout)
    running.start()
    gap = send(running, "a", n_stepped + 2)
    replay = send(running, "a", gap["expected"] - 1)
    again = [send(running, "a", seq) for seq in range(gap["expected"], n_stepped + 2)]

    assert (made["bytes"], file.stat().st_mode & 0o777) == (file.stat().st_size, 0o600)
    assert isinstance(in_use, EmbeddedStoreError)
    assert "in use" in in_use.problem
    assert restored["keys"] >= 1
    assert (gap["code"], gap["applied"]) == ("seq_gap", "no")
    assert replay["replayed"] is True
    assert again[-1] == newest
    assert send(running, "younger", 2)["code"] == "stream_not_found"


def test_streams_that_go_back_beneath_a_worker_are_counted(short_path: Path) -> None:
    """The files of an outside store are exchanged while it and the service run, and then it is restarted."""
    models = write_model(short_path / "models", "fold", fold).parent
    with server(short_path / "store", *AOF) as store:
        service = ServiceProcess(models, short_path / "one", "--redis", store.url, "--drain-s", "0").start()
        send(service, "a", 1)
        run("backup", short_path / "backup.rdb", "--redis", store.url)
        send(service, "a", 2)
        (store.folder / "appendonlydir").rename(store.folder / "before-restore")
        shutil.copyfile(short_path / "backup.rdb", store.folder / "appendonly.aof")
        store.stop()
        store.start()
        gap = send(service, "a", 3)
        metrics = httpx2.get(f"{service.url}/metrics", trust_env=False, timeout=30).text
        service.stop()

    assert (gap["code"], gap["expected"]) == ("seq_gap", 2)
    assert "stepwell_store_regressions_total 1.0" in metrics.splitlines()


def test_a_restored_store_goes_on_writing_its_file(short_path: Path) -> None:
    """What is written after a restore is there after the next start."""
    with server(short_path / "store", *AOF) as store:
        asyncio.run(backup_to(store.url, short_path / "backup.rdb"))
    restore(short_path / "data", short_path / "backup.rdb")
    for key in ("one", "two"):
        embedded = EmbeddedStore(short_path / "data")
        embedded.start()
        with redis.Redis.from_url(embedded.url) as client:
            client.set(key, "1")
            keys = set(client.keys())
        embedded.stop()

    assert keys == {b"one", b"two"}


def test_a_damaged_backup_leaves_the_data_as_it_was(short_path: Path) -> None:
    embedded = EmbeddedStore(short_path / "data")
    embedded.start()
    with redis.Redis.from_url(embedded.url) as client:
        client.mset({f"key-{n}": "v" * 100 for n in range(1000)})
    asyncio.run(backup_to(embedded.url, short_path / "backup.rdb"))
    embedded.stop()
    whole = (short_path / "backup.rdb").read_bytes()
    (short_path / "backup.rdb").write_bytes(whole[: len(whole) // 2])

    result = run("restore", short_path / "backup.rdb", "--data-dir", short_path / "data")

    assert isinstance(result.exception, BackupError)
    assert "is as it was" in result.exception.problem
    embedded.start()
    with redis.Redis.from_url(embedded.url) as client:
        assert client.dbsize() == 1000
    embedded.stop()


def test_what_is_no_backup_is_refused(short_path: Path) -> None:
    (short_path / "text").write_text("streams")

    result = run("restore", short_path / "text", "--data-dir", short_path / "data")

    assert isinstance(result.exception, BackupError)
    assert "no RDB file: it begins with 'streams'; expected REDIS or VALKEY" in result.exception.problem
    assert not (short_path / "data").exists()


def test_a_backup_that_is_not_there_is_reported_with_what_to_do(short_path: Path) -> None:
    result = run("restore", short_path / "no.rdb", "--data-dir", short_path / "data")

    assert isinstance(result.exception, BackupError)
    assert "No such file" in result.exception.problem
    assert "stepwell backup" in str(result.exception.fix)


def test_a_store_of_its_own_is_not_restored_into_a_folder(short_path: Path) -> None:
    result = run("restore", short_path / "backup.rdb", STEPWELL_REDIS="redis://redis:6379/0")

    assert isinstance(result.exception, BackupError)
    assert "reads a backup when it starts" in result.exception.problem


def test_a_folder_without_a_running_store_cannot_be_backed_up(short_path: Path) -> None:
    result = run("backup", short_path / "backup.rdb", "--data-dir", short_path)

    assert isinstance(result.exception, BackupError)
    assert "No embedded store runs" in result.exception.problem


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_a_server_may_send_its_data_from_memory_or_from_a_file(short_path: Path, diskless: str) -> None:
    options = (*AOF, "--repl-diskless-sync", diskless, "--repl-diskless-sync-delay", "0")
    with server(short_path / "store", *options) as store, store.client() as client:
        client.mset({f"key-{n}": "v" * 1000 for n in range(5000)})
        asyncio.run(backup_to(store.url, short_path / "backup.rdb"))

    assert restore(short_path / "data", short_path / "backup.rdb") == 5000


def test_the_user_of_the_page_can_make_a_backup(short_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/backup.md").read_text()
    [rule] = re.findall(r"^ACL SETUSER (.*)$", page, re.MULTILINE)
    with server(short_path / "store", *AOF, "--repl-diskless-sync-delay", "0") as store:
        with store.client() as client:
            client.execute_command("ACL", "SETUSER", *rule.split())
        result = run("backup", short_path / "x.rdb", "--redis", f"unix://backup:another-password@{store.socket}")

    assert result.exit_code == 0


def test_a_user_without_the_permission_is_told_which(short_path: Path) -> None:
    with server(short_path / "store", *AOF) as store:
        with store.client() as client:
            client.acl_setuser(
                "reader", enabled=True, passwords=["+secret"], keys=["*"], commands=["+get", "+replconf"]
            )
        result = run("backup", short_path / "x.rdb", "--redis", f"unix://reader:secret@{store.socket}")

    assert isinstance(result.exception, BackupError)
    assert "+sync" in result.exception.fix
    assert list(short_path.glob("x.rdb*")) == []


def test_a_cluster_is_backed_up_by_its_primaries(short_path: Path) -> None:
    result = run("backup", short_path / "x.rdb", "--redis", "redis+cluster://127.0.0.1:1")

    assert isinstance(result.exception, BackupError)
    assert "each primary" in result.exception.fix


def test_a_cluster_goes_back_to_the_files_of_its_primaries(short_path: Path) -> None:
    names = [f"key-{n}" for n in range(300)]
    with cluster(options=AOF) as nodes:
        with nodes.client() as client:
            for name in names:
                client.set(name, "old")
            for n, node in enumerate(nodes.primaries):
                asyncio.run(backup_to(f"redis://127.0.0.1:{node.port}", short_path / f"{n}.rdb"))
            for name in names:
                client.set(name, "new")
        for n, node in enumerate(nodes.primaries):
            (node.folder / "appendonlydir").rename(node.folder / "before-restore")
            shutil.copyfile(short_path / f"{n}.rdb", node.folder / "appendonly.aof")
            node.stop()
        for node in nodes.primaries:
            node.start()
        nodes.wait_ok()
        with nodes.client() as client:
            values = {client.get(name) for name in names}

    assert values == {b"old"}


def test_a_server_that_ends_in_the_middle_leaves_no_file(short_path: Path) -> None:
    with server(short_path / "store", *AOF, "--rdb-key-save-delay", "1000") as store:
        with store.client() as client:
            client.mset({f"key-{n}": "v" * 5000 for n in range(4_000)})

        class Killing(io.BytesIO):
            def write(self, data: Any) -> int:
                store.kill()
                return super().write(data)

        with pytest.raises(BackupError, match="closed"):
            asyncio.run(write_backup(store.url, Killing()))


async def backup_to(url: str, file: Path) -> None:
    with file.open("wb") as out:
        await write_backup(url, out)
