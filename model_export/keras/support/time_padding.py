"""Applies a rule to sequences that were padded over time, where the rule itself has no padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, Rule, handles, listed, to_array
from model_export.keras.support import deferred
from model_export.keras.value import TimePadding, Value


def apply(call: Call, rule: Rule) -> list[Any]:
    """Run a rule.

    Of a layer that sees each timestep alone, the timesteps in front of the stream's first stay where they are,
    each what the layer makes of it.

    Returns:
        The rule's results.

    Raises:
        RefusedModelError: The layer carries something through the padded timesteps, or joins different paddings.
    """
    if any(value.deferred for value in call.operands):
        return deferred.apply(call, rule)
    margin = next((value.padding for value in call.operands if value.padding), None)
    if margin is None or handles(rule, "padding"):
        return listed(rule(call))
    states = len(call.graph.states)
    results = listed(rule(call.changed(lambda value: _without(call, value, margin))))
    if len(call.graph.states) > states or not all(isinstance(r, Value) and r.time for r in results):
        if margin.refusal:
            raise margin.refusal
        raise call.refuse(
            f"its input has {margin.front} padded timesteps in front and {margin.back} behind, which it would see as "
            "timesteps of the stream",
            "Pad right in front of a convolution or pooling with padding='valid', as much as that takes away.",
        )
    fronts: list[Any] = [np.zeros((1, 1))] * len(results)
    if margin.front > 0:
        padded = call.changed(_pad_value)
        fronts = keras.tree.flatten(call.layer(*padded.args, **padded.kwargs))
    return [
        replace(y, padding=replace(margin, pad_value=to_array(front)[0, 0]))
        for y, front in zip(results, fronts, strict=True)
    ]


def _without(call: Call, value: Value, margin: TimePadding) -> Value:
    found = (value.padding.front, value.padding.back) if value.padding else (0, 0)
    if not value.time and margin.front < 0:
        return value  # the same at every timestep, wherever it begins
    if margin.refusal and found != (margin.front, margin.back):
        raise margin.refusal
    if not value.time or found != (margin.front, margin.back):
        raise call.refuse(
            f"it joins a sequence with {margin.front} padded timesteps in front and {margin.back} behind and one with "
            f"{found[0]} and {found[1]}",
            "Pad or crop both alike over time.",
        )
    return replace(value, padding=None)


def _pad_value(value: Value) -> Any:
    """Return one padded timestep in place of a value."""
    if value.padding is None:
        return value
    return np.broadcast_to(value.padding.pad_value, (1, 1, *value.row)).astype(value.dtype)
