"""`StepSpec`: how to step a PyTorch module, as `stepwell export package.module:callable` wants it returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_export.errors import ManifestError


@dataclass(frozen=True, slots=True)
class StepSpec:
    """A torch module with examples of what it takes.

    Either a module that takes and returns its states, `forward(*inputs, *states) -> (*outputs, *next_states)`:
    `StepSpec(module, inputs={"x": one timestep (B, ..)}, states={"h": initial (1, ..)})`;
    or one over whole sequences: `StepSpec(module, inputs={"x": example (B, T, ..)}, time_axis=1)`.

    Attributes:
        module: The `torch.nn.Module`; it is left as it is.
        inputs: An example by input name, in `forward`'s order. Of a whole-sequence module, inputs without time axis
            stay the same for a stream.
        states: The initial value by state name, in `forward`'s order; batch 1.
        time_axis: Where the first input of a whole-sequence module has its time axis; the batch axis is 0, or 1
            where time is 0.
        output_names: Names for the outputs, in order.
    """

    module: Any
    inputs: Mapping[str, Any]
    states: Mapping[str, Any] = field(default_factory=dict)
    time_axis: int | None = None
    output_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check that it is one of the two forms.

        Raises:
            ManifestError: It is neither, or both.
        """
        if not self.inputs:
            raise ManifestError("StepSpec has no inputs; expected at least one.", fix="Give `inputs={name: example}`.")
        if bool(self.states) == (self.time_axis is not None):
            found = "both states and a time_axis" if self.states else "neither states nor a time_axis"
            raise ManifestError(
                f"StepSpec has {found}; expected one of them.",
                fix="Give `states` for a module that takes them, `time_axis` for one over whole sequences.",
            )
