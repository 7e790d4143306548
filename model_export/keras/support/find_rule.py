"""Finds the rule of a layer or an operation; a rule for one timestep becomes one for all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import keras

from model_export.keras.registry import OPS, RULES, Call, Rule, class_names
from model_export.keras.scan import StepScan
from model_export.keras.step_rules import STEP_RULES
from model_export.keras.value import Value


def find_rule(layer: Any) -> tuple[Rule, bool] | None:
    """Return a layer's rule and whether it sets masks; a step rule becomes one for all timesteps.

    A subclass has its parent's rule as long as it computes as the parent does.
    """
    for cls in type(layer).__mro__:
        own = STEP_RULES.get(cls)
        if (found := own or RULES.get(cls)) is not None:
            same = all(
                getattr(type(layer), name, None) is getattr(cls, name, None) for name in ("call", "compute_mask")
            )
            if not same:
                return None
            return (partial(at_each_timestep, rule=own[0]), own[1]) if own else found
    return None


def find_op_rule(operation: Any) -> Rule | None:
    """Return the rule of an operation, by its class name or that of its parents."""
    return next((OPS[name] for name in class_names(type(operation)) if name in OPS), None)


def at_each_timestep(call: Call, rule: Rule) -> list[Value]:
    """Run a rule for one timestep as the body of a Scan over all timesteps; without time axis as it is."""
    if not any(value.is_sequence for value in call.operands):
        return checked(call, rule(call))
    scan = StepScan(call.graph, call.path)
    with scan.body(call.walk):
        mask = scan.mask(call.mask)
        args, kwargs = keras.tree.map_structure(
            lambda given: scan.element(given) if isinstance(given, Value) else given, (call.args, call.kwargs)
        )
        results = checked(call, rule(replace(call, args=args, kwargs=kwargs, mask=mask)))
    return scan.results(results)


def checked(call: Call, results: Any) -> list[Value]:
    """Return what a rule returns as a list.

    Raises:
        RefusedModelError: It returned something else than values.
    """
    found = results if isinstance(results, list) else [results]
    if not all(isinstance(result, Value) for result in found):
        raise call.refuse(
            f"its step rule returned {found!r}; expected a Value or a list of them",
            "Name the tensor's row: `return call.value.like(name)`.",
        )
    return found
