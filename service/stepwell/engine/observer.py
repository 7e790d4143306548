"""`EngineObserver`: the engine's notifications about its work; `service/stepwell/metrics/` counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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

    def paired_steps(self, model: str, responding: int, other: int, timesteps: int) -> None:
        """Timesteps of pairs were committed: the version `responding` responded, `other` ran beside it."""

    def candidate_failed(self, model: str, n: int, *, responds: bool) -> None:
        """Streams have left a trial, because the candidate failed; `responds`: they fell back to the old version."""

    def compared(self, model: str, output: str, numbers: Mapping[float, int]) -> None:
        """Numbers of an output of two versions were compared: how many have which absolute difference."""
