"""`Expiry`: a timer for the rows of a batch whose deadlines pass one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Expiry:
    """Calls a function at the first deadline, and again at each deadline that it returns."""

    def __init__(self, expire: Callable[[], float | None], deadline: float) -> None:
        """Start the timer; needs a running event loop.

        Args:
            expire: Called at the deadline; returns the next one, None if there is none.
            deadline: The first one, on the monotonic clock.
        """
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(deadline, self._call)

    def cancel(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _call(self) -> None:
        if (deadline := self._expire()) is not None:
            self._timer = self._loop.call_at(deadline, self._call)
