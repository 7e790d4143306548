"""`RequestCollector`: submits requests that arrive together to the engine together, so that they share batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_QUIET_S: Final = 0.001  # without a further request
_LONGEST_S: Final = 0.005  # as long as a small batch waits for the one in flight
_FULL: Final = 128  # requests


class RequestCollector:
    """The requests of all calls of a worker that are decoded and submitted next, in the order of their arrival.

    grpcio delivers one request for each call and turn of the event loop, also if many have been received. If each were
    submitted at once, batches would have few rows. So a request waits until no other one has followed for 1 ms. One
    that arrives alone does not wait.
    """

    def __init__(self) -> None:
        """Create it without requests; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Callable[[], None]] = []
        self._n_pending = 0  # requests without a response
        self._n_together = 0  # requests that were submitted together last
        self._first = self._newest = 0.0  # when the first and the newest one that wait have arrived
        self._due: asyncio.TimerHandle | None = None

    def add(self, submit: Callable[[], None]) -> None:
        """Call a function that submits a request and raises nothing, now or soon; `finished` must follow once.

        Functions are called in the order in which they were added.
        """
        waiting = self._waiting
        self._n_pending += 1
        if self._n_pending == 1 and self._n_together <= 1 and not waiting:
            submit()
            return
        self._newest = time.monotonic()
        waiting.append(submit)
        if len(waiting) >= _FULL:
            self._submit_all()
        elif self._due is None:
            self._first = self._newest
            self._due = self._loop.call_later(_QUIET_S, self._check)

    def finished(self) -> None:
        """Count a response."""
        self._n_pending -= 1

    def _check(self) -> None:
        """Submit what waits if nothing follows it; else check again."""
        now = time.monotonic()
        # Timers have the resolution of a millisecond, so this one may be early by half of it.
        if now - self._newest < _QUIET_S / 2 and now - self._first < _LONGEST_S:
            self._due = self._loop.call_later(_QUIET_S, self._check)
        else:
            self._submit_all()

    def _submit_all(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        waiting, self._waiting = self._waiting, []
        self._n_together = len(waiting)
        for submit in waiting:
            submit()
