"""`export_step`: a module that takes and returns its states, as a step graph with its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepwell_export.converted import ConvertedModel
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array, Init, InputSpec, Manifest, OutputSpec, PackedTensor, StateSpec
from stepwell_export.torch.capture import Capture
from stepwell_export.torch.checks import check_behaviour, prepared, run
from stepwell_export.torch.examples import ExampleInput, ExampleSampler, tensors
from stepwell_export.torch.graph import PlainOutputs, trace_step
from stepwell_export.torch.naming import flatten, named, numpy_dtype
from stepwell_export.verify.decisions.torch import TorchObserver

ROWS = 3
AGAINST = f"torch {torch.__version__}"


@dataclass(frozen=True, slots=True)
class Step:
    """A module that takes one timestep and its states, and what is known of it.

    Attributes:
        module: `forward(*inputs, *states) -> (*outputs, *next_states)`, outputs nested as it likes.
        draw: Timesteps that it takes.
        inputs: What it takes.
        states: Initial values by name, with one row on their batch axis.
        axes: The batch axis of each state.
    """

    module: Any
    draw: ExampleSampler
    inputs: Sequence[ExampleInput]
    states: Mapping[str, Tensor]
    axes: Sequence[int]

    def initial(self, rows: int) -> list[Tensor]:
        """Return the states of so many new streams, in the module's own axes."""
        return [
            value.repeat_interleave(rows, axis) for value, axis in zip(self.states.values(), self.axes, strict=True)
        ]

    def example(self, rows: int) -> list[Tensor]:
        """Return one timestep and the initial states of so many streams."""
        return [value[:, 0] for value in self.draw.tensors(0, rows, 1)] + self.initial(rows)

    def run(self, values: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        """Consume one timestep as the user's module does; return outputs and next states with their paths.

        The module has copies of the values, since it may change its states in place.
        """
        copies = [value.clone() for value in values]
        return flatten(run(self.module, copies, doing="on one timestep", is_eager=True))

    def __call__(self, values: Sequence[Tensor]) -> tuple[list[tuple[str, Tensor]], list[Tensor]]:
        """Consume one timestep; return outputs with their paths, and the next states."""
        found = self.run(values)
        count = max(0, len(found) - len(self.states))
        return found[:count], [tensor for _, tensor in found[count:]]


def export_step(
    module: Any,
    inputs: Mapping[str, Any],
    states: Mapping[str, Any] | None = None,
    *,
    name: str = "model",
    output_names: Sequence[str] | None = None,
) -> ConvertedModel:
    """Make a step graph of a module that takes and returns its states; not yet proven.

    Args:
        module: `forward(*inputs, *states) -> (*outputs, *next_states)`.
        inputs: An example of one timestep by name, shape `(batch, *row)`, in the order of `forward`.
        states: The initial value by name, shape `(1, *row)`, in the order of `forward`; a batch axis of size 1 may
            also stand elsewhere.
        name: The model's name in its manifest.
        output_names: Names for the outputs, in order.

    Raises:
        RefusedModelError: The module cannot be exported; the message has the reason.
    """
    mine = prepared(module)
    given = tensors(inputs)
    begin = tensors(states or {}, may_be_empty=True)
    if both := given.keys() & begin.keys():
        raise RefusedModelError(
            f"{min(both)!r} names both an input and a state; expected one.",
            fix="Give each input and state its own name.",
        )
    step = run_to_fixed_point(mine, given, begin)
    takes = [one.name for one in step.inputs] + list(step.states)
    example = step.example(ROWS)
    outputs, _ = step(example)
    next_names = [f"{state}_next" for state in step.states]
    given_names = named([path for path, _ in outputs], output_names, [*takes, *next_names])
    axes = dict.fromkeys((one.name for one in step.inputs), 0) | dict(zip(step.states, step.axes, strict=True))
    proto = trace_step(
        PlainOutputs(step.module),
        example,
        axes,
        (takes, [*given_names, *next_names]),
        name=name,
    )
    answers = dict(zip(given_names, (value for _, value in outputs), strict=True))
    manifest = step_manifest(name, step.inputs, step.states, step.axes, answers)
    original = StepReference(step, given_names)
    return ConvertedModel(
        proto,
        manifest,
        original,
        AGAINST,
        samplers={step.draw.kind: step.draw},
        observer=original.observer,
        vocabularies=ids_of(step.inputs),
    )


def step_manifest(
    name: str,
    inputs: Sequence[ExampleInput],
    states: Mapping[str, Tensor],
    axes: Sequence[int | None],
    outputs: Mapping[str, Tensor],
) -> Manifest:
    """Return the manifest of a step graph.

    Args:
        name: The model's.
        inputs: What it takes.
        states: Initial values by name, of one stream.
        axes: The batch axis of each state; None: it has none.
        outputs: What it gives for one timestep by name, the batch axis first.
    """
    return Manifest(
        name=name,
        inputs=[InputSpec(name=one.name, dtype=one.dtype, shape=list(one.row)) for one in inputs],
        states=[_state(state, value, axis) for (state, value), axis in zip(states.items(), axes, strict=True)],
        outputs=[
            OutputSpec(name=output, dtype=numpy_dtype(value, repr(output)), shape=list(value.shape[1:]))
            for output, value in outputs.items()
        ],
    )


def ids_of(inputs: Sequence[ExampleInput]) -> dict[str, int]:
    """Return how many ids each input that is looked up in a table may have."""
    return {one.name: one.ids for one in inputs if one.ids}


class StepReference:
    """The module itself, timestep by timestep, as the original of a parity check."""

    def __init__(self, step: Step, names: Sequence[str]) -> None:
        self._step = step
        self._names = names

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return `{output: (batch, T, *row)}` for `{input: (batch, T, *row)}`."""
        rows, steps = next(iter(inputs.values())).shape[:2]
        states = self._step.initial(rows)
        answers: list[list[Tensor]] = []
        for t in range(steps):
            now = [torch.from_numpy(inputs[one.name][:, t]) for one in self._step.inputs]
            outputs, states = self._step([*now, *states])
            answers.append([value for _, value in outputs])
        columns = zip(*answers, strict=True)
        return {
            name: np.stack([np.asarray(value) for value in column], axis=1)
            for name, column in zip(self._names, columns, strict=True)
        }

    @property
    def observer(self) -> TorchObserver:
        """Records the decisions of the module."""

        def run(values: Sequence[Tensor]) -> None:
            states = self._step.initial(len(values[0]))
            for t in range(values[0].shape[1]):
                _, states = self._step([*(value[:, t] for value in values), *states])

        return TorchObserver(self._step.module, run, [one.name for one in self._step.inputs])


def run_to_fixed_point(module: Any, given: Mapping[str, Tensor], states: Mapping[str, Tensor]) -> Step:
    """Find out by running a module what it takes, and where its states have their batch axis.

    Raises:
        RefusedModelError: It does not run, does not return its states, or does more than answer.
    """
    for name, value in given.items():
        if not value.dim():
            raise RefusedModelError(f"Input {name!r} has no axes; expected a batch axis.", fix="Give (batch, ...).")
    inputs = [
        ExampleInput(name, tuple(value.shape[1:]), numpy_dtype(value, repr(name)), np.asarray(value))
        for name, value in given.items()
    ]
    first_error: RefusedModelError | None = None
    for axes in _axes(states):
        for from_examples in (False, True):
            step = Step(module, ExampleSampler(inputs, from_examples=from_examples), inputs, states, axes)
            try:
                _check(step)
            except RefusedModelError as exc:
                first_error = first_error or exc
            else:
                return step
    assert first_error is not None
    raise first_error


def _axes(states: Mapping[str, Tensor]) -> list[list[int]]:
    """Return where the batch axes may be: the first axis of size 1 of every state, or the second where it has one."""
    places = [[axis for axis, size in enumerate(value.shape) if size == 1] for value in states.values()]
    for (name, value), own in zip(states.items(), places, strict=True):
        if not own:
            raise RefusedModelError(
                f"State {name!r} has initial shape {list(value.shape)}; expected one row, with a batch axis of size 1.",
                fix="Give the initial value of one stream: torch.zeros(1, 32).",
            )
    options = [[own[0] for own in places], [own[min(1, len(own) - 1)] for own in places]]
    return options if options[0] != options[1] else options[:1]


def _check(step: Step) -> None:
    for rows in (2, ROWS):
        values = step.example(rows)
        outputs, after = step(values)
        _check_states(step, values[len(step.inputs) :], outputs, after)
        for path, value in outputs:
            if not value.dim() or value.shape[0] != rows:
                raise RefusedModelError(
                    f"Output {path!r} has shape {list(value.shape)} for {rows} rows; expected the batch axis first.",
                    fix="Return (batch, ...) for one timestep.",
                )

    check_behaviour(step.module, lambda: step.run(values))
    Capture().run(step.module, values)


def _check_states(step: Step, before: list[Tensor], outputs: list[Any], after: list[Tensor]) -> None:
    if not outputs:
        raise RefusedModelError(
            f"The module returns {len(after)} tensors; expected at least one output and the next value of each of "
            f"its {len(step.states)} states, {list(step.states)}.",
            fix="Return (*outputs, *next_states).",
        )
    for name, old, new in zip(step.states, before, after, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise RefusedModelError(
                f"State {name!r} comes back as {new.dtype} of {list(new.shape)}; expected {old.dtype} of "
                f"{list(old.shape)}, as it was given.",
                fix="Return every next state behind the outputs, in the order of `states`.",
            )


def _state(name: str, value: Tensor, axis: int | None) -> StateSpec:
    row = np.asarray(value if axis is None else value.squeeze(axis))
    dtype = numpy_dtype(value, f"State {name!r}")
    init: Init = PackedTensor.pack(row) if row.any() else "zeros"
    return StateSpec(input=name, output=f"{name}_next", dtype=dtype, shape=list(row.shape), batch_axis=axis, init=init)
