"""The step graph of a Keras model under construction."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_export.graph.builder import GraphBuilder
from model_export.keras.value import Value
from model_export.manifest import Array, InputSpec, OutputSpec


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


class KerasGraph(GraphBuilder):
    """A step graph whose tensors are `(batch, *row)`, with what is known of some of them.

    Attributes:
        facts: What is known about each input, by its name.
        length: The number of timesteps that the model declares; None: any.
        bounded: Whether the original's answers depend on that number, so that it is run on no more.
        uniform_values: Tensors that are one number everywhere, with that number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, InputFacts] = {}
        self.length: int | None = None
        self.bounded = False
        self.uniform_values: dict[str, float] = {}
        self._static: set[str] = set()
        self._biasable: dict[str, tuple[Callable[..., str], tuple[int, ...]]] = {}

    def input(self, name: str, row: tuple[int, ...], dtype: str, *, time: bool) -> Value:
        """Declare an input of one timestep, or without time axis one that is the same in every timestep."""
        tensor = self.add_input(InputSpec(name=self.unique(name), dtype=dtype, shape=list(row)))
        self.facts[tensor] = InputFacts(time=time)
        if not time:
            self.mark_static(tensor)
        return Value(tensor, row, dtype, time)

    def output(self, name: str, value: Value) -> OutputSpec:
        """Declare an output."""
        spec = OutputSpec(name=self.unique(name), dtype=value.dtype, shape=list(value.row))
        return self.add_output(spec, value.name)

    def constant(self, array: Any, dtype: str | None = "float32", *, what: str = "const", at: str = "") -> str:
        """Return the name of a constant tensor, float32 by default."""
        return super().constant(array, dtype, what=what, at=at)

    def biasable(self, emit: Callable[..., str], bias: Sequence[int]) -> str:
        """Emit a product whose operator can add a bias itself, for `with_bias`.

        Args:
            emit: Emits it, with the tensor of a bias or without, and returns its result.
            bias: The shape in which a bias is added to a row of the result; it has one axis that is not 1.
        """
        name = emit()
        self._biasable[name] = (emit, tuple(bias))
        return name

    def with_bias(self, tensor: str, bias: Array, *, at: str) -> str | None:
        """Return a product with a bias, which its operator adds; None: it is no product, or that is no bias.

        What `biasable` emitted without one is left out of the finished graph, unless something else uses it.
        """
        emit, shape = self._biasable.get(tensor, (None, ()))
        size = int(np.prod(shape))
        if emit is None or bias.size != size or bias.shape[-len(shape) :] != shape:
            return None
        return emit(self.constant(bias.reshape(size), at=at))

    def note_vocabulary(self, value: Value, size: int) -> None:
        """Remember that an input is looked up in a table of this size."""
        if value.name in self.facts:
            facts = self.facts[value.name]
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

    def mark_static(self, tensor: str) -> None:
        """Note that a tensor never changes after the first timestep, whatever it is computed from."""
        self._static.add(tensor)

    def is_static(self, tensor: str) -> bool:
        """Return whether a tensor never changes: computed from inputs without time axis and from what is static."""
        used = {tensor}
        for node in reversed(self.nodes):
            if used.intersection(node.output) and not self._static.intersection(node.output):
                used |= set(node.input)
        moving = {spec.name for spec in self.inputs} | {state.input for state in self.states}
        return not used & (moving - self._static)

    def unique(self, name: str) -> str:
        """Return a name that is not taken; odd characters of Keras' names become `_`."""
        return super().unique(re.sub(r"[^A-Za-z0-9._/-]", "_", name))
