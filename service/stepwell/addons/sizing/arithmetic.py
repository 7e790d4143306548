"""How many replicas of the service, and which Redis, a number of streams needs: arithmetic with measured costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from stepwell.store.record import HEADER_BYTES


class Sending(StrEnum):
    """How clients send timesteps."""

    HTTP = "http"
    WEBSOCKET = "websocket"
    COLUMNS = "columns"


@dataclass(frozen=True, slots=True)
class Constant:
    """A measured cost, or a choice.

    Attributes:
        value: The number.
        unit: Its unit.
        source: Where it is from.
    """

    value: float
    unit: str
    source: str


_HTTP_TABLE: Final = 'page "Performance", HTTP: one timestep per request, full load without the store and the model'
_FEED_TABLE: Final = 'page "Performance", WebSocket, without the store'
_STREAMS_TABLE: Final = 'page "Performance", Many live streams: a million streams, less a thousand'
_STORED: Final = 'python -m benchmarks.stored, page "Sizing"'

CONSTANTS: Final = {
    "step_us_http": Constant(18.6, "us of a worker per step", _HTTP_TABLE),
    "step_us_websocket": Constant(14.1, "us of a worker per step, 16 messages in flight", _FEED_TABLE),
    "step_us_columns": Constant(4.6, "us of a worker per step, 256 streams a message", _FEED_TABLE),
    "read_us": Constant(8.6, "us of a worker to read a record that it has not cached", _STREAMS_TABLE),
    "step_us_cluster": Constant(8.0, "us of a worker per step more, in a Cluster", _STORED),
    "commit_us": Constant(5.5, "us of the store per commit", _STORED),
    "commit_us_cluster": Constant(9.5, "us of the store per commit in a Cluster", _STORED),
    "commit_us_kib": Constant(2.9, "us of the store per KiB of a record", _STORED),
    "store_read_us": Constant(2.3, "us of the store to read a record", _STREAMS_TABLE),
    "key_bytes": Constant(180, "bytes of the store per stream besides its record", _STORED),
    "log_bytes": Constant(95, "bytes of the append-only file per step besides its record", _STORED),
    "busy": Constant(0.5, "share of a core that is planned for", 'choice: p99 grows above it (page "Performance")'),
    "filled": Constant(0.75, "share of maxmemory that is planned for", "choice: connections, events, fragmentation"),
    "ram": Constant(
        2.0, "memory of a machine in times of maxmemory", "choice: a rewrite copies what changes meanwhile"
    ),
    "disk": Constant(3.0, "disk in times of maxmemory", "choice: the file doubles, and is rewritten beside itself"),
    "replica_gib": Constant(2.0, "GiB of memory of one replica", "docker-compose.yml, SERVICE_MEMORY"),
}
"""Every number that the arithmetic uses, except those of the model."""
_LEAST_DISK: Final = 2**30  # the file is rewritten from 256 MB on
MIN_REPLICAS: Final = 2  # one may be replaced, or its node may die
MIN_PRIMARIES: Final = 3  # of a Cluster: they elect by majority


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for.

    Attributes:
        streams: Live streams: those that were stepped within the time to live.
        rate: Steps per second of all streams together.
        state_bytes: Bytes of one stream's states, as they are stored.
        output_bytes: Bytes of the predictions of one timestep.
        run_us: Microseconds of the model for one row, in a batch.
        sending: How timesteps are sent.
    """

    streams: int
    rate: float
    state_bytes: int
    output_bytes: int
    run_us: float
    sending: Sending = Sending.HTTP

    @property
    def record_bytes(self) -> int:
        """Bytes of one stream's record."""
        return HEADER_BYTES + self.output_bytes + self.state_bytes


