"""`EngineObserver`: the engine's notifications about its work; `service/stepwell/metrics/` counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell.errors import ServiceError


class EngineObserver:
    """Base class that ignores the engine's notifications; a subclass counts. Mostly one call per batch.

    Seconds are monotonic differences.
    """

    def batch_started(self, model: str, rows: int) -> None:
        """The current task starts to process a batch."""

    def batch_ended(self) -> None:
        """Every row of the current task's batch has its response."""

    def steps_applied(self, model: str, transport: str, timesteps: int) -> None:
        """Timesteps were committed."""

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        """A batch was run in `seconds`."""

    def replied(self, model: str, seconds: Sequence[float]) -> None:
        """Requests were answered, each so many seconds after it was received."""

    def rejected(self, model: str, seconds: float) -> None:
        """A request was answered with an error; `replied` is called for it too."""

    def refused(self, tenant: str, model: str, stream: str | None, error: ServiceError) -> None:
        """A timestep of a stream was answered with an error; `stream` is as the request has it, None: it has none."""

    def store_latency(self, op: str, seconds: float) -> None:
        """A round trip to the store took `seconds`."""

    def cache_lookup(self, hits: int, misses: int) -> None:
        """Records were looked up in the worker's record cache."""

    def conflicts(self, n: int) -> None:
        """Commits failed because the stored guard was not the expected one."""

    def replays(self, n: int) -> None:
        """Requests were answered with their stored response."""

    def regressions(self, n: int) -> None:
        """The store has lost commits that it had confirmed to this worker."""


def all_of(observers: Sequence[EngineObserver]) -> EngineObserver:
    """Return an observer that notifies others, in their order; what one of them alone handles costs no more."""
    together = EngineObserver()
    for name in (name for name in vars(EngineObserver) if not name.startswith("_")):
        ignored = getattr(EngineObserver, name)
        handlers = [getattr(one, name) for one in observers if getattr(type(one), name) is not ignored]
        if handlers:
            setattr(together, name, handlers[0] if len(handlers) == 1 else _in_turn(handlers))
    return together


def _in_turn(handlers: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def notify(*args: Any, **named: Any) -> None:
        for handler in handlers:
            handler(*args, **named)

    return notify
