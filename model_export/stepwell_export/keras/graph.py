"""The sequence graph of a Keras model under construction."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from stepwell_export.graph.builder import BATCH, NodeBuilder, element_type
from stepwell_export.graph.described import numbered, set_layer
from stepwell_export.graph.operators import RESHAPING
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array

TIME = "timesteps"
TRIAL = 67
"""Timesteps of the tensors on which code is tried that cannot run with an open number of them."""


_SAME_NUMBERS = RESHAPING | {"Cast"}


@dataclass(slots=True)
class InputFacts:
    """What the walk learns about an input, for drawing data that reaches every branch of the model.

    Attributes:
        time: Whether the original's input has a time axis.
        vocabulary: Integers from 0 to below this are looked up in an embedding; None: no lookup.
        mask_value: The value that marks a masked timestep; None: nothing is masked by it.
        may_begin_masked: Whether the original gives a number for a sequence whose first timestep is masked.
    """

    time: bool
    vocabulary: int | None = None
    mask_value: float | None = None
    may_begin_masked: bool = True


class KerasGraph(NodeBuilder):
    """A sequence graph whose tensors are `(batch, *row)`, with what is known of some of them.

    Attributes:
        facts: What is known about each input, by its name, in the order of the model's inputs.
        length: The number of timesteps that the model declares; None: any.
        bounded: Whether the original's answers depend on that number, so that it is run on no more.
        keeps_ends: Whether a cut off the front of a sequence of declared length leaves its last timesteps, as many as
            that number does, and not all later ones.
        is_cut: Whether there is such a cut.
        layers: How errors name a layer, by its path.
        stateful: Paths of recurrent layers that keep their state between calls.
        repeated: Tensors that are one entry several times along axis 1, with what they repeat.
        cut_from: Tensors that are a part of another one, which has as many rows.
        reshaped: Tensors that are another one in another shape of each row.
    """

    def __init__(self, *, keeps_ends: bool = False) -> None:
        super().__init__()
        self.facts: dict[str, InputFacts] = {}
        self.length: int | None = None
        self.bounded = False
        self.keeps_ends = keeps_ends
        self.is_cut = False
        self.layers: dict[str, str] = {}
        self.stateful: set[str] = set()
        self.repeated: dict[str, str] = {}
        self.cut_from: dict[str, str] = {}
        self.reshaped: dict[str, str] = {}
        self._nodes_of: dict[str, int] = {}
        self._biasable: dict[str, tuple[Callable[..., str], tuple[int, ...]]] = {}
        self._takes: list[Value] = []
        self._gives: list[Value] = []

    def input(self, name: str, row: tuple[int, ...], dtype: str, *, time: bool) -> Value:
        """Declare an input, a sequence or without time axis."""
        value = Value(self.unique(name), (None, *row) if time else row, dtype)
        self.facts[value.name] = InputFacts(time=time)
        self._takes.append(value)
        return value

    def output(self, name: str, value: Value) -> str:
        """Declare an output, a fresh tensor, and return its name."""
        given = value.like(self.unique(name))
        self.add("Identity", [value.name], [given.name])
        self._gives.append(given)
        return given.name

    def split_op(self, kind: str, *inputs: str, outputs: int, at: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs, named after the layer that it belongs to, and return their names."""
        names = [self.fresh(kind, at) for _ in range(outputs)]
        self.add(kind, inputs, names, at=at, **attributes)
        return names

    def add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], *, at: str = "", **attributes: Any
    ) -> onnx.NodeProto:
        """Add a node whose outputs have names already, and return it; its states will be named after it."""
        node = super().add(kind, inputs, outputs, **attributes)
        self._nodes_of[at] = self._nodes_of.get(at, 0) + 1
        node.name = numbered(at or kind, self._nodes_of[at])
        set_layer([node], self.layers.get(at, ""))
        return node

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes that are added in a list of their own, as those of a body."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def for_each_row(self, constant: str, shape: Sequence[int], like: str, *, at: str = "") -> str:
        """Return a constant once for each row of the batch that another tensor has.

        Args:
            constant: One row of it.
            shape: Its shape.
            like: The other tensor.
            at: The layer.
        """
        rows = self.op("Shape", like, at=at, start=0, end=1)
        whole = self.op("Concat", rows, self.ints(shape), at=at, axis=0) if len(shape) else rows
        return self.op("Expand", constant, whole, at=at)

    def biasable(self, emit: Callable[..., str], bias: Sequence[int]) -> str:
        """Emit a convolution or a product that can add a bias itself, for `with_bias`.

        Args:
            emit: Emits it, with the tensor of a bias or without, and returns its result.
            bias: The shape in which a bias is added to a row of the result.
        """
        name = emit()
        self._biasable[name] = (emit, tuple(bias))
        return name

    def with_bias(self, tensor: str, bias: Array, *, at: str) -> str | None:
        """Return what `biasable` emitted with a bias; None: it emitted nothing like that, or that is no bias of it.

        What `biasable` emitted without one is left out of the finished graph, unless something else uses it.
        """
        emit, shape = self._biasable.get(tensor, (None, ()))
        size = math.prod(shape)
        if emit is None or bias.size != size or bias.shape[-len(shape) :] != shape:
            return None
        return emit(self.constant(bias.reshape(size), "float32", at=at))

    def note_vocabulary(self, value: Value, size: int) -> None:
        """Remember that an input is looked up in a table of this size, perhaps in another dtype or shape."""
        makers = {name: node for node in self.nodes for name in node.output}
        name = value.name
        while (node := makers.get(name)) is not None and node.op_type in _SAME_NUMBERS:
            name = node.input[0]
        if name in self.facts:
            facts = self.facts[name]
            facts.vocabulary = min(size, facts.vocabulary or size)

    def note_mask(self, value: Value, mask_value: float) -> None:
        """Remember what masks a timestep; where it is computed, every input may have to do with it."""
        for name in [value.name] if value.name in self.facts else list(self.facts):
            if self.facts[name].time:
                self.facts[name].mask_value = mask_value

    def note_first(self) -> None:
        """Remember that a sequence must not begin masked: its first answer would be NaN."""
        for facts in self.facts.values():
            facts.may_begin_masked = False

    def unique(self, name: str) -> str:
        """Return a name that is not taken; odd characters of Keras' names become `_`."""
        return super().unique(re.sub(r"[^A-Za-z0-9._/-]", "_", name))

    def proto(self, name: str) -> onnx.ModelProto:
        """Return the finished model, without nodes and constants that no output needs."""
        return self.model(name, map(_declared, self._takes), [*map(_declared, self._gives)])


def _declared(value: Value) -> onnx.ValueInfoProto:
    shape = [BATCH, *(TIME if size is None else size for size in value.row)]
    return helper.make_tensor_value_info(value.name, element_type(value.dtype), shape)
