"""Which rule steps which layer: a rule turns one call of a layer into nodes of the step graph.

To add a layer of Keras, write one function in a module of `rules/`:

    @rule("Rescaling")
    def rescaling(call: Call) -> Value: ...

People's own layers have `stepwell.register_step_rule`, and the same `Call`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import keras
import numpy as np

from model_export.errors import RefusedModelError
from model_export.keras.step_graph import KerasGraph
from model_export.keras.step_rules import STEP_RULES
from model_export.keras.value import Value
from model_export.manifest import Array

Rule = Callable[["Call"], "Value | list[Value]"]
POSITION = "stepwell.position"


class RefusedCallError(RefusedModelError):
    """A layer or operation that cannot be stepped.

    Attributes:
        path: Its name, behind the names of the models and layers it is nested in.
    """

    def __init__(self, problem: str, *, fix: str, path: str) -> None:
        super().__init__(problem, fix=fix)
        self.path = path


class Walker(Protocol):
    """What a rule needs of the walk through the model.

    Attributes:
        graph: The step graph under construction.
    """

    graph: KerasGraph

    def visit(self, operation: Any, prefix: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Emit one call of a layer, a nested model or an operation."""

    def trace(self, call: Call, function: Callable[..., Any]) -> list[Value]:
        """Run Python code on symbolic tensors and emit the operations that it called."""


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
        owner: The layer of Keras whose code calls the operation: a refusal names the layer; None: other code.
    """

    walk: Walker
    layer: Any
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: str | None = None
    owner: Any = None

    @property
    def graph(self) -> KerasGraph:
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

    @property
    def operands(self) -> list[Value]:
        """The tensors of all arguments."""
        return [v for v in keras.tree.flatten((self.args, self.kwargs)) if isinstance(v, Value)]

    def changed(self, change: Callable[[Value], Any]) -> Call:
        """Return the same call with something else in the place of each of its tensors."""
        args, kwargs = keras.tree.map_structure(
            lambda v: change(v) if isinstance(v, Value) else v, (self.args, self.kwargs)
        )
        return replace(self, args=args, kwargs=kwargs)

    def weights(self, place: int) -> Array:
        """Return an argument of an operation that has to be constant.

        Raises:
            RefusedModelError: The model computes it.
        """
        if isinstance(self.args[place], Value):
            raise self.refuse("its weights are computed by the model; expected constants")
        return to_array(self.args[place])

    def optional_weights(self, place: int, name: str) -> Array | None:
        """Return an argument of an operation that is constant or left out."""
        given = self.kwargs.get(name, self.args[place] if len(self.args) > place else None)
        return None if given is None else replace(self, args=(given,)).weights(0)

    def refuse(self, why: str, fix: str = "") -> RefusedCallError:
        """Return the error that names this layer, its class and the reason."""
        named = self.owner or self.layer
        what = "Layer" if isinstance(named, keras.Layer) else "Operation"
        return RefusedCallError(
            f"{what} {self.path!r} ({type(named).__name__}) cannot be stepped: {why}.",
            fix=fix or "Take it out of the model, or replace it by something that looks at one timestep at a time.",
            path=self.path,
        )

    def kind(self, names: Iterable[str]) -> str:
        """Return which of these class names the layer has, by itself or by a parent."""
        known = set(names)
        return next(name for name in _names(type(self.layer)) if name in known)

    # ---------------------------------------------------------------- what a rule emits

    def op(self, kind: str, *inputs: str | Value, **attributes: Any) -> str:
        """Add a node named after this layer and return its output tensor."""
        return self.graph.op(kind, *map(_name, inputs), at=self.path, **attributes)

    def cast(self, tensor: str | Value, dtype: str) -> str:
        """Return a tensor in another dtype, under a name after this layer."""
        return self.graph.cast(_name(tensor), dtype, at=self.path)

    def reshape(self, tensor: str | Value, row: Sequence[int]) -> str:
        """Return a tensor with another shape of each row, under a name after this layer."""
        return self.graph.reshape(_name(tensor), row, at=self.path)

    def reshaped(self, value: Value, row: Sequence[int]) -> Value:
        """Return a value with another shape of each row, and nothing else of this one but its dtype and time axis."""
        return value.like(self.reshape(value, row), row=tuple(row))

    def constant(self, values: Any, dtype: str = "float32") -> str:
        """Return a constant named after this layer."""
        return self.graph.constant(to_array(values), dtype, at=self.path)

    def state(self, name: str, row: Sequence[int], dtype: str = "float32", init: Array | None = None) -> Value:
        """Declare a state; the rule owes `next_state` for it.

        Args:
            name: Its name behind the layer's.
            row: Its shape without batch axis.
            dtype: NumPy name.
            init: The row before the first timestep; None: zeros.

        Returns:
            What the state is before this timestep, shape `(batch, *row)`.
        """
        spec = self.graph.state(f"{self.path}.{name}", tuple(row), dtype, init)
        return Value(spec.input, spec.row_shape, dtype)

    def next_state(self, state: Value, value: Value | str) -> None:
        """Set what a state is after this timestep."""
        spec = next(spec for spec in self.graph.states if spec.input == state.name)
        self.graph.next_state(spec, _name(value))

    def run(self, function: Any, *values: Value) -> list[Value]:
        """Run a layer, a model or a function of `keras.ops` on what one timestep has.

        Args:
            function: It gets tensors `(batch, *row)`, without time axis.
            values: One for each of its arguments; the first may be a list for a layer that joins values.

        Returns:
            Its results; they carry a time axis where one of the values does.
        """
        time = any(value.time for value in values)
        step = [replace(value, time=False, mask=None) for value in values]
        if isinstance(function, keras.Layer):
            results = self.walk.visit(function, f"{self.path}.", *step)
        else:
            inner = Call(self.walk, function, self.path, tuple(step), {})
            results = self.walk.trace(inner, function)
        return [replace(result, time=time) for result in results]

    def position(self) -> Value:
        """Return how many timesteps came before this one, shape `(batch,)` int64: one state for the whole model."""
        if not any(spec.input == POSITION for spec in self.graph.states):
            spec = self.graph.state(POSITION, (), "int64")
            self.graph.next_state(spec, self.graph.op("Add", POSITION, self.constant(1, "int64"), at=POSITION))
        return Value(POSITION, (), "int64", time=True)

    # ---------------------------------------------------------------- from the original's axes to the step's

    def axis(self, value: Value, axis: int | None) -> int:
        """Return an axis of the original as an axis of the step graph.

        Raises:
            RefusedModelError: It is the time axis or the batch axis, or None: all axes.
        """
        if axis is None:
            raise self.refuse("it works along all axes, batch and time included", "Name a feature axis.")
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
        return self._as(value, "float32")

    def as_truth(self, value: Value) -> Value:
        """Return whether the value is not zero."""
        return self._as(value, "bool")

    def as_number(self, value: Value) -> Value:
        """Return the value with truths as 0 and 1."""
        return self._as(value, "int32") if value.dtype == "bool" else value

    def _as(self, value: Value, dtype: str) -> Value:
        if value.dtype == dtype:
            return value
        return value.like(self.cast(value, dtype), dtype=dtype, mask=value.mask, padding=value.padding)


_RULES: dict[type, tuple[Rule, bool]] = {}
_OPS: dict[str, Rule] = {}
_HANDLES: dict[Rule, frozenset[str]] = {}


def rule(*layers: str | type, masks: bool = False, handles: str = "") -> Callable[[Rule], Rule]:
    """Register the rule of these layer classes.

    Args:
        layers: Classes, or names in `keras.layers`; names that this Keras does not have are left out.
        masks: The rule sets the masks of its results itself. Otherwise they follow Keras' default: a layer
            that supports masking hands the mask on, any other drops it.
        handles: What values may have that the walk settles for other rules, words of: `padding` over time,
            `deferred`; or `shape`: the rule changes that of one value alone, and the same is done to its weight.
    """

    def register(function: Rule) -> Rule:
        _HANDLES[function] = frozenset(handles.split())
        for layer in layers:
            cls = getattr(keras.layers, layer, None) if isinstance(layer, str) else layer
            if cls is not None:
                _RULES[cls] = (function, masks)
        return function

    return register


def op_rule(*operations: str, handles: str = "") -> Callable[[Rule], Rule]:
    """Register the rule of these `keras.ops` operations, by class name; `handles` is as for `rule`."""

    def register(function: Rule) -> Rule:
        _HANDLES[function] = frozenset(handles.split())
        _OPS.update(dict.fromkeys(operations, function))
        return function

    return register


def find_rule(layer: Any) -> tuple[Rule, bool] | None:
    """Return a layer's rule and whether it sets masks.

    A subclass has its parent's rule as long as it computes as the parent does.
    """
    for cls in type(layer).__mro__:
        if (found := STEP_RULES.get(cls) or _RULES.get(cls)) is not None:
            same = all(
                getattr(type(layer), name, None) is getattr(cls, name, None) for name in ("call", "compute_mask")
            )
            return found if same else None
    return None


def find_op_rule(operation: Any) -> Rule | None:
    """Return the rule of an operation, by its class name or that of its parents."""
    return next((_OPS[name] for name in _names(type(operation)) if name in _OPS), None)


def handles(rule: Rule, what: str) -> bool:
    """Return whether a rule was registered as handling something itself: see `rule`."""
    return what in _HANDLES.get(rule, ())


def listed(results: Any) -> list[Any]:
    """Return what a rule returns as a list."""
    return results if isinstance(results, list) else [results]


def _name(tensor: str | Value) -> str:
    return tensor.name if isinstance(tensor, Value) else tensor


def _names(cls: type) -> Iterator[str]:
    return (parent.__name__ for parent in cls.__mro__)


def to_array(values: Any) -> Array:
    """Return a number, a list, a framework's tensor or a Keras variable as a NumPy array."""
    if isinstance(values, np.ndarray | int | float | bool | np.generic | Sequence):
        return np.asarray(values)
    tensor = values.value if isinstance(values, keras.Variable) else values
    array: Array = np.asarray(keras.ops.convert_to_numpy(tensor))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
