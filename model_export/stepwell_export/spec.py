"""`StepSpec`: how to step a PyTorch module or a JAX function, as `package.module:callable` returns it to `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepwell_export.runtime.errors import ManifestError

BUFFERS = "buffers"
"""In the place of states: they are what the module changes of its buffers."""


@dataclass(frozen=True, slots=True)
class StepSpec:
    """A PyTorch module or a JAX function to export, with examples of its inputs.

    A module that returns its states has their initial values, too.

    Either a module that takes and returns its states, `forward(*inputs, *states) -> (*outputs, *next_states)`:
    `StepSpec(module, inputs={"x": one timestep (B, ..)}, states={"h": initial (1, ..)})`;
    or one over whole sequences: `StepSpec(module, inputs={"x": example (B, T, ..)}, time_axis=1)`.

    Attributes:
        module: The `torch.nn.Module`, which is left as it is; or a function of JAX arrays over whole sequences, such as
            `partial(model.apply, variables)` of Flax or a module of Equinox under `jax.vmap`.
        inputs: An example by input name, in `forward`'s order; a tuple or dict of tensors gives one input for each of
            them. Of a whole-sequence module, inputs without time axis
            stay the same for a stream.
        states: The initial value by state name, in `forward`'s order; batch 1. Or `"buffers"`: the states are what
            `forward(*inputs)` changes of its buffers and tensor attributes, with the values that they have now.
        time_axis: Where the first input of a whole-sequence module has its time axis; the batch axis is 0, or 1
            where time is 0.
        output_names: Names for the outputs, in order.
        length: The number of timesteps that a whole-sequence module was built for, where it attends to all timesteps
            so far or has a table of positions: what a stream attends to, and what is compared.
    """

    module: Any
    inputs: Mapping[str, Any]
    states: Mapping[str, Any] | str = field(default_factory=dict)
    time_axis: int | None = None
    output_names: Sequence[str] | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        """Check that it is one of the two forms.

        Raises:
            ManifestError: It is neither, or both, or something in it is of another kind than it has to be.
        """
        states = {} if isinstance(self.states, str) and self.states == BUFFERS else self.states
        for what, given in (("inputs", self.inputs), ("states", states)):
            if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
                raise ManifestError(
                    f"StepSpec's {what} are {_kind(given)}; expected a dict of examples by name.",
                    fix=f'Give `{what}={{"{what[0]}": example}}`, in the order of `forward`.',
                )
        names = self.output_names
        is_list = isinstance(names, Sequence) and not isinstance(names, str)
        if names is not None and not (is_list and all(isinstance(name, str) and name for name in names)):
            raise ManifestError(
                f"StepSpec's output_names are {names!r}; expected a list of names.", fix='Give `output_names=["y"]`.'
            )
        if self.time_axis is not None and type(self.time_axis) is not int:
            raise ManifestError(
                f"StepSpec's time_axis is {self.time_axis!r}; expected a whole number.",
                fix="Give `time_axis=1` for `(batch, timesteps, features)`.",
            )
        if self.length is not None and (type(self.length) is not int or self.length < 1 or self.time_axis is None):
            raise ManifestError(
                f"StepSpec's length is {self.length!r}; expected a number of timesteps, with a `time_axis`.",
                fix="Give the number of timesteps that the module was trained with, or leave it out.",
            )
        if not self.inputs:
            raise ManifestError("StepSpec has no inputs; expected at least one.", fix="Give `inputs={name: example}`.")
        if bool(self.states) == (self.time_axis is not None):
            described = "both states and a time_axis" if self.states else "neither states nor a time_axis"
            raise ManifestError(
                f"StepSpec has {described}; expected one of them.",
                fix="Give `states` for a module that takes them, `time_axis` for one over whole sequences, or "
                '`states="buffers"` for one that keeps them in buffers.',
            )


def _kind(given: object) -> str:
    if isinstance(given, Mapping):
        return f"named {list(given)}"
    return f"of type {type(given).__name__}"
