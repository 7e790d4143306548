"""Which rule steps which layer: a rule turns one call of a layer into nodes of the step graph.

To add a layer of Keras, write one function in a module of `rules/`:

    @rule("Rescaling")
    def rescaling(call: Call) -> Value: ...

People's own layers have `stepwell.register_step_rule`, and the same `RequestHandler`.
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
        length: The number of timesteps that the model declares; None: any.
        bounded: Whether the original's answers depend on that number, so that it is run on no more.
    """

    graph: KerasGraph
    length: int | None
    bounded: bool

    def visit(self, operation: Any, prefix: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Emit one call of a layer, a nested model or an operation."""

    def trace(self, call: Call, function: Callable[..., Any]) -> list[Value]:
        """Run Python code on symbolic tensors and emit the operations that it called."""

    def note_vocabulary(self, value: Value, size: int) -> None:
        """Remember that an input is looked up in a table of this size."""

    def note_mask(self, value: Value, mask_value: float) -> None:
        """Remember what masks a timestep."""

    def note_first(self) -> None:
        """Remember that a sequence must not begin masked: its first answer would be NaN."""


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
        name = self.graph.cast(value.name, "float32", at=self.path)
        return value.like(name, dtype="float32", mask=value.mask, padding=value.padding)

    def constant_beside(self, value: Value, array: Array, dtype: str = "float32") -> Value:
        """Return a constant that broadcasts against a value of the original, as it does against the step's.

        One that differs from timestep to timestep is looked up by the position in the stream. Beyond the last
        timestep that it knows it is NaN, so that such a row fails alone and not its batch.

        Args:
            value: The value that it is combined with.
            array: It broadcasts against `(batch, time, *row)`, or `(batch, *row)` where there is no time axis.
            dtype: NumPy name.

        Raises:
            RefusedModelError: It has one entry for each row of the batch, or for another number of timesteps
                than the model declares.
        """
        if array.ndim == value.rank:
            if array.shape[0] != 1:
                raise self.refuse(f"it has a constant for each of {array.shape[0]} rows of the batch")
            array = array[0]
        steps = array.shape[0] if value.time and array.ndim == value.rank - 1 else 0
        if steps > 1:
            return self._of_this_timestep(array, dtype)
        array = array[0] if steps else array
        return Value(self.constant(array, dtype), array.shape, dtype, value.time)

    def _of_this_timestep(self, table: Array, dtype: str) -> Value:
        steps = len(table)
        if steps != self.walk.length or np.dtype(dtype).kind != "f":
            raise self.refuse(
                f"it has {dtype} weights or constants of its own for each of {steps} timesteps, in a model of "
                f"{self.walk.length or 'any number of'} timesteps",
                f"Share them over time, or declare the number of timesteps: keras.Input(({steps}, ...)).",
            )
        self.walk.bounded = True
        known = np.concatenate([table, np.full_like(table[:1], np.nan, dtype)])
        last = self.constant(steps, "int64")
        name = self.op("Gather", self.constant(known, dtype), self.op("Min", self.position(), last), axis=0)
        return Value(name, table.shape[1:], dtype, time=True)


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
        if (found := STEP_RULES.get(cls) or _RULES.get(cls)) is not None:
            same = all(
                getattr(type(layer), name, None) is getattr(cls, name, None) for name in ("call", "compute_mask")
            )
            return found if same else None
    return None


def find_op_rule(operation: Any) -> Rule | None:
    """Return the rule of an operation, by its class name or that of its parents."""
    return next((_OPS[name] for name in _names(type(operation)) if name in _OPS), None)


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
