"""`Watchdog`: ends model runs that take too long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from service.background import run_until

if TYPE_CHECKING:
    from model_export.step_model import StepModel

_PERIOD_S = 0.1


class Watchdog:
    """Ends model runs that take too long, from a thread of its own, since a run may hold the event loop."""

    def __init__(self, limit: float, models: Callable[[], Sequence[StepModel]], on_tick: Callable[[], None]) -> None:
        """Start watching.

        Args:
            limit: Seconds that one run may take.
            models: Whose runs to watch.
            on_tick: What else is to be looked at each time.
        """
        self._on_tick = on_tick
        self._limit = limit
        self._models = models
        self._ended = threading.Event()
        how = {"every_s": _PERIOD_S, "name": "Watching model runs"}
        args = (self._ended, self._end_long_runs)
        threading.Thread(target=run_until, args=args, kwargs=how, name="model-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _end_long_runs(self) -> None:
        for model in self._models():
            model.terminate(longer_than=self._limit)
        self._on_tick()
