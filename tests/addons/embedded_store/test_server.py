"""The embedded store: one per folder, stopped with its service, its data there at the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import redis

from stepwell.addons.embedded_store.server import EmbeddedStore, EmbeddedStoreError, ended_with_parent, find_server
from tests.processes import is_running

KILLED_SERVICE = """
import os, signal, sys
from pathlib import Path
from stepwell.addons.embedded_store.server import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
store.start()
import redis
redis.Redis.from_url(store.url).set("left", "behind")
print(store._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


KILLED_AFTER_A_RESTART = """
import os, signal, sys
from pathlib import Path
import redis
from stepwell.addons.embedded_store.server import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
store.start()
def pid():
    try:
        return redis.Redis.from_url(store.url).info("server")["process_id"]
    except redis.RedisError:
        return None
first = pid()
os.kill(first, signal.SIGKILL)
while pid() in (None, first):
    pass
print(first, pid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def client(store: EmbeddedStore) -> redis.Redis:
    return redis.Redis.from_url(store.url, socket_timeout=5)


def test_data_is_there_at_the_next_start(short_path: Path) -> None:
    store = EmbeddedStore(short_path)
    store.start()
    with client(store) as c:
        c.set("k", "v")
    store.stop()
    again = EmbeddedStore(short_path)
    again.start()

    with client(again) as c:
        assert c.get("k") == b"v"
    again.stop()
    assert not again.running


def test_it_is_private_never_evicts_and_rewrites_its_file_rarely(short_path: Path) -> None:
    store = EmbeddedStore(short_path)
    store.start()

    with client(store) as c:
        config = c.config_get("port", "maxmemory-policy", "appendonly", "appendfsync", "unixsocketperm")
        rewriting = c.config_get("auto-aof-rewrite-min-size", "rdbcompression")
    assert config == {
        "port": "0", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec",
        "unixsocketperm": "700",
    }  # fmt: skip
    assert rewriting == {"auto-aof-rewrite-min-size": str(256 * 2**20), "rdbcompression": "no"}
    assert store.socket.stat().st_mode & 0o077 == 0
    store.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread; elsewhere none is set")
def test_all_other_threads_yield_to_the_serving_thread(short_path: Path) -> None:
    store = EmbeddedStore(short_path)
    store.start()
    assert store._process is not None
    server = store._process.pid

    threads = [int(thread.name) for thread in Path(f"/proc/{server}/task").iterdir()]
    priority = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    serving = priority.pop(server)
    assert len(priority) > 1
    assert {*priority.values()} == {
        min(serving + 10, 19)
    }  # 19 is the lowest one, and the tests may run with one already
    store.stop()


def test_fsync_is_always_if_configured(short_path: Path) -> None:
    store = EmbeddedStore(short_path, fsync_always=True)
    store.start()

    with client(store) as c:
        assert c.config_get("appendfsync") == {"appendfsync": "always"}
    store.stop()


def test_a_second_service_on_one_folder_is_refused_by_name(short_path: Path) -> None:
    store = EmbeddedStore(short_path)
    store.start()

    with pytest.raises(EmbeddedStoreError, match=f"process {os.getpid()}"):
        EmbeddedStore(short_path).start()
    assert store.running
    store.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the store with its service on Linux only")
def test_a_store_stops_with_a_killed_service_and_keeps_its_data(short_path: Path) -> None:
    service = subprocess.run(
        [sys.executable, "-c", KILLED_SERVICE, str(short_path)], capture_output=True, text=True, timeout=60
    )
    left_behind = int(service.stdout)
    store = EmbeddedStore(short_path)
    store.start()

    assert service.returncode == -signal.SIGKILL
    assert not is_running(left_behind)
    with client(store) as c:
        assert c.get("left") == b"behind"
    store.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the store with its service on Linux only")
def test_a_store_that_was_started_again_ends_with_a_killed_service(short_path: Path) -> None:
    service = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_A_RESTART, str(short_path)], capture_output=True, text=True, timeout=60
    )
    first, second = map(int, service.stdout.split())

    assert service.returncode == -signal.SIGKILL, service.stderr
    assert first != second
    while is_running(second):
        pass


def test_a_store_outlives_the_thread_that_asked_for_it(short_path: Path) -> None:
    """The kernel ends a server with the thread that started it, so that is one which lives as long as the store."""
    store = EmbeddedStore(short_path)
    starting = threading.Thread(target=store.start)
    starting.start()
    starting.join()

    assert store._process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        store._process.wait(1)
    with client(store) as c:
        assert c.ping()
    store.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the store with its service on Linux only")
def test_a_command_does_not_start_after_the_end_of_its_parent() -> None:
    command = ended_with_parent(["/bin/sh", "-c", "echo started"])
    by_another = ["/bin/sh", "-c", '"$@"; true', "", *command]  # the shell is the parent

    texts = [subprocess.check_output(one, text=True, timeout=60) for one in (command, by_another)]

    assert texts == ["started\n", ""]


def test_the_start_does_not_fork_the_process_that_may_have_threads(short_path: Path) -> None:
    """JAX warns of that in its process, so every notebook with a model of Keras would show it."""
    forked: list[bool] = []
    os.register_at_fork(before=lambda: forked.append(True))
    store = EmbeddedStore(short_path)

    store.start()
    store.stop()

    assert forked == []


def test_an_orphaned_store_is_stopped_before_the_next_one_starts(short_path: Path) -> None:
    """As after a killed service on a system that cannot tie a child's life to its parent."""
    untold = "from stepwell.addons.embedded_store import server\nserver.ended_with_parent = list\n"
    service = subprocess.run(
        [sys.executable, "-c", untold + KILLED_SERVICE, str(short_path)], capture_output=True, text=True, timeout=60
    )
    left_behind = int(service.stdout)
    store = EmbeddedStore(short_path)
    with client(store) as c:
        before = c.info("server")["process_id"]
    store.start()

    with client(store) as c:
        assert before == left_behind != c.info("server")["process_id"]
        assert c.get("left") == b"behind"
    store.stop()
    assert not is_running(left_behind)


def test_a_long_folder_name_puts_the_socket_elsewhere(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / ("long" * 40))
    store.start()

    assert len(os.fsencode(store.socket)) < 107
    assert store.socket.parent.stat().st_mode & 0o077 == 0
    store.stop()


def test_a_server_that_does_not_start_shows_its_log(short_path: Path) -> None:
    (short_path / "appendonlydir").write_text("in the way")

    with pytest.raises(EmbeddedStoreError, match="did not start"):
        EmbeddedStore(short_path).start()


def test_the_configured_server_is_used_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    named = tmp_path / "my-redis"
    named.touch(mode=0o755)
    monkeypatch.setenv("STEPWELL_REDIS_SERVER", str(named))
    assert find_server() == named
    monkeypatch.setenv("STEPWELL_REDIS_SERVER", str(tmp_path / "nothing"))

    with pytest.raises(EmbeddedStoreError, match="not an executable"):
        find_server()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedStoreError, match="cannot be used"):
        EmbeddedStore(tmp_path / "file" / "data").start()
