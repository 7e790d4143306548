"""What sees the engine's work.

`EngineObserver`: all of it, by notifications, which `service/stepwell/metrics/` counts; `Sampler`: committed batches of
one model version, with their inputs and predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from stepwell.errors import ServiceError
    from stepwell.models.served import ServedModel
    from stepwell_export.runtime.manifest import Array


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


def follows_batches(observer: EngineObserver) -> bool:
    """Whether an observer handles the start or the end of batches; few do."""
    names = ("batch_started", "batch_ended")
    return any(
        getattr(getattr(observer, name), "__func__", None) is not getattr(EngineObserver, name) for name in names
    )


def _in_turn(handlers: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def notify(*args: Any, **named: Any) -> None:
        for handler in handlers:
            handler(*args, **named)

    return notify


class Sampler(Protocol):
    """Sees committed batches of one model version."""

    def add(self, names: Sequence[str], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Take a batch that was committed now, or skip it; the arrays do not change later.

        Args:
            names: The keys of the streams' records.
            inputs: `(rows, T, *row)` by input.
            outputs: `(rows, T', *row)` by output; T' is smaller if only some predictions are returned.
        """


class Samplers(Protocol):
    """Gives the samplers of model versions."""

    def sampler(self, served: ServedModel) -> Sampler | None:
        """Return the sampler of a model version that begins to be stepped; None: nothing is sampled."""

    def end_sampler(self, served: ServedModel) -> None:
        """End what `sampler` began: the model version is not stepped any more."""


class _Several:
    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self._samplers = samplers

    def add(self, names: Sequence[str], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for each in self._samplers:
            each.add(names, inputs, outputs)


def sampler_of(served: ServedModel, sources: Iterable[Samplers]) -> Sampler | None:
    """Return one sampler that stands for those of all sources; None: there is none."""
    found = [sampler for source in sources if (sampler := source.sampler(served)) is not None]
    return _Several(found) if len(found) > 1 else found[0] if found else None
