"""Labels: the names of the numbers of inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell_export.runtime.feedback import FeedbackError, rules_of
from stepwell_export.runtime.manifest import Manifest, TensorSpec


def labels_of(spec: TensorSpec) -> tuple[str, ...]:
    """Return the labels of an input or output, one for each number of a row; empty: it has none."""
    labels = (spec.model_extra or {}).get("labels") or ()
    return tuple(labels) if len(labels) == spec.row_size else ()


def labels_ahead(labels: Sequence[str], first: int, last: int) -> tuple[str, ...]:
    """Return the labels of numbers that are predicted several timesteps ahead, `rpm+1` to `rpm+12`.

    Args:
        labels: Those of one timestep.
        first: How far ahead the first timestep is.
        last: How far the last one.
    """
    return tuple(f"{label}+{ahead}" for ahead in range(first, last + 1) for label in labels)


def labels_of_outputs(manifest: Manifest) -> dict[str, Sequence[str]]:
    """Return the labels of each output; one without labels has those of the input that it is fed back to."""
    labels = {spec.name: labels_of(spec) for spec in manifest.answered}
    try:
        rules = rules_of(manifest.feedback, manifest)
    except FeedbackError:
        rules = []  # the model is served without its rules
    for rule in rules:
        fed = labels_of(rule.input)
        if rule.horizon is not None:
            fed = labels_ahead(fed, 1, rule.horizon)
        if not labels[rule.output.name] and len(fed) == rule.output.row_size:
            labels[rule.output.name] = fed
    return dict(labels)
