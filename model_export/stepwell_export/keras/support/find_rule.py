"""Finds the rule of a layer or an operation; a rule for one timestep becomes one for all of them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from stepwell_export.keras.own_layers import STEP_RULES
from stepwell_export.keras.rule_registry import OPS, RULES, Call, Rule, class_names
from stepwell_export.keras.scan import StepScan
from stepwell_export.keras.value import Value

_COMPUTING = ("call", "compute_mask")
_DESCRIBING = {
    "__init__", "add_weight", "build", "build_from_config", "compute_output_shape", "compute_output_spec",
    "from_config", "get_build_config", "get_config", "get_initial_state", "load_own_variables", "save_own_variables",
}  # fmt: skip
"""Methods that may differ without another result: those of the weights, and of what the rules read of a layer."""


def is_of_keras(cls: type) -> bool:
    """Return whether a class comes with Keras."""
    return cls.__module__.partition(".")[0] == "keras"


def find_rule(layer: Any) -> tuple[Rule, bool] | None:
    """Return a layer's rule and whether it sets masks; a step rule becomes one for all timesteps.

    A subclass has its parent's rule as long as it computes as the parent does.
    """
    for cls in type(layer).__mro__:
        own = STEP_RULES.get(cls)
        if (found := own or RULES.get(cls)) is not None:
            if not computes_as(layer, cls):
                return None
            return (partial(at_each_timestep, rule=own[0]), own[1]) if own else found
    return None


def computes_as(layer: Any, cls: type) -> bool:
    """Return whether a layer or cell computes as a class does: no method that this may call is another one.

    Args:
        layer: The layer; methods that Keras' own subclasses replace are those of layers with the same rule.
        cls: The class.
    """
    if not isinstance(layer, cls) or any(callable(own) for name, own in vars(layer).items() if name in _COMPUTING):
        return False
    if any(getattr(type(layer), name, None) is not getattr(cls, name, None) for name in _COMPUTING):
        return False
    theirs = [part for part in type(layer).__mro__ if part not in cls.__mro__ and not is_of_keras(part)]
    names = {name for part in theirs for name, own in vars(part).items() if inspect.isfunction(own)}
    return not any(inspect.isfunction(getattr(cls, name, None)) for name in names - _DESCRIBING)


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