@dataclass(frozen=True, slots=True)
class Size:
    """What a load needs.

    Attributes:
        record_bytes: Bytes of one stream's record.
        stream_bytes: Bytes of the store's memory per stream.
        data_bytes: The same, of all streams.
        step_us: CPU of a worker per step, in microseconds, with the model.
        replicas: Replicas of the service with one worker each.
        primaries: Primaries of the store; 1 is a single server, more are a Cluster.
        commit_us: CPU of the store per step, in microseconds.
        primary_share: Share of a core that each primary is busy.
        maxmemory_bytes: `maxmemory` of each primary.
        ram_bytes: Memory of its machine.
        disk_bytes: Its disk.
        log_bytes_per_s: What each primary writes to its disk, per second.
        bound: What decides the number of primaries: `memory` or `cpu`.
    """

    record_bytes: int
    stream_bytes: int
    data_bytes: int
    step_us: float
    replicas: int
    primaries: int
    commit_us: float
    primary_share: float
    maxmemory_bytes: int
    ram_bytes: int
    disk_bytes: int
    log_bytes_per_s: int
    bound: str


def size(load: Load, *, max_primary_bytes: int) -> Size:
    """Return what a load needs.

    Args:
        load: The streams and their steps.
        max_primary_bytes: The largest `maxmemory` of one primary.
    """
    stream_bytes = allocated(load.record_bytes) + int(_value("key_bytes"))
    data_bytes = load.streams * stream_bytes
    step_us = _value(f"step_us_{load.sending.value}") + _value("read_us") + load.run_us
    by_memory = math.ceil(data_bytes / (_value("filled") * max_primary_bytes))
    single_us = _commit_us(load.record_bytes, is_cluster=False)
    primaries, commit_us = 1, single_us
    by_cpu = _cores(load.rate, single_us)
    if max(by_memory, by_cpu) > 1:
        commit_us = _commit_us(load.record_bytes, is_cluster=True)
        by_cpu = _cores(load.rate, commit_us)
        primaries = max(by_memory, by_cpu, MIN_PRIMARIES)
        step_us += _value("step_us_cluster")
    maxmemory = _round_up(data_bytes / primaries / _value("filled"))
    return Size(
        record_bytes=load.record_bytes,
        stream_bytes=stream_bytes,
        data_bytes=data_bytes,
        step_us=step_us,
        replicas=max(_cores(load.rate, step_us), MIN_REPLICAS),
        primaries=primaries,
        commit_us=commit_us,
        primary_share=load.rate * commit_us / 1e6 / primaries,
        maxmemory_bytes=maxmemory,
        ram_bytes=int(maxmemory * _value("ram")),
        disk_bytes=max(int(maxmemory * _value("disk")), _LEAST_DISK),
        log_bytes_per_s=int(load.rate * (load.record_bytes + _value("log_bytes")) / primaries),
        bound="cpu" if by_cpu > by_memory else "memory",
    )


def allocated(n_bytes: int) -> int:
    """Return what the store's allocator takes for a value: jemalloc has four sizes between powers of two.

    Source: jemalloc's documentation, size classes: a multiple of 16 up to 128, then four for each doubling.
    """
    needed = n_bytes + 5  # the header of a string, and its final zero
    if needed <= 128:
        return -(-needed // 16) * 16
    spacing = 1 << ((needed - 1).bit_length() - 3)
    return -(-needed // spacing) * spacing


def _commit_us(record_bytes: int, *, is_cluster: bool) -> float:
    base = _value("commit_us_cluster" if is_cluster else "commit_us")
    return base + _value("commit_us_kib") * record_bytes / 1024 + _value("store_read_us")


def _cores(rate: float, us: float) -> int:
    return math.ceil(rate * us / 1e6 / _value("busy"))


def _round_up(n_bytes: float) -> int:
    """Return whole GiB above one GiB, and 256 MiB at least."""
    unit = 2**30 if n_bytes > 2**30 else 2**28
    return max(math.ceil(n_bytes / unit), 1) * unit


def _value(name: str) -> float:
    return CONSTANTS[name].value
