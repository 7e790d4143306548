"""`Overrides`: a person's declarations of what cannot be read from a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from stepwell_export.adoption.axes import Declared
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Manifest

Kind = Literal["value", "random", "ignore"]


class Overrides(BaseModel, frozen=True):
    """What a graph does not declare itself, as a person sets it: the arguments of `adopt_file` of these names.

    A number may also be a text, an axis an integer of NumPy.
    """

    states: Mapping[str, str] = {}
    constants: Mapping[str, Any] = {}
    outputs: Mapping[str, Kind] = {}
    windows: Mapping[str, Annotated[int, Field(ge=1)]] = {}
    shapes: Mapping[str, Sequence[Annotated[int, Field(ge=1)]]] = {}
    batch_axes: Mapping[str, Annotated[int, Field(ge=0)] | None] = {}
    time_axes: Mapping[str, Annotated[int, Field(ge=0)] | None] = {}
    initial: Mapping[str, Any] = {}

    def check(self, declared: Sequence[Declared], outputs: Sequence[str]) -> None:
        """Check the declarations against the inputs and the names of the outputs that a graph has.

        Raises:
            UnclearModelError: A name or an axis is not there, or two declarations contradict each other.
        """
        inputs = [tensor.name for tensor in declared]
        for flag, names, known in (
            ("--state", self.states.keys(), inputs),
            ("--state", self.states.values(), outputs),
            ("--constant", self.constants, inputs),
            ("--window", self.windows, inputs),
            ("--batch-axis", self.batch_axes, inputs),
            ("--time-axis", self.time_axes, inputs),
            ("--output", self.outputs, outputs),
            ("--shape", self.shapes, [*inputs, *outputs]),
        ):
            for name in names:
                if name not in known:
                    raise UnclearModelError(
                        f"`{flag}` names {name!r}; the graph has {list(known)}.", fix="Use a name that the graph has."
                    )
        followers = list(self.states.values())
        for before, after in self.states.items():
            if followers.count(after) > 1:
                raise UnclearModelError(
                    f"`--state` names {after!r} as the next value of {followers.count(after)} states, {before!r} among "
                    "them; expected one.",
                    fix="Name an output of its own for each state.",
                )
        for name in self.constants:
            if name in self.states or name in self.windows:
                raise UnclearModelError(
                    f"{name!r} is said to be a constant and to change.", fix="Leave out one of the two flags."
                )
        for tensor in declared:
            self._check_axes(tensor)

    def _check_axes(self, tensor: Declared) -> None:
        batch, time = self.batch_axes.get(tensor.name), self.time_axes.get(tensor.name)
        for flag, axis, length in (("--batch-axis", batch, None), ("--time-axis", time, 1)):
            if axis is None:
                continue
            if not 0 <= axis < len(tensor.dims):
                raise UnclearModelError(
                    f"`{flag} {tensor.name}={axis}`: the input has {len(tensor.dims)} axes.",
                    fix="Axes are counted from 0.",
                )
            if length is not None and isinstance(tensor.dims[axis], int) and tensor.dims[axis] != length:
                raise UnclearModelError(
                    f"`{flag} {tensor.name}={axis}`: that axis is declared {tensor.dims[axis]} long; expected one "
                    "timestep, or an open length.",
                    fix="A graph over whole sequences goes through `stepwell export`.",
                )
        if batch is not None and batch == time:
            raise UnclearModelError(
                f"Axis {batch} of {tensor.name!r} is said to be both the batch and time.",
                fix="Leave out one of the two flags.",
            )


def write_flags(manifest: Manifest, inputs: Sequence[Declared], hints: Overrides) -> list[str]:
    """Return the command line's words for all that was found and is not plain from the declarations.

    Initial states are left out: those in the file are found again, and those from another file are named by it.
    """
    plain = {tensor.name for tensor in inputs if all(isinstance(dim, int) for dim in tensor.dims[1:])}
    sized = [i for i in manifest.inputs if i.name not in plain or i.name in hints.shapes]
    flags = [
        *(("--state", f"{state.input}={state.output}") for state in manifest.states),
        *(("--constant", f"{name}={json.dumps(spec.value)}") for name, spec in manifest.constants.items()),
        *(("--window", f"{window.input}={window.context}") for window in manifest.windows),
        *(("--shape", f"{spec.name}={'x'.join(map(str, spec.shape))}") for spec in sized),
        *(("--batch-axis", f"{name}={_axis(axis)}") for name, axis in hints.batch_axes.items()),
        *(("--time-axis", f"{name}={_axis(axis)}") for name, axis in hints.time_axes.items()),
        *(("--output", f"{output.name}={output.kind}") for output in manifest.outputs if output.kind != "value"),
    ]
    return [word for flag in flags for word in flag]


def _axis(axis: int | None) -> str:
    return "none" if axis is None else str(axis)
