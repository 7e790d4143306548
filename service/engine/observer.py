"""What the engine tells about its work; `service/metrics.py` counts it."""

from __future__ import annotations

from collections.abc import Sequence


class EngineObserver:
    """Hears of the engine's work, a call per batch where possible, and does nothing; a subclass counts.

    Seconds are monotonic differences.
    """

    def steps_applied(self, model: str, transport: str, timesteps: int) -> None:
        """Timesteps were committed."""

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        """A batch was run in `seconds`."""

    def replied(self, model: str, seconds: Sequence[float]) -> None:
        """Requests were answered, each so many seconds after its receipt."""

    def rejected(self, model: str, seconds: float) -> None:
        """A request, which `replied` tells too, was answered with a refusal."""

    def store_latency(self, op: str, seconds: float) -> None:
        """A round trip to the store was made."""

    def cache_lookup(self, hits: int, misses: int) -> None:
        """Records were looked for in the worker's memory."""

    def conflicts(self, n: int) -> None:
        """Commits found another guard than expected."""

    def replays(self, n: int) -> None:
        """Requests were answered with their first answer."""

    def regressions(self, n: int) -> None:
        """The store was behind what this worker had seen committed."""
