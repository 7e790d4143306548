"""`JaxGraph`: the sequence graph of a jaxpr under construction; it walks the equations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper

from stepwell_export.graph.builder import BATCH, NodeBuilder, element_type
from stepwell_export.graph.nodes import numbered, set_layer
from stepwell_export.jax.values import Dim, JaxValue, constant, emit_size, folded
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.outside_weights import is_large, outside

TIME = "timesteps"

Made = "str | JaxValue | list[str | JaxValue]"
Rule = Callable[["JaxGraph", Any, list[JaxValue]], Any]
"""`(graph, equation, inputs)` to the tensor or value of its output, or a list with one for each."""

RULES: dict[str, Rule] = {}
FUNCTIONS: dict[str, Rule] = {}

_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call"}
"""Primitives that only call another jaxpr."""

_JAX = str(Path("jax", "_src"))


def rule(*primitives: str) -> Callable[[Rule], Rule]:
    """Register the rule of some primitives, by their names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(primitives, function))
        return function

    return register


def function_rule(name: str) -> Callable[[Rule], Rule]:
    """Register the rule of a function of JAX that ONNX has operators for; it returns None if it does not fit."""

    def register(function: Rule) -> Rule:
        FUNCTIONS[name] = function
        return function

    return register


class JaxGraph(NodeBuilder):
    """A sequence graph whose nodes are named after the layers that they come from.

    Attributes:
        hooks: Rules of functions that a front end has put into the jaxpr, by their names.
        held: Large constants, which lie outside the graph.
        whole_numbers: The integers that tensors of floats are.
        truths: Tensors of numbers that are truths, 0 and 1.
    """

    def __init__(
        self, layer_of: Callable[[str], tuple[str, str]] | None = None, *, computes_in_float32: bool = False
    ) -> None:
        """Begin.

        Args:
            layer_of: From an equation's name stack to its layer's name and what a message calls the layer, both empty
                where there is none; by default both are the name stack.
            computes_in_float32: Floats of other types become float32.
        """
        super().__init__()
        self.hooks: dict[str, Rule] = {}
        self.held: list[Array] = []
        self.whole_numbers: dict[str, JaxValue] = {}
        self.truths: set[str] = set()
        self._layer_of = layer_of or (lambda stack: (stack, stack))
        self._in_float32 = computes_in_float32
        self._at = ""
        self._takes: list[onnx.ValueInfoProto] = []
        self._gives: list[onnx.ValueInfoProto] = []
        self._places: dict[str, tuple[str, int]] = {}
        self._numbers: dict[str, int] = {}

    # ------------------------------------------------------------ inputs and outputs

    def take(self, name: str, shape: Sequence[Dim], dtype: str) -> JaxValue:
        """Declare an input."""
        tensor = self.unique(name)
        self._takes.append(helper.make_tensor_value_info(tensor, element_type(dtype), [_declared(n) for n in shape]))
        for axis, n in enumerate(shape):
            if not isinstance(n, int):
                self._places.setdefault(str(n), (tensor, axis))
        return JaxValue(tuple(shape), dtype, tensor)

    def give(self, name: str, value: JaxValue) -> str:
        """Declare an output, a fresh tensor, and return its name."""
        tensor = self.unique(name)
        self.add("Identity", [self.whole(value)], [tensor])
        dims = [_declared(n) for n in value.shape]
        self._gives.append(helper.make_tensor_value_info(tensor, element_type(value.dtype), dims))
        return tensor

    def proto(self, name: str) -> onnx.ModelProto:
        """Return the finished model."""
        return self.model(name, self._takes, self._gives)

    def add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, at: str = "", **attributes: Any
    ) -> onnx.NodeProto:
        """Add a node of the equation that is being emitted."""
        node = super().add(kind, inputs, outputs, **attributes)
        place, layer = (at, at) if at else self._layer_of(self._at)
        self._numbers[place] = self._numbers.get(place, 0) + 1
        node.name = numbered(place or kind, self._numbers[place])
        set_layer([node], layer)
        return node

    def fresh(self, what: str, at: str = "") -> str:
        """Return a name that is not taken, behind that of the layer that is being emitted."""
        return super().fresh(what, at or self._layer_of(self._at)[0])

    def constant(self, array: Any, dtype: str | None = None, *, what: str = "const", at: str = "") -> str:
        """Return the name of a constant tensor."""
        given = dtype or str(np.asarray(array).dtype)
        if self.dtype(given) != given:
            array, dtype = np.asarray(array, np.float32), "float32"
        return super().constant(array, dtype, what=what, at=at)

    def _tensor(self, value: Array) -> onnx.TensorProto:
        if not is_large(value):
            return super()._tensor(value)
        tensor, held = outside(np.array(value))  # of its own, as the original may give up its weights
        self.held.append(held)
        return tensor

    def cast(self, tensor: str, dtype: str, *, at: str = "") -> str:
        """Change the dtype."""
        return super().cast(tensor, self.dtype(dtype), at=at)

    def dtype(self, dtype: str) -> str:
        """Return the dtype that the graph has for one of the function."""
        return "float32" if self._in_float32 and dtype in {"float16", "bfloat16", "float64"} else dtype

    # ------------------------------------------------------------ tensors of values and sizes

    def whole(self, value: JaxValue) -> str:
        """Return a tensor with all elements of a value."""
        tensor = self.small(value)
        return self.op("Expand", tensor, self.sizes(value.shape)) if value.ones else tensor

    def small(self, value: JaxValue) -> str:
        """Return a tensor that broadcasts to a value."""
        if value.tensor:
            return value.tensor
        assert value.known is not None
        if not value.is_sizes:
            return self.constant(value.known, value.dtype)
        flat = self.sizes(value.known.reshape(-1).tolist())
        shaped = self.op("Reshape", flat, self.ints(list(value.known.shape)))
        return shaped if value.dtype == "int64" else self.cast(shaped, value.dtype)

    def sizes(self, dims: Sequence[Dim]) -> str:
        """Return sizes as a tensor, `(len(dims),)` int64."""
        parts: list[str | list[int]] = []
        for n in dims:
            if not isinstance(n, int | np.integer):
                parts.append(emit_size(self, n, self._size))
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(int(n))
            else:
                parts.append([int(n)])
        tensors = [self.ints(part) if isinstance(part, list) else part for part in parts] or [self.ints([])]
        return self.op("Concat", *tensors, axis=0) if len(tensors) > 1 else tensors[0]

    def size(self, n: Dim) -> str:
        """Return a size as a scalar, int64."""
        return self.op("Squeeze", self.sizes([n]), self.ints([0]))

    def _size(self, name: str) -> str:
        tensor, axis = self._places[name]
        return self.op("Shape", tensor, start=axis, end=axis + 1)

    # ------------------------------------------------------------ the walk

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes that are added in a list of their own, as those of a body."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def refuse(self, equation: Any, reason: str, fix: str = "") -> RefusedModelError:
        """Return the error for an equation that has no place in a sequence graph."""
        layer = self._layer_of(self._at)[1]
        at = f"{layer}: " if layer else ""
        return RefusedModelError(f"{at}{equation.primitive.name} {reason}{line_of(equation)}.", fix=fix, layer=layer)

    def run(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[JaxValue]) -> list[JaxValue]:
        """Emit the equations of a jaxpr and return what it returns.

        Raises:
            RefusedModelError: A primitive has no rule, or not for its parameters.
        """
        values: dict[Any, JaxValue] = {}

        def read(atom: Any) -> JaxValue:
            aval: Any = atom.aval
            return constant(atom.val, aval.dtype) if isinstance(atom, Literal) else values[atom]

        for var, const in zip(jaxpr.constvars, consts, strict=True):
            values[var] = constant(const)
        values.update(zip(jaxpr.invars, inputs, strict=True))
        for equation in _needed(jaxpr):
            outer = self._at
            self._at = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
            found = self._emitted(equation, [read(atom) for atom in equation.invars])
            self._at = outer
            values.update(zip(equation.outvars, found, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _emitted(self, equation: Any, inputs: list[JaxValue]) -> list[JaxValue]:
        name = equation.primitive.name
        if name in _CALLS:
            called = next(
                equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params
            )
            jaxpr, consts = getattr(called, "jaxpr", called), getattr(called, "consts", ())
            name, _, home = str(jaxpr.debug_info.func_src_info).partition(" at ")
            if name in self.hooks:
                return self._as_values(equation, self.hooks[name](self, equation, inputs))
            if name in FUNCTIONS and _JAX in home and (found := FUNCTIONS[name](self, jaxpr, inputs)) is not None:
                return [found]
            return self.run(jaxpr, consts, inputs)
        if (known := folded(equation, inputs)) is not None:
            return known
        if name not in RULES:
            raise self.refuse(equation, "has no rule", "Write it with other operations, or report it as an issue.")
        return self._as_values(equation, RULES[name](self, equation, inputs))

    def _as_values(self, equation: Any, made: Any) -> list[JaxValue]:
        return [
            one if isinstance(one, JaxValue) else JaxValue(tuple(var.aval.shape), str(var.aval.dtype), one)
            for one, var in zip(made if isinstance(made, list) else [made], equation.outvars, strict=True)
        ]


def _needed(jaxpr: Any) -> list[Any]:
    """Return the equations that a result follows from: others, as of a dropout that is off, need no rule."""
    needed, kept = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            needed.update(atom for atom in equation.invars if not isinstance(atom, Literal))
            kept.append(equation)
    return kept[::-1]


def line_of(equation: Any) -> str:
    """Return where the user's code has an equation, for a message; empty where that is not known."""
    from jax._src import source_info_util

    frame = source_info_util.user_frame(equation.source_info.traceback)
    return f" ({frame.file_name.rpartition('/')[2]}, line {frame.start_line})" if frame is not None else ""


def _declared(n: Dim) -> int | str:
    return n if isinstance(n, int) else {"b": BATCH, "rows": BATCH, "t": TIME}.get(str(n), str(n))
