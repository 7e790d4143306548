"""What a record costs the store, by its size: `python -m benchmarks.stored`.

Commits go to the store directly, in batches of 256, so that its costs are measured without those of the service.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepwell.store.commits import ColumnarCommits, Commit, Outcome
from stepwell.store.record import GUARD_AT, HEADER_BYTES, Kind, Record
from stepwell.store.state_store import StateStore
from tests.servers import AOF, Server, servers
from tests.store.clusters import cluster

SIZES = (64, 512, 4096, 16384)
BATCH = 256
ROUNDS = 4
BYTES = 60_000_000  # of all records of one size


class Costs(NamedTuple):
    """What records of one size cost.

    Attributes:
        memory: Bytes of the store per stream.
        cpu_us: Microseconds of CPU of the store per commit.
        sent_us: Microseconds of CPU of this process per commit.
        log: Bytes of the append-only file per commit.
        read: Bytes of that file that a restarted store reads per second.
    """

    memory: float
    cpu_us: float
    sent_us: float
    log: float
    read: float


def main() -> None:
    """Print the costs of records of each size, on the server of $STEPWELL_REDIS_SERVER or the first one found."""
    binary = Path(os.environ.get("STEPWELL_REDIS_SERVER") or servers()["redis-server"])
    print(
        "| record bytes | memory a stream | file bytes a step | read MB/s "
        "| store us | worker us | in a Cluster: store us | worker us |"
    )
    print("| --: | --: | --: | --: | --: | --: | --: | --: |")
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            server = Server(Path(folder), *AOF, "--auto-aof-rewrite-percentage", "0", binary=binary)
            costs = asyncio.run(_measure(server.start(), server.url, size))
            server.kill()
        with cluster(primaries=1, binary=binary) as one:
            in_cluster = asyncio.run(_measure(one.primaries[0], one.url, size))
        print(
            f"| {size + HEADER_BYTES:,} | {costs.memory:,.0f} | {costs.log:,.0f} | {costs.read / 1e6:,.0f} |"
            f" {costs.cpu_us:.1f} | {costs.sent_us:.1f} | {in_cluster.cpu_us:.1f} | {in_cluster.sent_us:.1f} |",
            flush=True,
        )


async def _measure(server: Server, url: str, size: int) -> Costs:
    n_streams = min(100_000, BYTES // (size + 300))
    names = [f"swl:1:{{default/model/stream-{n:07}}}" for n in range(n_streams)]
    before = _info(server)
    store = StateStore(url)
    await _commit_all(store, names, size, steps=[1])
    created = _info(server)
    own = time.process_time()
    await _commit_all(store, names, size, steps=range(2, 2 + ROUNDS))
    own = time.process_time() - own
    stepped = _info(server)
    await store.close()
    server.kill()
    started_at = time.monotonic()
    server.start()
    seconds = time.monotonic() - started_at
    commits = n_streams * ROUNDS
    return Costs(
        memory=(created["used_memory"] - before["used_memory"]) / n_streams,
        cpu_us=(_cpu_s(stepped) - _cpu_s(created)) / commits * 1e6,
        sent_us=own / commits * 1e6,
        log=(stepped.get("aof_current_size", 0) - created.get("aof_current_size", 0)) / commits,
        read=stepped.get("aof_current_size", 0) / seconds,
    )


async def _commit_all(store: StateStore, names: Sequence[str], size: int, steps: Sequence[int]) -> None:
    loop = asyncio.get_running_loop()
    state = os.urandom(size)
    for step in steps:
        expect = _record(step - 1, state)[GUARD_AT] if step > 1 else b""
        record = _record(step, state)
        for at in range(0, len(names), BATCH):
            batch = names[at : at + BATCH]
            commits: Sequence[Commit] = [Commit(name, expect, record) for name in batch]
            if expect:  # as the service commits a batch of streams that exist
                columns = ColumnarCommits(batch, len(record))
                columns.guards[:] = np.frombuffer(expect, np.uint8)
                columns.records[:] = np.frombuffer(record, np.uint8)
                commits = columns
            results = await store.commit(commits, deadline=loop.time() + 60)
            assert all(results[i].outcome == Outcome.APPLIED for i in range(len(commits)))


def _record(step: int, state: bytes) -> bytes:
    return Record(1, step, 1, Kind.STEP, bytes(16), step.to_bytes(16, "little"), bytes(8), 1, 1, b"", state).encode()


def _info(server: Server) -> dict[str, float]:
    with server.client() as client:
        found: dict[str, float] = client.info()
    return found


def _cpu_s(info: dict[str, float]) -> float:
    return info["used_cpu_sys"] + info["used_cpu_user"]


if __name__ == "__main__":
    main()
