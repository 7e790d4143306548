"""Applies a rule to sequences that were padded over time, where the rule itself has no padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, Rule, listed, to_array
from model_export.keras.support import deferred
from model_export.keras.support.window import is_padding_aware
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
    if deferred.has_deferred(call):
        return deferred.apply(call, rule)
    margin = next((v.padding for v in keras.tree.flatten((call.args, call.kwargs)) if _has_padding(v)), None)
    if margin is None or is_padding_aware(rule):
        return listed(rule(call))
    states = len(call.graph.states)
    args, kwargs = keras.tree.map_structure(lambda v: _without(call, v, margin), (call.args, call.kwargs))
    results = listed(rule(replace(call, args=args, kwargs=kwargs)))
    if len(call.graph.states) > states or not all(isinstance(r, Value) and r.time for r in results):
        if margin.refusal:
            raise margin.refusal
        raise call.refuse(
            f"its input has {margin.front} padded timesteps in front and {margin.back} behind, which it would see as "
            "timesteps of the stream",
            "Pad right in front of a convolution or pooling with padding='valid', as much as that takes away.",
        )
    fills = (
        keras.tree.map_structure(lambda v: _pad_value(call, v), (call.args, call.kwargs)) if margin.front > 0 else None
    )
    said = call.layer(*fills[0], **fills[1]) if fills else [np.zeros((1, 1))] * len(results)
    fronts = [to_array(array)[0, 0] for array in keras.tree.flatten(said)]
    return [replace(y, padding=replace(margin, pad_value=fill)) for y, fill in zip(results, fronts, strict=True)]


def _has_padding(value: Any) -> bool:
    return isinstance(value, Value) and value.padding is not None


def _without(call: Call, value: Any, margin: TimePadding) -> Any:
    if not isinstance(value, Value):
        return value
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


def _pad_value(call: Call, value: Any) -> Any:
    """Return one padded timestep in place of a value."""
    if not isinstance(value, Value) or value.padding is None:
        return value
    return np.broadcast_to(value.padding.pad_value, (1, 1, *value.row)).astype(value.dtype)
