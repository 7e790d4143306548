"""`counts_by_model`: what the service has counted of each model, for the protocol's statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepwell.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """Counts of one model, over all its versions and transports, since the service started.

    Attributes:
        timesteps: Applied timesteps.
        runs: Model runs.
        row_seconds: Total duration of the runs in seconds, counted once for each row of a run.
        answers: Requests that the engine answered with a prediction.
        answer_seconds: Their total duration in seconds, from receipt to response.
        refusals: Requests that the engine rejected.
        refusal_seconds: Their total duration in seconds.
    """

    timesteps: int = 0
    runs: int = 0
    row_seconds: float = 0.0
    answers: int = 0
    answer_seconds: float = 0.0
    refusals: int = 0
    refusal_seconds: float = 0.0


def counts_by_model(metrics: Metrics) -> dict[str, ModelCounts]:
    """Return the counts of all workers as of their last `refresh`, by model."""
    values_by_model: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for metric in metrics.collector().collect():
        for sample in metric.samples:
            if (model := sample.labels.get("model")) is not None:
                values_by_model[model][sample.name.removeprefix("stepwell_")] += sample.value
    return {model: _counts_of(samples) for model, samples in values_by_model.items()}


def _counts_of(samples: Mapping[str, float]) -> ModelCounts:
    return ModelCounts(
        timesteps=int(samples["steps_total"]),
        runs=int(samples["model_run_seconds_count"]),
        row_seconds=samples["oip_row_seconds_total"],
        answers=int(samples["step_seconds_count"] - samples["oip_refused_seconds_count"]),
        answer_seconds=samples["step_seconds_sum"] - samples["oip_refused_seconds_sum"],
        refusals=int(samples["oip_refused_seconds_count"]),
        refusal_seconds=samples["oip_refused_seconds_sum"],
    )
