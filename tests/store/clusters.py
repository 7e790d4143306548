"""Clusters, Sentinels and replicas for tests: real servers on loopback, started and connected by this module alone."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tests.processes import free_port
from tests.servers import Server, server, servers

SLOTS = 16384
_CLUSTER = "a Cluster of three"
KINDS = (*sorted(servers()), _CLUSTER)
"""The servers of the Redis protocol that are here, and a Cluster."""
_WITHIN_S = 20.0
_PATIENCE_S = 60  # for a server on a busy machine


class Node(Server):
    """One node of a Cluster, listening on a port and a unix socket."""

    def __init__(self, folder: Path, *options: str, binary: Path | None = None) -> None:
        self.port = port_with_bus()
        own = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        super().__init__(folder, "--port", str(self.port), "--bind", "127.0.0.1", *own, *options, binary=binary)
        self.id = ""

    @functools.cached_property
    def direct(self) -> Any:
        """A client that is reused for many commands."""
        return redis.Redis.from_url(self.url, socket_timeout=_PATIENCE_S)


class Cluster:
    """Primaries that share the slots evenly, each with the requested number of replicas."""

    def __init__(self, nodes: list[Node], primaries: int) -> None:
        self.nodes = nodes
        self.primaries = nodes[:primaries]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def client(self) -> redis.RedisCluster:
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port)

    def wait_ok(self) -> None:
        """Wait until every node considers the Cluster complete."""
        _wait_until(lambda: all(_info(node.direct)["cluster_state"] == "ok" for node in self.nodes))

    def owner(self, slot: int) -> Node:
        with self.nodes[0].client() as client:
            ranges = client.execute_command("CLUSTER", "SLOTS")
        for first, last, primary, *_ in ranges:
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise LookupError(slot)

    def move(self, slot: int, to: Node) -> None:
        """Move one slot as redis-cli does, key by key."""
        self._move(slot, self.owner(slot), to)

    def wait_agreed(self) -> None:
        """Wait until all nodes have the same view; a slot that is moved before that may be claimed by two nodes."""
        _wait_until(lambda: len({self._view_of(node) for node in self.nodes}) == 1)

    @staticmethod
    def _view_of(node: Node) -> frozenset[tuple[bytes, ...]]:
        lines = node.direct.execute_command("CLUSTER", "NODES").splitlines()
        fields = (line.split() for line in lines)
        return frozenset((own[0], own[6], *own[8:]) for own in fields)  # id, epoch, slots

    def move_many(self, slots: Iterable[int]) -> None:
        """Move slots, each to the primary after its current one."""
        owners = {slot: node for node in self.primaries for slot in self._slots_of(node)}
        for slot in slots:
            source = owners[slot]
            self._move(slot, source, self.primaries[(self.primaries.index(source) + 1) % len(self.primaries)])

    def _slots_of(self, node: Node) -> list[int]:
        with node.client() as client:
            ranges = client.execute_command("CLUSTER", "SLOTS")
        return [slot for first, last, who, *_ in ranges if who[1] == node.port for slot in range(first, last + 1)]

    def _move(self, slot: int, source: Node, to: Node) -> None:
        src, dst = source.direct, to.direct
        dst.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        src.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        while keys := src.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            src.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 1000 * _PATIENCE_S, "KEYS", *keys)
        for node in (to, source, *(other for other in self.primaries if other not in (source, to))):
            node.direct.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    @property
    def moves_atomically(self) -> bool:
        """Whether the servers can move slots as a whole (Valkey 9)."""
        return any(b"MIGRATESLOTS" in line for line in self.nodes[0].direct.execute_command("CLUSTER", "HELP"))

    def move_atomically(self, slots: Iterable[int], to: Node) -> None:
        """Move slots of one primary by `CLUSTER MIGRATESLOTS`; returns once every node has the new owner."""
        moved = sorted(set(slots))
        source = self.owner(moved[0])
        ranges = [part for slot in moved for part in (slot, slot)]
        source.direct.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", to.id)
        _wait_until(lambda: all(self._owners_seen_by(node, moved) == {to.port} for node in self.nodes))

    @staticmethod
    def _owners_seen_by(node: Node, slots: Sequence[int]) -> set[int]:
        ranges = node.direct.execute_command("CLUSTER", "SLOTS")
        return {who[1] for slot in slots for first, last, who, *_ in ranges if first <= slot <= last}

    def wait_subscribed(self, channels: Iterable[str], connections: int) -> None:
        """Wait until so many connections are subscribed to each shard channel, on the node of its slot."""
        for channel in channels:
            _wait_until(lambda channel=channel: self._subscribers(channel) == connections)  # type: ignore[misc]

    def _subscribers(self, channel: str) -> int:
        owner = self.owner(slot_of(channel))
        return int(owner.direct.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1])

    def bus_messages(self, kind: str) -> int:
        """Return how many messages of a kind the nodes have sent on the cluster bus: `publish`, `publishshard`."""
        return sum(int(_info(node.direct).get(f"cluster_stats_messages_{kind}_sent", 0)) for node in self.nodes)

    def start_move(self, slot: int, to: Node) -> None:
        """Start a move and leave it unfinished: existing keys stay on the source node, new ones go to the other."""
        source = self.owner(slot)
        with source.client() as src, to.client() as dst:
            dst.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
            src.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)


def slot_of(key: str) -> int:
    slot: int = key_slot(key.encode())
    return slot


@contextmanager
def server_or_cluster(kind: str) -> Iterator[Server | Cluster]:
    """Run one of `KINDS`, and end it."""
    if kind == _CLUSTER:
        with cluster() as three:
            yield three
        return
    with tempfile.TemporaryDirectory(prefix="sw") as folder, server(Path(folder), binary=servers()[kind]) as one:
        yield one


@contextmanager
def cluster(
    *, primaries: int = 3, replicas: int = 0, binary: Path | None = None, options: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Run a Cluster until the block ends."""
    total = primaries * (1 + replicas)
    with tempfile.TemporaryDirectory(prefix="swc") as folder, ExitStack() as stack:
        nodes = [stack.enter_context(_node(Path(folder) / str(n), binary, options)) for n in range(total)]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for node, client in zip(nodes, clients, strict=True):
            node.id = client.execute_command("CLUSTER", "MYID").decode()
        share = -(-SLOTS // primaries)
        for n, client in enumerate(clients[:primaries]):
            client.execute_command("CLUSTER", "ADDSLOTS", *range(n * share, min((n + 1) * share, SLOTS)))
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        _wait_until(lambda: all(_info(client)["cluster_known_nodes"] == str(total) for client in clients))
        for n in range(primaries, total):
            _wait_until(lambda n=n: _accepts(clients[n], "CLUSTER", "REPLICATE", nodes[n % primaries].id))  # type: ignore[misc]
        one = Cluster(nodes, primaries)
        one.wait_ok()
        _wait_until(lambda: all(is_synchronized(client) for client in clients[primaries:]))
        yield one


@contextmanager
def sentinels(
    folder: Path,
    primary: int,
    *,
    name: str = "pumps",
    down_after_ms: int = 300,
    options: str = "",
    password: str | None = None,
    binary: Path | None = None,
) -> Iterator[int]:
    """Run a Sentinel that monitors a primary and its replicas; yields its port."""
    port, conf = free_port(), folder / "sentinel.conf"
    lines = [
        f"port {port}",
        f"dir {folder}",
        f"logfile {folder}/sentinel.log",
        f"sentinel monitor {name} 127.0.0.1 {primary} 1",
        f"sentinel down-after-milliseconds {name} {down_after_ms}",
        f"sentinel failover-timeout {name} 2000",
        options,
    ]
    conf.write_text("\n".join(lines))
    with subprocess.Popen([str(binary or next(iter(servers().values()))), str(conf), "--sentinel"]) as process:
        try:
            with redis.Redis(port=port, password=password, retry=Retry(ConstantBackoff(0.02), 200)) as client:
                client.ping()
                with contextlib.suppress(redis.ResponseError):  # 6.2 has no such command and polls every ten seconds
                    for what in ("INFO", "PUBLISH", "PING", "ASK"):
                        client.execute_command("SENTINEL", "DEBUG", f"{what}-PERIOD", 100)
            yield port
        finally:
            process.kill()


@contextmanager
def primary_and_replica(folder: Path, *options: str) -> Iterator[tuple[Server, Server, int, int]]:
    """Run a primary and a synchronized replica; yields both servers and both ports."""
    one, two = free_port(), free_port()
    listen = ("--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0", *options)
    with (
        server(folder / "one", "--port", str(one), *listen) as primary,
        server(folder / "two", "--port", str(two), "--replicaof", "127.0.0.1", str(one), *listen) as replica,
    ):
        with replica.client() as client:
            _wait_until(lambda: is_synchronized(client))
        yield primary, replica, one, two


def port_with_bus() -> int:
    """Return a free port whose cluster bus port, 10,000 above it, is free too."""
    while True:
        port = free_port()
        if port < 2**16 - 10_000:
            with contextlib.suppress(OSError), socket.socket() as bus:
                bus.bind(("127.0.0.1", port + 10_000))
                return port


def is_synchronized(client: redis.Redis) -> bool:
    """Return whether a replica is connected to its primary and synchronized."""
    return client.info("replication").get("master_link_status") == "up"


def has_caught_up(replica: redis.Redis, primary: redis.Redis) -> bool:
    """Return whether a replica has processed all writes of its primary; WAIT would cover one client's writes only."""
    written = int(primary.info("replication")["master_repl_offset"])
    return int(replica.info("replication")["slave_repl_offset"]) >= written


@contextmanager
def _node(folder: Path, binary: Path | None, options: Sequence[str]) -> Iterator[Node]:
    node = Node(folder, "--repl-diskless-sync-delay", "0", *options, binary=binary)
    node.start()
    try:
        yield node
    finally:
        node.direct.close()
        node.kill()


def _info(client: redis.Redis) -> dict[str, str]:
    found = client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]  # a dict, by redis-py
    return {str(name): str(value) for name, value in found.items()}


def _accepts(client: redis.Redis, *command: str) -> bool:
    try:
        client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here
    except redis.ResponseError:
        return False
    return True


def _wait_until(fact: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + _WITHIN_S
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError("the servers did not come together")
        time.sleep(0.01)  # noqa: TID251 - no event reports the state of other processes
