"""`Watchdog`: ends model runs that take too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from service.engine.models import ServedModel
    from service.engine.runner import RunClock

_PERIOD_S = 0.1


class Runs(Protocol):
    """What runs a model."""

    @property
    def served(self) -> ServedModel:
        """The model."""
        ...

    @property
    def clock(self) -> RunClock:
        """How long its runs take."""
        ...


class Watchdog:
    """Ends model runs that take too long, from a thread of its own, since a run may hold the event loop."""

    def __init__(self, limit: float, runs: Callable[[], Sequence[Runs]], look: Callable[[], None]) -> None:
        """Start watching.

        Args:
            limit: Seconds that one run may take.
            runs: Whose runs to watch.
            look: What else is to be looked at each time.
        """
        self._look = look
        self._limit = limit
        self._runs = runs
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="model-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            now = time.monotonic()
            self._look()
            for one in self._runs():
                if one.clock.longest(now) > self._limit:
                    one.served.step_model.terminate(longer_than=self._limit)
