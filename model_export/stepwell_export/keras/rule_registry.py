"""Which rule emits which layer: a rule turns one call of a layer into nodes of the sequence graph.

To add a layer of Keras, write one function in a module of `rules/`:

    @rule("Rescaling")
    def rescaling(call: Call) -> Value: ...

People's own layers have `stepwell.register_step_rule`, and the same `Call`: for one timestep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import keras
import numpy as np

from stepwell_export.keras.graph import KerasGraph
from stepwell_export.keras.scan import StepScan
from stepwell_export.keras.value import Value
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array

Rule = Callable[["Call"], "Value | list[Value]"]


class RefusedCallError(RefusedModelError):
    """A layer or operation that cannot be stepped.

    Attributes:
        path: Its name, behind the names of the models and layers it is nested in.
    """

    def __init__(self, problem: str, *, fix: str, layer: str, path: str) -> None:
        super().__init__(problem, fix=fix, layer=layer)
        self.path = path


class Walker(Protocol):
    """What a rule needs of the walk through the model.

    Attributes:
        graph: The sequence graph under construction.
        scan: The Scan whose body is under construction; None: the graph itself is.
    """

    graph: KerasGraph
    scan: StepScan | None

    def visit(self, operation: Any, prefix: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Emit one call of a layer, a nested model or an operation."""

    def trace(self, call: Call, function: Callable[..., Any]) -> list[Value]:
        """Run Python code on symbolic tensors and emit the operations that it called."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer or operation, with the graph's values in place of Keras' tensors.

    Attributes:
        walk: The walk that met it.
        layer: The Keras layer, or the `keras.ops` operation.
        path: Its name, behind the names of the models it is nested in.
        args: Positional arguments, nested as in the original.
        kwargs: Keyword arguments that are not None, without `training` and `mask`.
        mask: Explicit or carried mask, shape `(batch, timesteps)` bool, in a step rule `(batch,)`; None: never masked.
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
        return RefusedCallError(
            f"{self.described} cannot be stepped: {why}.",
            fix=fix or "Take it out of the model, or replace it by something that looks at one timestep at a time.",
            layer=self.described,
            path=self.path,
        )

    @property
    def described(self) -> str:
        """The layer or operation, for people."""
        named = self.owner or self.layer
        if isinstance(named, keras.Layer):
            return f"Layer {self.path!r} ({type(named).__name__})"
        outer = self.graph.layers.get(self.path.rpartition("/")[0], "")
        inside = f" of l{outer[1:]}" if outer.startswith("Layer") else ""
        return f"Operation {self.path!r} ({type(named).__name__}){inside}"

    def kind(self, names: Iterable[str]) -> str:
        """Return which of these class names the layer has, by itself or by a parent."""
        known = set(names)
        return next(name for name in class_names(type(self.layer)) if name in known)

    # ---------------------------------------------------------------- what a rule emits

    def op(self, kind: str, *inputs: str | Value, **attributes: Any) -> str:
        """Add a node named after this layer and return its output tensor."""
        return self.graph.op(kind, *map(_name, inputs), at=self.path, **attributes)

    def cast(self, tensor: str | Value, dtype: str) -> str:
        """Return a tensor in another dtype, under a name after this layer."""
        return self.graph.cast(_name(tensor), dtype, at=self.path)

    def reshape(self, tensor: str | Value, row: Sequence[int | None]) -> str:
        """Return a tensor with another shape of each row, under a name after this layer.

        At most one size of the row is None, unless the tensor is a value that has None at the same places.
        """
        before = tensor.row if isinstance(tensor, Value) else ()
        kept = [place < len(before) and size is before[place] is None for place, size in enumerate(row)]
        several = sum(size is None for size in row) > 1
        shape = [
            (0 if several and same else -1) if size is None else size for size, same in zip(row, kept, strict=True)
        ]
        source = _name(tensor)
        if not several:
            source = self.graph.reshaped.get(source, source)
        made = self.op("Reshape", source, self.graph.ints([0, *shape]))
        self.graph.reshaped[made] = source
        return made

    def reshaped(self, value: Value, row: Sequence[int | None]) -> Value:
        """Return a value with another shape of each row, and nothing else of this one but its dtype and time axis."""
        return value.like(self.reshape(value, row), row=tuple(row))

    def unsqueezed(self, value: Value, axes: Sequence[int]) -> Value:
        """Return a value with new axes of length 1 at these places, in ascending order."""
        row = list(value.row)
        for axis in axes:
            row.insert(axis - 1, 1)
        return value.like(self.op("Unsqueeze", value, self.graph.ints(axes)), row=tuple(row))

    def squeezed(self, value: Value, axes: Sequence[int]) -> Value:
        """Return a value without some of its axes, which are of length 1."""
        row = tuple(size for axis, size in enumerate(value.row, 1) if axis not in axes)
        return value.like(self.op("Squeeze", value, self.graph.ints(axes)), row=row)

    def constant(self, values: Any, dtype: str | None = None) -> str:
        """Return a constant named after this layer.

        Args:
            values: A number, a list, an array, a tensor or a variable.
            dtype: NumPy name; None: that of an array of whole numbers or truths, and float32 for everything else.
        """
        array = to_array(values)
        keeps = array.dtype.kind in "biu" and not isinstance(values, int | list | tuple)
        return self.graph.constant(array, dtype or (array.dtype.name if keeps else "float32"), at=self.path)

    def state(self, name: str, row: Sequence[int | None], dtype: str = "float32", init: Array | None = None) -> Value:
        """Declare a state in a step rule, which owes `next_state` for it.

        Args:
            name: Its name behind the layer's.
            row: Its shape without batch axis.
            dtype: NumPy name.
            init: The row before the first timestep; None: zeros.

        Returns:
            What the state is before this timestep, shape `(batch, *row)`.

        Raises:
            RefusedModelError: The layer's input has no time axis, so that there is nothing to carry.
        """
        return self._scan().state(f"{self.path}.{name}", tuple(row), dtype, init)

    def next_state(self, state: Value, value: Value | str) -> None:
        """Set what a state is after this timestep."""
        self._scan().next_state(state, _name(value))

    def _scan(self) -> StepScan:
        if self.walk.scan is None:
            raise self.refuse(
                "its step rule carries a state, and its input has no time axis",
                "Give the recurrent layer before it return_sequences=True.",
            )
        return self.walk.scan

    def run(self, function: Any, *values: Value) -> list[Value]:
        """Run a layer, a model or a function of `keras.ops` on what one timestep has, in a step rule.

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
        """Return in a step rule how many timesteps came before this one, shape `(batch,)` int64."""
        return self._scan().position(self.path)

    # ---------------------------------------------------------------- axes and dtypes

    def axis(self, value: Value, axis: int | None) -> int:
        """Return an axis counted from the front.

        Raises:
            RefusedModelError: It is the batch axis, or None: all axes.
        """
        if axis is None:
            raise self.refuse("it works along all axes, batch and time included", "Name a feature axis.")
        if axis % value.rank == 0:
            raise self.refuse("it works along the batch axis, which mixes streams")
        return axis % value.rank

    def size(self, value: Value, axis: int) -> int:
        """Return the size of an axis.

        Raises:
            RefusedModelError: It is that of the timesteps.
        """
        size = value.row[axis - 1]
        if size is None:
            raise self.refuse(
                "it works along the time axis, so it needs timesteps that have not come yet",
                "Use a recurrent layer over time, or work along the feature axes.",
            )
        return size

    def as_float(self, value: Value) -> Value:
        """Return the value as float32."""
        return self.in_dtype(value, "float32")

    def as_truth(self, value: Value) -> Value:
        """Return whether the value is not zero."""
        return self.in_dtype(value, "bool")

    def as_number(self, value: Value) -> Value:
        """Return the value with truths as 0 and 1."""
        return self.in_dtype(value, "int32") if value.dtype == "bool" else value

    def in_dtype(self, value: Value, dtype: str) -> Value:
        """Return the value in a dtype; a float that an integer cannot hold becomes the nearest one, and NaN 0."""
        if value.dtype == dtype:
            return value
        source: str | Value = value
        if "float" in value.dtype and "int" in dtype and dtype != "int64":  # the operator leaves such numbers open
            ends = np.iinfo(dtype)
            number = self.op("Where", self.op("IsNaN", value), self.constant(0, value.dtype), value)
            low, high = (self.constant(end, value.dtype) for end in (ends.min, ends.max))
            number = self.cast(self.op("Clip", number, low, high), "int64")
            source = self.op("Min", number, self.constant(ends.max, "int64"))  # as a float32 it may be one more
        name = self.cast(source, dtype)
        return value.like(name, dtype=dtype, mask=value.mask)


RULES: dict[type, tuple[Rule, bool]] = {}
OPS: dict[str, Rule] = {}


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
                RULES[cls] = (function, masks)
        return function

    return register


def op_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register the rule of these `keras.ops` operations, by class name."""

    def register(function: Rule) -> Rule:
        OPS.update(dict.fromkeys(operations, function))
        return function

    return register


def _name(tensor: str | Value) -> str:
    return tensor.name if isinstance(tensor, Value) else tensor


def class_names(cls: type) -> Iterator[str]:
    """Yield the names of a class and its parents."""
    return (parent.__name__ for parent in cls.__mro__)


def to_array(values: Any) -> Array:
    """Return a number, a list, a framework's tensor or a Keras variable as a NumPy array."""
    if isinstance(values, np.ndarray | int | float | bool | np.generic | Sequence):
        return np.asarray(values)
    tensor = values.value if isinstance(values, keras.Variable) else values
    array: Array = np.asarray(keras.ops.convert_to_numpy(tensor))
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
