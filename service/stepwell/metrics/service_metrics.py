"""`Metrics`: the service's metrics for Prometheus; labels never contain stream ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from stepwell.engine.observer import EngineObserver
from stepwell.metrics.exposition import Attach, exposed
from stepwell.metrics.process import ProcessMetrics
from stepwell.metrics.shared_folder import remove_dead_workers, shared_folder
from stepwell.models.changes import ModelChange

NO_ROUTE = "none"
"""Label of requests that reached no route."""

SECONDS: Final = (
    *(0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005),
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
"""The bounds of the buckets of durations."""
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_BUFFERED_MAX: Final = 4096  # values that a histogram buffers before it counts them

_M = TypeVar("_M", bound=MetricWrapperBase)

_MultiprocessMode = Literal["livesum", "livemin", "livemax"]  # how the gauges of several workers are combined


class Labelled(dict[tuple[str, ...], _M], Generic[_M]):
    """A metric's children by their labels. A dict, because `labels()` acquires a lock and checks names on each call."""

    def __init__(self, metric: _M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> _M:
        child = self[labels] = self._metric.labels(*labels)
        return child

    def remove(self, children: Iterable[tuple[str, ...]]) -> None:
        """Remove children and their values."""
        for labels in children:
            del self[labels]
            self._metric.remove(*labels)


class BufferedHistogram(Histogram):
    """A histogram that buffers values and counts many at once: counting one would cost as much as a part of a step."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._values: list[float] = []

    def buffer(self, amounts: Sequence[float]) -> None:
        """Buffer values, which are not visible before `flush`."""
        self._values += amounts
        if len(self._values) >= _BUFFERED_MAX:
            self.flush()

    def flush(self) -> None:
        """Count the buffered values."""
        amounts, self._values = self._values, []
        if not amounts:
            return
        self._sum.inc(sum(amounts))
        counts = np.bincount(np.searchsorted(self._upper_bounds, amounts))  # bounds are inclusive in Prometheus
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))


class Metrics(EngineObserver):
    """The service's metrics, in their own registry, so that two services in one process do not share metrics.

    With several workers, `$PROMETHEUS_MULTIPROC_DIR` names a folder that they share, and each of them can return the
    metrics of all. The folder is used for one start of the service, by one `Metrics` per process.

    It is the engine's observer: the engine calls it for each batch (see `EngineObserver`).
    """

    def __init__(self, version: str) -> None:
        """Create the metrics, all at zero.

        Args:
            version: The service's version, for `stepwell_build_info`.
        """
        self._folder = shared_folder()
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"stepwell_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, label: str, buckets: Sequence[float] = SECONDS) -> BufferedHistogram:
            return BufferedHistogram(f"stepwell_{name}", text, [label], buckets=buckets, registry=registry)

        def gauge(name: str, text: str, workers: _MultiprocessMode, *labels: str) -> Gauge:
            return Gauge(f"stepwell_{name}", text, labels, multiprocess_mode=workers, registry=registry)

        self._steps = Labelled(counter("steps_total", "Timesteps applied, by transport.", "model", "door"))
        self._requests = Labelled(
            counter("requests_total", "Requests answered, by HTTP status.", "door", "code", "route")
        )
        self._step_s = Labelled(histogram("step_seconds", "Seconds from receipt to response.", "model"))
        self._refused_s = Labelled(
            Summary("stepwell_oip_refused_seconds", "Seconds from receipt to rejection.", ["model"], registry=registry)
        )
        self._run_s = Labelled(histogram("model_run_seconds", "Seconds of one model run with one batch.", "model"))
        self._store_s = Labelled(histogram("store_seconds", "Seconds of one round trip to the store.", "op"))
        self._row_s = Labelled(counter("oip_row_seconds_total", "Seconds of model runs, once for each row.", "model"))
        self._batch_rows = Labelled(histogram("batch_rows", "Streams in one model run.", "model", _ROWS))
        self._hits = counter("cache_hits_total", "Records found in a worker's record cache.")
        self._misses = counter("cache_misses_total", "Records that had to be read from the store.")
        self._conflicts = counter("conflicts_total", "Commits whose guard did not match.")
        self._replays = counter("replays_total", "Requests that got their first response again.")
        self._refusals = Labelled(counter("refusals_total", "Requests rejected, by problem code.", "code"))
        self._model_changes = counter(
            "model_changes_total", "Models loaded, replaced and retired by reloads.", "change"
        )
        self._regressions = counter("store_regressions_total", "Streams whose confirmed commits the store had lost.")
        labelled_gauges = {
            "queue_rows": gauge("queue_rows", "Timesteps that wait for a run.", "livesum", "model"),
            "cached_streams": gauge(
                "cached_streams", "Streams whose records the workers have cached.", "livesum", "model"
            ),
        }
        self._labelled_gauges = {name: Labelled(one) for name, one in labelled_gauges.items()}
        self._gauges = {
            "websockets": gauge("websockets", "Open WebSockets.", "livesum"),
            "connections": gauge("connections", "Open connections, those of WebSockets included.", "livesum"),
            "ready": gauge("ready", "1 when every worker can serve, else 0.", "livemin"),
            "store_reachable": gauge(
                "store_reachable", "1 when every worker reached the store at its last check, else 0.", "livemin"
            ),
            "store_safe": gauge("store_safe", "1 when the store's settings are safe, else 0.", "livemin"),
            "store_used_bytes": gauge("store_used_memory_bytes", "Memory that the store uses.", "livemax"),
            "store_max_bytes": gauge("store_max_memory_bytes", "The store's maxmemory; 0: no limit.", "livemax"),
        }
        self._durability = gauge("durability_info", "1 for the durability level in force.", "livemax", "level")
        gauge("build_info", "1 for the version that runs.", "livemax", "version").labels(version).set(1)
        self._process = ProcessMetrics(registry)
        self._buffered: defaultdict[Counter, float] = defaultdict(float)  # increments since the last `refresh`
        of_models = (self._steps, self._step_s, self._refused_s, self._run_s, self._row_s, self._batch_rows)
        # The model is the first label of each.
        self._by_model: list[Labelled[Any]] = [*of_models, *self._labelled_gauges.values()]
        self._read_models: Callable[[], Collection[str]] | None = None
        self._read_gauges: dict[str, Callable[[], Any]] = {}
        self._refresh_others: list[Callable[[], None]] = []
        self._attach: list[Attach] = []

    @property
    def is_shared(self) -> bool:
        """Whether several workers share files, from which series cannot be removed."""
        return self._folder is not None

    def on_refresh(self, refresh: Callable[[], None]) -> None:
        """Call a function whenever the gauges are read: it sets those that an add-on has in `registry`, and counts."""
        self._refresh_others.append(refresh)

    def on_expose(self, attach: Attach) -> None:
        """Call a function with each metric that is written in the format of OpenMetrics, to add exemplars."""
        self._attach.append(attach)

    def bind_gauges(
        self,
        *,
        models: Callable[[], Collection[str]] | None = None,
        durability: str = "memory",
        **gauges: Callable[[], Any],
    ) -> None:
        """Set the functions that `refresh` reads the gauges' values from.

        Args:
            models: Returns the served models; the series of others are removed. None: none is removed.
            durability: The configured durability level.
            gauges: By the gauge's name in `__init__`, what returns its value in this worker; of a gauge with labels,
                the values by label, or by a tuple of its labels. A gauge that is not named stays as it is.
        """
        self._read_models = models
        self._read_gauges |= gauges
        self._durability.labels(durability).set(1)
        self.refresh()

    def add_gauge(self, name: str, text: str, labels: Sequence[str]) -> None:
        """Add a gauge of an add-on, `stepwell_{name}`; of several workers' values the largest counts.

        Args:
            name: Its name.
            text: What it is.
            labels: The names of its labels, `model` first: the series of models that are not served are removed.
        """
        gauge = Gauge(f"stepwell_{name}", text, labels, registry=self.registry, multiprocess_mode="livemax")
        self._labelled_gauges[name] = Labelled(gauge)
        self._by_model.append(self._labelled_gauges[name])

    def read_gauges(self, **gauges: Callable[[], Any]) -> None:
        """Set more functions that `refresh` reads, by the gauge's name, as for `bind_gauges`."""
        self._read_gauges |= gauges

    # ---------------------------------------------------------------- called by the engine

    def steps_applied(self, model: str, transport: str, timesteps: int) -> None:
        """Count timesteps that were committed."""
        self._buffered[self._steps[model, transport]] += timesteps

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        """Count a model run."""
        self._batch_rows[(model,)].buffer((rows,))
        self._run_s[(model,)].buffer((seconds,))
        self._buffered[self._row_s[(model,)]] += rows * seconds

    def replied(self, model: str, seconds: Sequence[float]) -> None:
        """Count requests that the engine answered with a prediction; `seconds` has one duration for each."""
        self._step_s[(model,)].buffer(seconds)

    def rejected(self, model: str, seconds: float) -> None:
        """Count a request that the engine rejected."""
        self._refused_s[(model,)].observe(seconds)

    def store_latency(self, op: str, seconds: float) -> None:
        """Count a round trip to the store."""
        self._store_s[(op,)].buffer((seconds,))

    def cache_lookup(self, hits: int, misses: int) -> None:
        """Count lookups in the worker's record cache."""
        self._buffered[self._hits] += hits
        if misses:
            self._buffered[self._misses] += misses

    def conflicts(self, n: int) -> None:
        """Count commits whose guard did not match."""
        self._conflicts.inc(n)

    def replays(self, n: int) -> None:
        """Count requests that got their first response again."""
        self._replays.inc(n)

    def regressions(self, n: int) -> None:
        """Count streams whose confirmed commits the store had lost."""
        self._regressions.inc(n)

    def model_changed(self, change: ModelChange) -> None:
        """Count a model that was loaded, replaced or retired; may be called in any thread."""
        self._model_changes.labels(change.kind).inc()

    # ---------------------------------------------------------------- called by the transports

    def request(self, transport: str, code: int | str, route: str = NO_ROUTE, n: int = 1) -> None:
        """Count requests or messages that got a response.

        Args:
            transport: How they were sent.
            code: The HTTP status.
            route: Method and path of the declared route, with the names of its parameters.
            n: Their number.
        """
        self._buffered[self._requests[transport, str(code), route]] += n

    def refusal(self, code: str) -> None:
        """Count an error response, by its `code` of `stepwell.error_codes.CODES`."""
        self._refusals[(code,)].inc()

    # ---------------------------------------------------------------- for Prometheus

    def refresh(self) -> None:
        """Flush buffered counts and read the gauges; all workers do this each second, as Prometheus queries one."""
        for refresh in self._refresh_others:
            refresh()
        buffered, self._buffered = self._buffered, defaultdict(float)
        for counter, n in buffered.items():
            counter.inc(n)
        for histograms in (self._step_s, self._run_s, self._store_s, self._batch_rows):
            for histogram in histograms.values():
                histogram.flush()
        for name, read in self._read_gauges.items():
            if name in self._gauges:
                self._gauges[name].set(read())
                continue
            gauges = self._labelled_gauges[name]
            found = {key if isinstance(key, tuple) else (key,): value for key, value in read().items()}
            for labels in {*found, *gauges}:
                gauges[labels].set(found.get(labels, 0))
        self._process.refresh()
        served = None if self._read_models is None else self._read_models()
        if served is not None and self._folder is None:  # with shared files, labels cannot be removed
            for by_model in self._by_model:
                by_model.remove([labels for labels in by_model if labels[0] not in served])

    def render(self, *, as_openmetrics: bool = False) -> tuple[bytes, str]:
        """Return the metrics of all workers as of their last `refresh`, and the media type of the text.

        With many models and workers this is slow; it may be called in a thread.

        Args:
            as_openmetrics: In the format of OpenMetrics, with exemplars; else in Prometheus' text format.
        """
        if self._folder is not None:
            remove_dead_workers(self._folder)
        return exposed(self.collector(), self._attach, as_openmetrics=as_openmetrics)

    def collector(self) -> Collector:
        """Return the collector of the metrics of all workers, as of their last `refresh`."""
        if self._folder is None:
            return self.registry
        return MultiProcessCollector(None, str(self._folder))  # type: ignore[no-untyped-call]  # has no types
