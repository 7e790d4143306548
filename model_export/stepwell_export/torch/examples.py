"""What to feed a module for a comparison: drawn after the examples that the user gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepwell_export.labels import read_columns
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.torch.naming import numpy_dtype

FEWEST_ROWS = 8
"""Timesteps of an example from which each number's own range is read."""


@dataclass(frozen=True, slots=True)
class ExampleInput:
    """One input of a module, and where the module has which axis in it.

    Attributes:
        name: Its name in the step graph.
        row: One timestep of one stream.
        dtype: NumPy name.
        rows: The example's timesteps, shape `(timesteps, *row)`.
        batch: The module's batch axis.
        time: The module's time axis; None where it has none, or takes one timestep a call.
        ids: Rows of the embedding table that this input is looked up in; None where it is not.
    """

    name: str
    row: tuple[int, ...]
    dtype: str
    rows: Array
    batch: int = 0
    time: int | None = None
    ids: int | None = None

    def to_module(self, value: torch.Tensor) -> torch.Tensor:
        """Bring `(batch, T, *row)` to the module's own axes, in one piece: `view` in the module needs that."""
        if self.time is None:
            return value[:, 0].movedim(0, self.batch).contiguous()
        return value.movedim((0, 1), (self.batch, self.time)).contiguous()


class ExampleSampler:
    """Draws `{input: (rows, steps, *row)}` for a comparison; a `stepwell_export.verify.samplers.Sampler`.

    Attributes:
        constant: Inputs that stay the same for all of a sequence.
    """

    def __init__(
        self, inputs: Sequence[ExampleInput], *, from_examples: bool = False, constant: Sequence[str] = ()
    ) -> None:
        """Remember what to draw.

        Args:
            inputs: The module's inputs.
            from_examples: Draw the examples' own timesteps, for a module that does not take just any number.
            constant: Inputs that stay the same for all of a sequence.
        """
        self._inputs = inputs
        self._from_examples = from_examples
        self._constant = constant

    @property
    def kind(self) -> str:
        """How the report calls this data."""
        return "example" if self._from_examples else "random"

    def __call__(self, rng: np.random.Generator, rows: int, steps: int) -> dict[str, Array]:
        """Draw sequences."""
        drawn = {one.name: self._values(one, rng, (rows, steps)) for one in self._inputs}
        for name in self._constant:
            drawn[name][:] = drawn[name][:, :1]
        return drawn

    def tensors(self, seed: int, rows: int, steps: int) -> list[torch.Tensor]:
        """Draw sequences in the module's order."""
        return [torch.from_numpy(value) for value in self(np.random.default_rng(seed), rows, steps).values()]

    def _values(self, one: ExampleInput, rng: np.random.Generator, lead: tuple[int, int]) -> Array:
        if self._from_examples:
            return one.rows[rng.integers(0, len(one.rows), lead)]
        shape = (*lead, *one.row)
        if np.dtype(one.dtype).kind == "f":
            return drawn_like(one.rows, rng, shape)
        known = np.unique(one.rows)
        choices = np.arange(one.ids) if one.ids else known if len(known) > 1 else np.arange(2)
        return rng.choice(choices, shape).astype(one.dtype)


def drawn_like(rows: Array, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Draw floats in the range that each number of an example's rows has.

    Where a number is the same in all rows, so that it has no range, it is drawn around that. An example of too few rows
    for ranges has one for all of its numbers; one of zeros has none, and normal numbers are drawn.

    Args:
        rows: The example, shape `(timesteps, *row)`.
        rng: Source of the draws.
        shape: Of what is drawn, ending in the row.
    """
    finite = np.where(np.isfinite(rows), rows, 0.0).astype(np.float64)
    low, high = (
        (finite.min(axis=0), finite.max(axis=0)) if len(rows) >= FEWEST_ROWS else (np.min(finite), np.max(finite))
    )
    low, high = np.broadcast_to(low, rows.shape[1:]), np.broadcast_to(high, rows.shape[1:])
    normal = low + np.maximum(np.abs(low), 1.0 * (low == 0)) * rng.standard_normal(shape)
    even = low + (high - low) * rng.random(shape)
    drawn: Array = np.where(high > low, even, normal).astype(rows.dtype)
    return drawn


def tensors(examples: Mapping[str, Any], *, may_be_empty: bool = False) -> dict[str, torch.Tensor]:
    """Return examples or initial states as tensors on the CPU; arrays, lists and data frames are taken too.

    A data frame is one sequence, a column for each number: it gets a batch axis.

    Raises:
        RefusedModelError: One is no array, of a dtype that the service has not, or empty though it may not be.
    """
    found = {}
    for name, given in examples.items():
        value = np.asarray(given.to_numpy(), np.float32)[None] if read_columns(given) else given
        try:
            tensor = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as exc:
            raise RefusedModelError(
                f"{name!r} is {type(value).__name__}; expected a tensor.", fix="Give an example as a tensor."
            ) from exc
        if tensor.dtype == torch.float64 and not isinstance(value, torch.Tensor):
            tensor = tensor.float()  # what Python and NumPy call a number
        if not tensor.numel() and not may_be_empty:
            raise RefusedModelError(
                f"{name!r} has shape {list(tensor.shape)}, without a number; expected an example.",
                fix="Give at least one sequence of one timestep: torch.zeros(1, 7, 4).",
            )
        numpy_dtype(tensor, repr(name))
        if tensor.dtype == torch.float16:
            raise RefusedModelError(
                f"{name!r} is float16; expected float32.", fix="Give `.float()`: the step graph computes in float32."
            )
        found[name] = tensor
    return found
