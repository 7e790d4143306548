"""`Arrivals`: submits requests that arrive together to the engine together, so that they share batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_QUIET_S: Final = 100e-6  # without a further request
_QUIET_TURNS: Final = 2  # of the event loop; with much to do, one of them takes longer than `_QUIET_S`
_LONGEST_S: Final = 0.005  # as long as a small batch waits for the one in flight
_FULL: Final = 128  # requests


class Arrivals:
    """The requests of all calls of a worker that are decoded and submitted next, in the order of their arrival.

    grpcio delivers one request for each call and turn of the event loop, also if many have been received. If each were
    submitted at once, batches would have few rows. So a request waits while others follow closely. One that arrives
    alone does not wait.
    """

    def __init__(self) -> None:
        """Create it without requests; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[], None]] = []
        self._n_pending = 0  # requests without a response
        self._n_together = 0  # requests that were submitted together last
        self._first = self._newest = 0.0  # when the first and the newest one that wait have arrived
        self._quiet_turns = 0

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
            self._loop.call_soon(self._turn)
        waiting.append(submit)

    def finished(self) -> None:
        """Count a response."""
        self._n_pending -= 1

    def _turn(self) -> None:
        """Submit what waits if nothing follows it; else continue in the next turn of the event loop."""
        now = time.monotonic()
        self._quiet_turns += 1
        is_quiet = self._quiet_turns >= _QUIET_TURNS and now - self._newest >= _QUIET_S
        if not is_quiet and now - self._first < _LONGEST_S and len(self._waiting) < _FULL:
            self._loop.call_soon(self._turn)
            return
        waiting, self._waiting = self._waiting, []
        self._n_together = len(waiting)
        for submit in waiting:
            submit()
