"""`Exemplars`: the newest traced request of each bucket of a histogram, which leads from a duration to its trace."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Collection, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString


class Exemplars:
    """Exemplars of a histogram with the label `model`, from the traced requests of this worker.

    Each bucket of each model has one at most, so they need little memory.
    """

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        """Create it without exemplars.

        Args:
            name: The histogram's name.
            bounds: The upper bounds of its buckets, ascending and without infinity.
        """
        self._name = name
        self._bounds = bounds
        self._bounds_as_text = [*map(floatToGoString, bounds), "+Inf"]  # as in the label `le`
        self._newest: dict[tuple[str, str], Exemplar] = {}

    def add(self, model: str, seconds: float, trace_id: int) -> None:
        """Keep a traced request.

        Args:
            model: The name of its model.
            seconds: From its receipt to its response.
            trace_id: 128 bits.
        """
        bucket = self._bounds_as_text[bisect_left(self._bounds, seconds)]
        self._newest[model, bucket] = Exemplar({"trace_id": f"{trace_id:032x}"}, seconds, time.time())

    def keep_models(self, models: Collection[str]) -> None:
        """Remove the exemplars of all other models."""
        self._newest = {place: one for place, one in self._newest.items() if place[0] in models}

    def attach(self, metric: Metric) -> None:
        """Add the exemplars to the buckets of a metric that is the histogram; any other metric stays as it is."""
        if metric.name == self._name and self._newest:
            metric.samples = [
                sample._replace(exemplar=self._newest.get((sample.labels["model"], sample.labels.get("le", ""))))
                for sample in metric.samples
            ]
