"""`SketchWindows`: the sketches of the last hour and day, of all workers, in the store.

A window is divided into buckets of time. A bucket is a hash in the store with a field for each worker, which holds the
sketch of what this worker has seen in that time; a worker overwrites its own field as its sketch grows, so a write that
is repeated changes nothing. Reading merges all fields of the buckets of a window. Buckets expire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stepwell.addons.drift.sketch import FeatureSketch
from stepwell.store.keys import PREFIX
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument
from stepwell.store.transport.retry import deadline, replies_of

_BUCKETS: Final = 12  # of a window
_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A window.

    Attributes:
        name: Its name in the API.
        seconds: How far it reaches back; up to a twelfth more, because it consists of whole buckets.
        write_every_s: Seconds after which a worker writes its sketch of the current bucket again.
    """

    name: str
    seconds: int
    write_every_s: float

    @property
    def bucket_s(self) -> int:
        """Seconds of a bucket."""
        return self.seconds // _BUCKETS

    @property
    def ttl_ms(self) -> int:
        """Milliseconds for which a bucket is kept after its last write."""
        return 1000 * (self.seconds + 2 * self.bucket_s)

    def buckets(self, now: float) -> range:
        """Return the numbers of the buckets that a window has at a time, in seconds since 1970."""
        newest = int(now // self.bucket_s)
        return range(newest - _BUCKETS, newest + 1)


WINDOWS: Final = (TimeWindow("1h", 3600, 2.0), TimeWindow("24h", 86400, 30.0))


@dataclass(frozen=True, slots=True)
class SketchName:
    """What the sketches of a model version are found by in the store.

    Attributes:
        model: The model's name.
        fingerprint: The fingerprint of the version.
        digest: `ModelFeatures.digest`.
        n_features: Number of features of a sketch.
    """

    model: str
    fingerprint: bytes
    digest: str
    n_features: int

    def key(self, window: TimeWindow, bucket: int) -> str:
        """Return the key of a bucket."""
        kept = f"{self.fingerprint.hex()}:{self.digest}:{window.name}:{bucket}"
        return f"{PREFIX}drift:{{{self.model}}}:{kept}"


@dataclass(slots=True)
class _Unwritten:
    """A window as this worker has seen it.

    Attributes:
        sketches: The sketches that may not be complete in the store, by bucket.
        has_changed: Whether they have changed since they were written.
        due_at: When they are written again, in seconds since 1970.
    """

    sketches: dict[int, FeatureSketch] = field(default_factory=dict)
    has_changed: bool = False
    due_at: float = 0.0


class SketchWindows:
    """Adds what a worker has seen of one model version to its sketches, and writes them to the store."""

    def __init__(self, store: StateStore, name: SketchName, worker: str) -> None:
        """Create them empty.

        Args:
            store: The store.
            name: The model version.
            worker: A name that no other worker has; random, new at each start.
        """
        self._store = store
        self._name = name
        self._worker = worker
        self._windows = {window: _Unwritten() for window in WINDOWS}

    def add(self, sketch: FeatureSketch, now: float) -> None:
        """Add what was seen until now, in seconds since 1970."""
        for window, written in self._windows.items():
            bucket = int(now // window.bucket_s)
            if bucket not in written.sketches:
                written.due_at = 0.0  # the bucket before is complete: it is written now
                written.sketches[bucket] = FeatureSketch.empty(self._name.n_features)
                while len(written.sketches) > 2:  # the store has not responded for long
                    del written.sketches[min(written.sketches)]
            written.sketches[bucket].merge(sketch)
            written.has_changed = True

    async def write(self, now: float, *, is_last: bool = False) -> None:
        """Write what is due.

        Raises:
            ServiceError: The store does not reply; the same is written at the next call.
        """
        for window, written in self._windows.items():
            if not written.has_changed or (now < written.due_at and not is_last):
                continue
            writes: list[tuple[Argument, ...]] = []
            for bucket, sketch in written.sketches.items():
                key = self._name.key(window, bucket)
                writes += [("HSET", key, self._worker, sketch.encode()), ("PEXPIRE", key, window.ttl_ms)]
            await _execute(self._store, writes)
            written.due_at, written.has_changed = now + window.write_every_s, False
            newest = max(written.sketches)
            written.sketches = {newest: written.sketches[newest]}


async def read_window(store: StateStore, name: SketchName, window: TimeWindow, now: float) -> FeatureSketch:
    """Return what all workers have seen of a model version in a window until now, in seconds since 1970.

    Raises:
        ServiceError: The store does not reply.
    """
    merged = FeatureSketch.empty(name.n_features)
    for reply in await _execute(store, [("HGETALL", name.key(window, bucket)) for bucket in window.buckets(now)]):
        for _worker, stored in zip(reply[::2], reply[1::2], strict=True):
            sketch = FeatureSketch.decode(stored, name.n_features)
            if sketch is not None:  # else of another version of the service
                merged.merge(sketch)
    return merged


async def _execute(store: StateStore, commands: Sequence[Sequence[Argument]]) -> list[Any]:
    return await replies_of(store.transport, commands, deadline=deadline(_TIMEOUT_S))
