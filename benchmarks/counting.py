"""What it costs to count streams by version: `python -m benchmarks.counting`.

Records are written to a private store directly. Then they are counted as a worker counts them: while the model has a
release, and without one, when the count may use a hundredth of the store's time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import redis
import typer

from benchmarks.engines import private_store
from benchmarks.processes import processes_of
from stepwell.addons.releases import keys
from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.pair_state import PairState
from stepwell.addons.releases.store import ReleaseStore
from stepwell.addons.releases.stream_counts import StreamCounter
from stepwell.store.keys import record_key
from stepwell.store.record import Kind, Record
from stepwell.store.state_store import StateStore
from stepwell.store.transport.retry import deadline

MODEL, OLD, NEW = "bench", b"version1", b"version2"
_AT_ONCE = 5000


def main(
    *,
    streams: Annotated[int, typer.Option(help="Streams in the store; every tenth one is a pair.")] = 1_000_000,
    passes: Annotated[int, typer.Option(help="Counts that are measured while the model has a release.")] = 3,
) -> None:
    """Print the duration of a count, and the CPU time of the store and of the worker in it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, private_store(Path(name)) as url:
        started = time.monotonic()
        with redis.Redis.from_url(url) as client:
            for records in _records(streams):
                client.mset(records)
        print(f"{streams:,} streams were written in {time.monotonic() - started:.0f} s", flush=True)
        asyncio.run(_measure(url, streams, passes))


def _records(streams: int) -> Iterator[dict[str, bytes]]:
    """Yield the keys and values of records, some at a time."""
    pair = PairState(OLD, NEW, "ramp", 1, responded=True)
    of_pair, of_version = (
        Record(1, 1, 1, Kind.STEP, bytes(16), bytes(16), fingerprint, 1, 1, bytes(8), state).encode()
        for fingerprint, state in ((pair.assignment.fingerprint, bytes(512) + pair.encode()), (OLD, bytes(256)))
    )
    for at in range(0, streams, _AT_ONCE):
        numbers = range(at, min(at + _AT_ONCE, streams))
        yield {record_key("default", MODEL, f"s{n:07}"): of_version if n % 10 else of_pair for n in numbers}


async def _measure(url: str, streams: int, passes: int) -> None:
    store = ReleaseStore(StateStore(url))
    releases = Releases()
    releases.put(MODEL, ReleaseDocument(MODEL, 1, ReleaseVersion(1, OLD), 0.0))
    counter = StreamCounter(store, releases)
    for number in range(passes):
        await _count(counter, f"with a release, count {number + 1}", streams)
        await _lease_ends(store)
    releases.put(MODEL, None)
    await _count(counter, "without a release", streams)
    await store.state_store.close()


async def _count(counter: StreamCounter, name: str, streams: int) -> None:
    processes = processes_of(os.getpid())
    own, of_store = processes.cpu()
    started = time.monotonic()
    await counter.refresh()
    seconds = time.monotonic() - started
    own, of_store = (after - before for after, before in zip(processes.cpu(), (own, of_store), strict=True))
    assert counter.counts is not None
    n_pairs = -(-streams // 10)
    assert counter.counts.of(MODEL) == {OLD.hex(): streams - n_pairs, NEW.hex(): n_pairs}
    print(
        f"{name}: {seconds:5.1f} s; CPU of the store {of_store:.2f} s ({of_store / seconds:.1%}),"
        f" of the worker {own:.2f} s ({own / seconds:.1%})",
        flush=True,
    )


async def _lease_ends(store: ReleaseStore) -> None:
    left_ms = await store.state_store.execute(deadline(), "PTTL", keys.COUNT_LEASE)
    await asyncio.sleep(max(0, left_ms) / 1000 + 0.1)


if __name__ == "__main__":
    typer.run(main)
