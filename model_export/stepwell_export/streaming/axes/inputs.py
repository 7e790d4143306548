"""`SequenceInputs`: what a sequence graph takes, and where its inputs have their time and batch axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.relength import with_length
from stepwell_export.streaming.axes.sizes import LENGTHS, perturbed_step, trial_lengths
from stepwell_export.streaming.normal_form.load import Declared
from stepwell_export.verify.onnx_original import InputLayout


def draw_input(layout: InputLayout, rows: int, steps: int, seed: int, changed: int) -> Array:
    """Return data for `stepwell_export.streaming.axes.measured_shapes.measure_shapes`."""
    fixed = layout.fixed(rows, steps)
    if fixed is not None:
        return fixed
    value = _draw(np.random.default_rng(seed // 10), layout.dtype, layout.shape(rows, steps))
    if seed % 10 and layout.time is not None:
        at = [slice(None)] * value.ndim
        at[layout.time] = slice(changed, changed + 1)
        other = _draw(np.random.default_rng(seed), layout.dtype, value[tuple(at)].shape)
        value[tuple(at)] = other + 2 if value.dtype.kind == "f" else 1 - value[tuple(at)]
    return value


@dataclass(frozen=True, slots=True)
class SequenceInputs:
    """Every input of a sequence graph.

    Attributes:
        inputs: In graph order.
        only_rows: The one number of rows that the graph takes; None: any.
        only_steps: The one number of timesteps that the graph takes; None: any.
        is_certain: Whether an operator runs over what was read as time.
        length: The declared number of timesteps, after which attention and positions end; None: there is none.
        tried: Two numbers of timesteps that it is run with, if it was not declared for fewer.
    """

    inputs: tuple[InputLayout, ...]
    only_rows: int | None = None
    only_steps: int | None = None
    is_certain: bool = False
    length: int | None = None
    tried: tuple[int, int] = LENGTHS

    @property
    def lengths(self) -> tuple[int, int]:
        """The two numbers of timesteps that the graph is run with."""
        return self.tried if self.only_steps is not None else trial_lengths(self.length, self.tried)

    def matches_declared(self, declared: Declared) -> bool:
        """Whether the number of rows, where it is fixed in this reading, was declared with a number."""
        declared_rows = [declared[layout.name][layout.batch] for layout in self.external if layout.batch is not None]
        return self.only_rows is None or all(isinstance(rows, int) for rows in declared_rows)

    def with_length(self, proto: Any, steps: int) -> Any:
        """Return the graph for a number of timesteps: itself, or one with that length in its shapes."""
        if self.only_steps is None:
            return proto
        return with_length(proto, old=self.only_steps, new=steps, rows=self.only_rows or 1)

    def feeds(self, rows: int, steps: int, seed: int) -> dict[str, Array]:
        """Return drawn data for every input; seeds that differ by one differ at one timestep alone."""
        changed = perturbed_step(self.lengths)
        return {layout.name: draw_input(layout, rows, steps, seed, changed) for layout in self.inputs}

    @property
    def external(self) -> list[InputLayout]:
        """The inputs that a caller sends."""
        return [layout for layout in self.inputs if layout.role == "external"]


def _draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
