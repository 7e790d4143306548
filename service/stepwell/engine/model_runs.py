"""`ModelRuns`: what runs models besides the timesteps that are batched; `Watchdog`: ends runs that take too long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from stepwell.background import run_until

_PERIOD_S = 0.1


class Runs(Protocol):
    """What has runs that can be ended."""

    def terminate(self, *, longer_than: float) -> None:
        """End the runs that take longer than so many seconds."""


class ModelRuns:
    """Base class of what runs models besides steps."""

    @property
    def running(self) -> Sequence[Runs]:
        """What it runs, `served.step_model` for example; a run that takes longer than `run_timeout_s` is ended."""
        return ()

    @property
    def waiting(self) -> int:
        """The number of its requests that wait to be run; they count towards `queue_limit`."""
        return 0

    def close(self) -> None:
        """Fail what waits or runs, and end the threads."""


class Watchdog:
    """Ends model runs that take too long, from its own thread, since a run may block the event loop."""

    def __init__(self, limit: float, models: Callable[[], Sequence[Runs]], on_tick: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            limit: Seconds that one run may take.
            models: Returns the models whose runs are checked.
            on_tick: Called after each check, every 0.1 s.
        """
        self._on_tick = on_tick
        self._limit = limit
        self._models = models
        self._stopped = threading.Event()
        options = {"every_s": _PERIOD_S, "name": "Checking model runs"}
        args = (self._stopped, self._end_long_runs)
        threading.Thread(target=run_until, args=args, kwargs=options, name="model-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def _end_long_runs(self) -> None:
        for model in self._models():
            model.terminate(longer_than=self._limit)
        self._on_tick()
