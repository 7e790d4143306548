"""`ModelRuns`: what runs models besides the timesteps that are batched and committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepwell.engine.run_watchdog import Runs


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
