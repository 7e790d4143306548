"""`Arrivals`: submits requests that arrive together to the engine together, so that they share batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_QUIET_TURNS: Final = 2  # of the event loop, without a further request: none has been received
_QUIET_S: Final = 0.001  # without a further request: those that are missing do not come
_LONGEST_S: Final = 0.005  # as long as a small batch waits for the one in flight
_FULL: Final = 128  # requests


class Arrivals:
    """The requests of all calls of a worker that are decoded and submitted next, in the order of their arrival.

    grpcio delivers one request for each call and turn of the event loop, also if many have been received. If each were
    submitted at once, batches would have few rows. So a request waits while others follow closely: until as many are
    there as the last time, since clients that were answered together continue together, or for 1 ms without another one.
    One that arrives alone does not wait.
    """

    def __init__(self) -> None:
        """Create it without requests; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[], None]] = []
        self._n_pending = 0  # requests without a response
        self._n_together = 0  # requests that were submitted together last
        self._first = self._newest = 0.0  # when the first and the newest one that wait have arrived
        self._quiet_turns = 0
        self._due: asyncio.Handle | None = None  # the next call of `_turn`

    def add(self, submit: Callable[[], None]) -> None:
        """Call a function that submits a request and raises nothing, now or soon; `finished` must follow once.

        Functions are called in the order in which they were added.
        """
        waiting = self._waiting
        self._n_pending += 1
        if self._n_pending == 1 and self._n_together <= 1 and not waiting:
            submit()
            return
        self._newest, self._quiet_turns = time.monotonic(), 0
        if not waiting:
            self._first = self._newest
        waiting.append(submit)
        if self._due is None or len(waiting) == self._n_together:
            self._schedule()

    def finished(self) -> None:
        """Count a response."""
        self._n_pending -= 1

    def _schedule(self) -> None:
        """Schedule the next check: in the next turn of the event loop, or later if requests are missing."""
        if self._due is not None:
            self._due.cancel()
        if len(self._waiting) >= self._n_together:
            self._due = self._loop.call_soon(self._turn)
        else:
            self._due = self._loop.call_later(_QUIET_S, self._turn)

    def _turn(self) -> None:
        """Submit what waits if nothing follows it; else check again."""
        self._due = None
        now, count = time.monotonic(), len(self._waiting)
        self._quiet_turns += 1
        if count >= self._n_together:
            is_quiet = self._quiet_turns >= _QUIET_TURNS
        else:
            is_quiet = now - self._newest >= _QUIET_S / 2  # timers have the resolution of a millisecond
        if not is_quiet and now - self._first < _LONGEST_S and count < _FULL:
            self._schedule()
            return
        waiting, self._waiting = self._waiting, []
        self._n_together = count
        for submit in waiting:
            submit()
