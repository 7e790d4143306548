"""`TimedLoad`: messages out of order, and what must become of each, computed without the code that is tested."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from campaign.roads.road import Sent

SECOND: Final = 1_000_000
"""Microseconds."""

WAIT_S: Final = 5
EVERY_S: Final = 1
GAP: Final = 5
"""Ticks in a row that are filled at most."""

_LATE_S: Final = 20.0
_SHARE: Final = 0.01  # of messages that are late, and of those that are there twice
_SILENCE_S: Final = 3600
_END_S: Final = 600  # from the last of these messages to the one that ends all ticks

Series = dict[str, list[tuple[int, int]]]
"""By stream, position and input of each timestep, in order."""


@dataclass(frozen=True, slots=True)
class TimedLoad:
    """Messages of many streams, in the order in which they are published; each number `x` is a message of its own.

    They are shuffled within the wait; some come 20 s late, and some twice. In the middle nothing happens for an hour.
    At the end each stream has a message that is much newer than all others: it ends their waiting, and waits itself.

    Attributes:
        names: The streams' ids.
        xs: The number of each message, `(messages,)` int64; the streams' last ones have the largest numbers.
        streams: The index of its stream.
        times: Its time in us since 1970.
        n_last: How many of them are the last ones.
    """

    names: list[str]
    xs: npt.NDArray[np.int64]
    streams: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    n_last: int

    @classmethod
    def draw(cls, seed: int, n_streams: int, n_steps: int, *, per_s: float, ends_at: int) -> TimedLoad:
        """Draw the messages.

        Args:
            seed: Of all random choices.
            n_streams: The number of streams.
            n_steps: Messages of each, on average.
            per_s: Messages of a stream in each second of its time.
            ends_at: The time of the newest one, in us since 1970.
        """
        rng = np.random.default_rng(seed)
        n = n_streams * n_steps
        at = np.arange(n) / (per_s * n_streams)
        delays = np.where(rng.random(n) < _SHARE, _LATE_S, rng.random(n) * WAIT_S)
        seconds = at + np.where(np.arange(n) >= n // 2, _SILENCE_S, 0)
        xs = np.argsort(seconds + delays, kind="stable")
        xs = np.repeat(xs, np.where(rng.random(n) < _SHARE, 2, 1))
        streams, last = rng.integers(0, n_streams, n), np.arange(n, n + n_streams)
        start = (ends_at // SECOND - _END_S - int(seconds[-1])) * SECOND
        times = np.concatenate([start + np.round(seconds * SECOND).astype(np.int64), np.full(n_streams, ends_at)])
        xs = np.concatenate([xs, last])
        names = [f"t{seed}-{i}" for i in range(n_streams)]
        return cls(names, xs, np.concatenate([streams, np.arange(n_streams)])[xs], times[xs], n_streams)

    def messages(self) -> Iterator[Sent]:
        """Yield all messages."""
        for x, stream, time in zip(self.xs.tolist(), self.streams.tolist(), self.times.tolist(), strict=True):
            name = self.names[stream]
            yield Sent(name, msgspec.json.encode({"stream": name, "x": x, "t": time}))

    def at(self, indices: npt.NDArray[np.int64]) -> TimedLoad:
        """Return some of the messages; the streams' last ones are among them."""
        return replace(self, xs=self.xs[indices], streams=self.streams[indices], times=self.times[indices])

    def late_by_order(self, partition_of: Callable[[str], int]) -> list[bool]:
        """Return which messages are late by `--order`, in the order in which they are published."""
        newest, applied, late = defaultdict[int, int](int), [-1] * len(self.names), list[bool]()
        accepted = set[int]()
        waiting = defaultdict[int, list[tuple[int, int]]](list)
        partitions = [partition_of(name) for name in self.names]
        for x, stream, time in zip(self.xs.tolist(), self.streams.tolist(), self.times.tolist(), strict=True):
            one = partitions[stream]
            late.append(time <= applied[stream] or x in accepted)  # the second one of two is late
            if not late[-1]:
                accepted.add(x)
                heapq.heappush(waiting[one], (time, stream))
            newest[one] = max(newest[one], time)
            while waiting[one] and waiting[one][0][0] <= newest[one] - WAIT_S * SECOND:
                at, whose = heapq.heappop(waiting[one])
                applied[whose] = at
        return late

    def late_by_ticks(self, partition_of: Callable[[str], int]) -> list[bool]:
        """Return which messages are late by `--every`, in the order in which they are published."""
        newest, late = defaultdict[int, int](int), list[bool]()
        done, ticks = [-1] * len(self.names), [list[int]() for _ in self.names]
        partitions = [partition_of(name) for name in self.names]
        for stream, time in zip(self.streams.tolist(), self.times.tolist(), strict=True):
            one, own = partitions[stream], ticks[stream]
            passed = -(-(newest[one] - WAIT_S * SECOND) // (EVERY_S * SECOND)) - 1  # the newest tick that is done
            before = bisect_right(own, passed)
            if before:
                done[stream] = max(done[stream], min(own[before - 1] + GAP, passed))
            tick = -(-time // (EVERY_S * SECOND))
            late.append(tick <= done[stream])
            if not late[-1]:
                insort(own, tick)
            newest[one] = max(newest[one], time)
        return late

    def timesteps(self, late: npt.NDArray[np.bool_]) -> Series:
        """Return the timesteps by `--order`: the messages in the order of their times, without those that are late."""
        return self._by_stream(late, lambda times, xs: zip(times.tolist(), xs.tolist(), strict=True))

    def ticks(self, late: npt.NDArray[np.bool_]) -> Series:
        """Return the timesteps by `--every`, as pandas resamples the messages that are not late."""
        import pandas as pd  # an extra

        def resampled(times: npt.NDArray[np.int64], xs: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
            every = f"{EVERY_S}s"
            found = (
                pd.Series(xs, pd.to_datetime(times, unit="us")).resample(every, closed="right", label="right").last()
            )
            behind = pd.date_range(found.index[0], found.index[-1] + pd.Timedelta(every) * GAP, freq=every)
            filled = found.reindex(behind).ffill(limit=GAP).dropna()
            numbers = filled.index.as_unit("us").asi8 // (EVERY_S * SECOND)
            return zip(numbers.tolist(), filled.astype(np.int64).tolist(), strict=True)

        return self._by_stream(late, resampled)

    def _by_stream(
        self,
        late: npt.NDArray[np.bool_],
        series: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Iterator[tuple[int, int]]],
    ) -> Series:
        kept = ~late
        kept[len(kept) - self.n_last :] = False
        _, first = np.unique(np.where(kept, self.xs, -1), return_index=True)  # each message once
        first = first[kept[first]]
        order = first[np.lexsort((self.times[first], self.streams[first]))]
        found: Series = {}
        bounds = np.searchsorted(self.streams[order], np.arange(len(self.names) + 1))
        for i, name in enumerate(self.names):
            part = order[bounds[i] : bounds[i + 1]]
            found[name] = list(series(self.times[part], self.xs[part])) if len(part) else []
        return found
