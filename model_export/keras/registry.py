"""Which rule steps which layer: a rule turns one call of a layer into nodes of the step graph.

To add a layer, write one function in a `rules_*.py` module:

    @rule("Rescaling")
    def rescaling(call: Call) -> Value: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from model_export.errors import RefusedModelError
from model_export.keras.emit import Graph, Value
from model_export.manifest import Array

if TYPE_CHECKING:
    from model_export.keras.walk import Walk

Rule = Callable[["Call"], "Value | list[Value]"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer or operation, with the step graph's values in place of Keras' tensors.

    Attributes:
        walk: The walk that met it.
        layer: The Keras layer, or the `keras.ops` operation.
        path: Its name, behind the names of the models it is nested in.
        args: Positional arguments, nested as in the original.
        kwargs: Keyword arguments that are not None, without `training` and `mask`.
        mask: Explicit or carried mask, shape `(batch,)` bool; None: never masked.
    """

    walk: Walk
    layer: Any
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: str | None = None

    @property
    def graph(self) -> Graph:
        """The graph under construction."""
        return self.walk.graph

    @property
    def values(self) -> list[Value]:
        """The tensors of the first argument."""
        return [v for v in keras.tree.flatten(self.args[0]) if isinstance(v, Value)]

    @property
    def value(self) -> Value:
        """The first tensor of the first argument."""
        return self.values[0]

    def refuse(self, why: str, fix: str = "") -> RefusedModelError:
        """Return the error that names this layer, its class and the reason."""
        what = "Layer" if isinstance(self.layer, keras.Layer) else "Operation"
        return RefusedModelError(
            f"{what} {self.path!r} ({type(self.layer).__name__}) cannot be stepped: {why}.",
            fix=fix or "Take it out of the model, or replace it by something that looks at one timestep at a time.",
        )

    def kind(self, names: Iterable[str]) -> str:
        """Return which of these class names the layer has, by itself or by a parent."""
        known = set(names)
        return next(name for name in _names(type(self.layer)) if name in known)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node named after this layer and return its output tensor."""
        return self.graph.op(kind, *inputs, at=self.path, **attributes)

    def constant(self, values: Any, dtype: str = "float32") -> str:
        """Return a constant named after this layer."""
        return self.graph.constant(to_array(values), dtype, at=f"{self.path}/const")

    def axis(self, value: Value, axis: int) -> int:
        """Return an axis of the original as an axis of the step graph.

        Raises:
            RefusedModelError: It is the time axis or the batch axis.
        """
        absolute = axis % value.rank
        if absolute == 0:
            raise self.refuse("it works along the batch axis, which mixes streams")
        if value.time and absolute == 1:
            raise self.refuse(
                "it works along the time axis, so it needs timesteps that have not come yet",
                "Use a recurrent layer over time, or work along the feature axes.",
            )
        return absolute - value.time

    def as_float(self, value: Value) -> Value:
        """Return the value as float32."""
        if value.dtype == "float32":
            return value
        return value.like(self.graph.cast(value.name, "float32", at=self.path), dtype="float32", mask=value.mask)

    def drop_time(self, array: Array, value: Value) -> Array:
        """Return a constant that broadcasts against the original, so that it broadcasts against the step's value.

        Raises:
            RefusedModelError: It differs from timestep to timestep.
        """
        if not value.time or array.ndim < value.rank - 1:
            return array
        axis = array.ndim - (value.rank - 1)
        if array.shape[axis] != 1:
            raise self.refuse(
                f"it has weights or constants of its own for each of {array.shape[axis]} timesteps",
                "A stream has no last timestep: share them over time.",
            )
        return np.squeeze(array, axis)


_RULES: dict[type, tuple[Rule, bool]] = {}
_OPS: dict[str, Rule] = {}


def rule(*layers: str | type, masks: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of these layer classes.

    Args:
        layers: Classes, or names in `keras.layers`; names that this Keras does not have are left out.
        masks: The rule sets the masks of its results itself. Otherwise they follow Keras' default: a layer
            that supports masking hands the mask on, any other drops it.
    """

    def register(function: Rule) -> Rule:
        for layer in layers:
            cls = getattr(keras.layers, layer, None) if isinstance(layer, str) else layer
            if cls is not None:
                _RULES[cls] = (function, masks)
        return function

    return register


def op_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register the rule of these `keras.ops` operations, by class name."""

    def register(function: Rule) -> Rule:
        _OPS.update(dict.fromkeys(operations, function))
        return function

    return register


def find_rule(layer: Any) -> tuple[Rule, bool] | None:
    """Return a layer's rule and whether it sets masks.

    A subclass has its parent's rule as long as it computes as the parent does.
    """
    for cls in type(layer).__mro__:
        if cls in _RULES:
            same = all(
                getattr(type(layer), name, None) is getattr(cls, name, None) for name in ("call", "compute_mask")
            )
            return _RULES[cls] if same else None
    return None


def find_op_rule(operation: Any) -> Rule | None:
    """Return the rule of an operation, by its class name or that of its parents."""
    return next((_OPS[name] for name in _names(type(operation)) if name in _OPS), None)


def _names(cls: type) -> Iterator[str]:
    return (parent.__name__ for parent in cls.__mro__)


def to_array(values: Any) -> Array:
    """Return a number, a list, a framework's tensor or a Keras variable as a NumPy array."""
    if isinstance(values, np.ndarray | int | float | bool | np.generic | Sequence):
        return np.asarray(values)
    tensor = values.value if isinstance(values, keras.Variable) else values
    array: Array = np.asarray(keras.ops.convert_to_numpy(tensor))
    return array
