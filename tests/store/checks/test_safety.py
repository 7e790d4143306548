"""Stores whose settings or permissions break a promise: refused at start, reported while running."""

from __future__ import annotations

import io
import re
import secrets
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from stepwell import app
from stepwell.addons.backup.rdb import write_backup
from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.commands.store_permissions import check_permissions
from stepwell.errors import ServiceError
from stepwell.service_addon import addon_classes
from stepwell.store.checks.safety import SafetyMonitor, UnsafeStoreError, check_safe, read_server_info
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey
from tests.api.running import running_service
from tests.engine.harness import FOLD, expect_error, step, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server
from tests.store.clusters import cluster, primary_and_replica

DOC = (Path(__file__).parents[3] / "docs" / "stores.md").read_text()
ALWAYS = {"appendonly": "yes", "appendfsync": "always"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


def configure(server: Server, **settings: str) -> None:
    with server.client() as client:
        for name, value in settings.items():
            client.config_set(name.replace("_", "-"), value)


# ---------------------------------------------------------------- settings


REFUSED: list[tuple[dict[str, str], Any, str]] = [
    ({"maxmemory_policy": "allkeys-lru"}, "memory", "'allkeys-lru'; expected 'noeviction'"),
    ({"maxmemory_policy": "volatile-ttl"}, "memory", "'volatile-ttl'; expected 'noeviction'"),
    ({}, "fsync", "appendonly no, appendfsync everysec; expected appendonly yes, appendfsync always"),
    ({}, "replica", "no replica is connected"),
    ({"appendonly": "yes"}, "fsync", "appendonly yes, appendfsync everysec"),
]


async def test_a_store_that_cannot_keep_a_promise_is_refused(redis_server: Server) -> None:
    store = StateStore(redis_server.url)
    for settings, durability, message in REFUSED:
        configure(redis_server, **{"maxmemory_policy": "noeviction", **settings})
        facts = await read_server_info(store, timeout=5)

        with pytest.raises(UnsafeStoreError, match=re.escape(message)):
            check_safe(facts, durability, allow_eviction=False)
    await store.close()


async def test_the_memory_of_a_store_is_read_with_its_settings(redis_server: Server) -> None:
    store = StateStore(redis_server.url)
    unlimited = await read_server_info(store, timeout=5)
    with redis_server.client() as client:
        client.set("large", b"x" * 5_000_000)
    configure(redis_server, maxmemory="100mb")
    limited = await read_server_info(store, timeout=5)
    await store.close()

    assert unlimited.max_memory == 0
    assert limited.max_memory == 100 * 2**20
    assert 5_000_000 <= limited.used_memory - unlimited.used_memory < 10_000_000


async def test_the_memory_of_a_cluster_is_that_of_all_primaries() -> None:
    with cluster() as one:
        store = StateStore(one.url)
        whole = await read_server_info(store, timeout=5)
        _, primaries = await store.transport.primaries()
        replies = [await primary.call(("INFO", "memory")) for primary in primaries]
        await store.close()
        used = [int(re.search(rb"used_memory:(\d+)", reply[0])[1]) for reply in replies]  # type: ignore[index]

    assert len(used) == 3
    assert whole.used_memory == pytest.approx(sum(used), rel=0.2)


async def test_a_store_that_keeps_the_promises_is_accepted(short_path: Path) -> None:
    with primary_and_replica(short_path, "--appendonly", "yes", "--appendfsync", "always") as (primary, _, _, _):
        store = StateStore(primary.url, durability="replica")
        facts = await read_server_info(store, timeout=5)
        for durability in ("memory", "fsync", "replica"):
            check_safe(facts, durability, allow_eviction=False)
        await check_permissions(store, addon_classes())
        await store.close()


async def test_commits_are_rejected_while_the_append_only_file_is_not_flushed(
    folder: Path, redis_server: Server
) -> None:
    configure(redis_server, **ALWAYS)
    async with worker(redis_server.url, folder, durability="fsync") as engine:
        watch = SafetyMonitor(engine.store, "fsync", allow_eviction=False)
        await watch.check()
        await engine.steps.advance(step("a", 1, seq=1))
        configure(redis_server, appendfsync="everysec")
        await watch.check()
        refused = await expect_error(engine, step("a", 2, seq=2))
        told = list(watch.reasons)
        configure(redis_server, **ALWAYS)
        await watch.check()
        again = await engine.steps.advance(step("a", 2, seq=2))

    assert (refused.code, refused.applied, refused.retry) == ("not_durable", "no", "same")
    assert ["appendfsync everysec" in reason for reason in told] == [True]
    assert (ys(again), watch.reasons) == (fold_reference([1, 2])[-1:], [])


async def test_an_unreachable_store_is_not_judged(redis_server: Server) -> None:
    store = StateStore(redis_server.url, timeout=0.3)
    watch = SafetyMonitor(store, "memory", allow_eviction=False)
    await watch.check()
    before = watch.info
    redis_server.kill()
    await watch.check()

    assert (watch.info, watch.reasons) == (before, [])
    await store.close()


async def test_evicted_keys_and_a_changed_replication_history_are_logged(
    redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = StateStore(redis_server.url)
    watch = SafetyMonitor(store, "memory", allow_eviction=True)
    await watch.check()
    with redis_server.client() as client:
        client.set("x", "y", ex=100)
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.OutOfMemoryError):
            client.set("more", "z")
    await watch.check()
    redis_server.kill()
    redis_server.start()
    await store.ping(timeout=5)
    await watch.check()
    await store.close()

    assert "evicted 1 live key " in caplog.text
    assert "restarted or failed over" in caplog.text


async def test_a_backup_is_not_logged_as_a_restart(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    configure(redis_server, repl_diskless_sync_delay="0")  # 5 s by default, in which other replicas could come
    store = StateStore(redis_server.url)
    watch = SafetyMonitor(store, "memory", allow_eviction=True)
    await watch.check()
    with redis_server.client() as client:
        before = client.info("replication")["master_replid"]
        await write_backup(redis_server.url, io.BytesIO())
        assert client.info("replication")["master_replid"] != before  # the server's first replica
    await watch.check()
    await store.close()

    assert "restarted or failed over" not in caplog.text


def test_an_eviction_policy_that_is_set_later_ends_readiness(
    tmp_path: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_SAFETY_S", 0.05)
    with running_service(redis_server.url, write_models(tmp_path, fold)) as one:
        ready = [wait_for_readiness(one.http, 200)]
        configure(redis_server, maxmemory_policy="allkeys-lru")
        ready.append(wait_for_readiness(one.http, 503))
        info = one.http.get("/v1/info").json()
        metric = "stepwell_store_safe 0.0" in one.http.get("/metrics").text
        alive = one.http.get("/healthz").status_code
        configure(redis_server, maxmemory_policy="noeviction")
        ready.append(wait_for_readiness(one.http, 200))

    assert [reasons for reasons in ready if reasons] == [ready[1]]
    assert "'allkeys-lru'; expected 'noeviction'" in ready[1][0]
    assert (info["durability"], info["store"]["policy"], info["store"]["unsafe"]) == ("memory", "allkeys-lru", ready[1])
    assert (metric, alive) == (True, 200)


def wait_for_readiness(http: httpx2.Client, status: int) -> list[str]:
    """Wait until readiness has a status, and return its reasons."""
    while (answer := http.get("/readyz")).status_code != status:
        pass
    return [str(reason) for reason in answer.json()["reasons"]]


# ---------------------------------------------------------------- permissions


def documented_permissions() -> list[str]:
    """Return the arguments that docs/stores.md gives to `ACL SETUSER`, without name and password."""
    [command] = re.findall(r"<!-- acl -->\n```\n(.*)\n```", DOC)
    words = command.split()
    assert words[:5] == ["ACL", "SETUSER", "stepwell", "on", ">a-long-password"]
    return [str(word) for word in words[5:]]


class AclServer:
    """A server with a separate ACL user for each store."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def url(self, *rights: str) -> str:
        name = f"u{secrets.token_hex(4)}"
        with self.server.client() as client:
            client.execute_command("ACL", "SETUSER", name, "on", ">secret", *rights)
        return f"unix://{name}:secret@{self.server.socket}"


@pytest.fixture
def acl_server(redis_server: Server) -> AclServer:
    return AclServer(redis_server)


async def test_the_documented_permissions_suffice(folder: Path, acl_server: AclServer) -> None:
    async with worker(acl_server.url(*documented_permissions()), folder) as engine:
        facts = await read_server_info(engine.store, timeout=5)
        await check_permissions(engine.store, addon_classes())
        await engine.steps.advance(step("a", 1, seq=1, idempotency_key="k"))
        replayed = await engine.steps.advance(step("a", 1, seq=1, idempotency_key="k"))
        await engine.steps.advance(step("a", 2, seq=2))
        key = StreamKey("default", FOLD, "a")
        await StreamCopies(engine).create_snapshot(key, "s", after=None, idempotency_key=None)
        await engine.streams.reset(key, snapshot="s")
        status = await engine.streams.status(key)
        page = await engine.streams.list("default", FOLD)
        await engine.streams.delete(key)
        reasons = await engine.readiness_problems()

    assert (facts.policy, facts.appendfsync) == ("noeviction", None)
    assert (replayed.replayed, status.step, page.streams, reasons) == (True, 2, [("a", 2)], [])


async def test_the_documented_permissions_of_each_durability_and_kind_suffice(
    short_path: Path, acl_server: AclServer
) -> None:
    store = StateStore(acl_server.url(*documented_permissions(), "+config|get"))
    assert (await read_server_info(store, timeout=5)).appendfsync == "everysec"
    await store.close()
    with primary_and_replica(short_path) as (primary, _, _, _):
        store = StateStore(AclServer(primary).url(*documented_permissions(), "+wait"), durability="replica")
        await check_permissions(store, addon_classes())
        await store.close()


async def test_the_documented_permissions_on_a_cluster_suffice(folder: Path) -> None:
    with cluster() as three:
        for node in three.nodes:
            with node.client() as client:
                rights = [*documented_permissions(), "+cluster|slots", "+asking"]
                client.execute_command("ACL", "SETUSER", "stepwell", "on", ">secret", *rights)
        async with worker(three.url.replace("://", "://stepwell:secret@"), folder) as engine:
            await check_permissions(engine.store, addon_classes())
            assert (await engine.steps.advance(step("a", 1, seq=1))).step == 1


GRANTED = [word for word in documented_permissions() if word.startswith("+")]


async def test_a_missing_permission_is_named_before_the_first_request(acl_server: AclServer) -> None:
    for right in set(GRANTED) - {"+ping", "+info", "+unsubscribe"}:
        store = StateStore(acl_server.url(*(word for word in documented_permissions() if word != right)))
        await read_server_info(store, timeout=5)

        with pytest.raises(UnsafeStoreError, match=f"(?i){right[1:]}"):
            await check_permissions(store, addon_classes())
        await store.close()


def test_the_documented_permissions_allow_nothing_else(acl_server: AclServer) -> None:
    commands = "FLUSHALL, KEYS *, CONFIG GET *, SHUTDOWN, SCRIPT FLUSH, GET other, PUBLISH other x, ACL LIST"
    with redis.Redis.from_url(acl_server.url(*documented_permissions())) as client:
        for words in (command.split() for command in commands.split(", ")):
            with pytest.raises(redis.ResponseError, match=r"permission|NOPERM"):
                client.execute_command(*words)
            with pytest.raises(redis.ResponseError):
                client.eval(f"return redis.call({', '.join(map(repr, words))})", 0)


async def test_a_user_without_commands_keys_or_channels_is_refused(acl_server: AclServer) -> None:
    for rights in (["-@all", "~swl:*"], ["~other:*", "+@all"], ["~swl:*", "+@all", "resetchannels"]):
        store = StateStore(acl_server.url(*rights))

        with pytest.raises(UnsafeStoreError, match=r"permission|NOPERM"):  # noqa: PT012 - either check may detect it
            await read_server_info(store, timeout=0)
            await check_permissions(store, addon_classes())
        await store.close()


async def test_a_permission_that_is_revoked_later_is_a_503(folder: Path, acl_server: AclServer) -> None:
    url = acl_server.url(*documented_permissions())
    async with worker(url, folder) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        with acl_server.server.client() as client:
            client.execute_command("ACL", "SETUSER", url[7:].partition(":")[0], "-evalsha", "-eval")
        refused = await expect_error(engine, step("a", 2, seq=2))

    assert isinstance(refused, ServiceError)
    assert (refused.code, refused.applied) == ("store_unavailable", "no")


async def test_a_wrong_password_is_refused_at_once(acl_server: AclServer) -> None:
    store = StateStore(acl_server.url(*documented_permissions()).replace(":secret@", ":wrong@"))

    with pytest.raises(UnsafeStoreError, match="password"):
        await read_server_info(store, timeout=60)
    await store.close()
