"""`Sequences`: a module over whole sequences, with batch and time brought to the front of all it takes and gives.

Where they are in it is found by running it: what changes with the number of sequences is the batch axis, and what
changes with the number of timesteps is the time axis.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.capture import Capture
from stepwell_export.torch.cells import in_order, refuse_packed
from stepwell_export.torch.checks import check_behaviour, hooked, run
from stepwell_export.torch.examples import ExampleInput, ExampleSampler, tensors
from stepwell_export.torch.naming import flatten, numpy_dtype

ROWS = 3
LENGTHS = (11, 13)
"""Timesteps that a module is run with, to see what follows them."""

DOUBLED = 40
"""Timesteps that a scan in log2(T) rounds needs more rounds for."""

_OWN_OPERATOR = re.compile(r"torch\.ops\.(?!aten\.|prim\.)\w+\.\w+")

LONGER = 17
"""At least so many, or as many as the example has, for a module that takes no sequence as short as those."""


Seen = Mapping[str, set[int]]
"""By the path of a recurrent layer or an attention: the lengths that it ran over."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a module.

    Attributes:
        path: Where it stands in what the module returns.
        batch: Its batch axis.
        time: Its time axis; None: one answer for a whole sequence.
        rank: Its number of axes.
        folded: Batch and time are one axis, the first.
    """

    path: str
    batch: int
    time: int | None
    rank: int
    folded: bool = False

    @property
    def called(self) -> str:
        """How a message calls it."""
        return f"Output {self.path!r}" if self.path else "The output"

    def from_module(self, value: torch.Tensor, steps: int) -> torch.Tensor:
        """Bring an output to `(batch, T, *row)`, or `(batch, *row)` where it has no time."""
        if self.time is None:
            return value.movedim(self.batch, 0)
        if self.folded:
            lead = (-1, steps) if self.batch == 0 else (steps, -1)
            value = value.reshape(*lead, *map(int, value.shape[1:]))  # numbers, also while it is traced
        return value.movedim((self.batch, self.time), (0, 1))


class Sequences:
    """Runs a module on whole sequences.

    Attributes:
        module: The module.
        inputs: What it takes.
        outputs: What it gives.
        draw: Sequences that it takes.
        lengths: Two numbers of timesteps that it takes, the shorter first.
        largest: By a number of timesteps, how many numbers the largest tensor has in a run over so many.
        is_complex: Whether the module computes with complex numbers.
        read_of_sizes: The first line that reads, in Python, a tensor made of the number of timesteps; None: none does.
        loops: Whether the module does more operations for more timesteps: a loop over them in its own code.
    """

    def __init__(self, module: Any, examples: Mapping[str, Any], time_axis: int) -> None:
        """Find out by running the module where batch and time are.

        Raises:
            RefusedModelError: It does not run, takes one number of sequences only, does not give one answer per
                timestep or sequence, or has a layer that looks ahead.
        """
        self.module = module
        given = tensors(examples)
        readings = _readings(given, time_axis)
        ids = self._look(list(given.values()))
        self.loops = self.is_complex = False
        self.read_of_sizes: str | None = None
        self._reads: Mapping[Any, str] | None = None
        self.largest: dict[int, int] = {}
        runs = self._settle(given, readings, ids)
        shapes = zip(*(shapes for shapes, _ in runs), strict=True)
        self.outputs = [self._output(path, one, longer, fewer) for (path, one), (_, longer), (_, fewer) in shapes]
        self._check_layers([seen for _, seen in runs])
        self._check()

    def __call__(self, sequences: Sequence[torch.Tensor], *, module: Any = None) -> list[torch.Tensor]:
        """Run whole sequences.

        Args:
            sequences: One per input, shape `(batch, T, *row)`.
            module: A copy of the module in another precision; the module itself by default.

        Returns:
            One per output, shape `(batch, T, *row)`, or `(batch, *row)` where there is one answer a sequence.
        """
        steps = next(value.shape[1] for one, value in zip(self.inputs, sequences, strict=True) if one.time is not None)
        values = [one.to_module(value) for one, value in zip(self.inputs, sequences, strict=True)]
        found = self.run(values, module=module, is_eager=True)
        return [one.from_module(value, steps) for one, (_, value) in zip(self.outputs, found, strict=True)]

    # ---------------------------------------------------------------- finding out

    def _look(self, given: list[torch.Tensor]) -> dict[int, int]:
        """Run the example as it is; return the embedding rows of each input that is looked up."""
        ids: dict[int, int] = {}

        def see(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = in_order(layer, args, kwargs)[0]
            for at, one in enumerate(given):
                if one.numel() == value.numel() and torch.equal(_sorted(one), _sorted(value)):
                    ids[at] = layer.num_embeddings

        with hooked(self.module, nn.Embedding, see), hooked(self.module, nn.RNNBase, refuse_packed):
            check_behaviour(self.module, lambda: self.run(given, doing="on its examples"))
        return ids

    def run(
        self,
        values: Sequence[torch.Tensor],
        *,
        doing: str = "on whole sequences",
        module: Any = None,
        is_eager: bool = False,
    ) -> list[tuple[str, torch.Tensor]]:
        """Run the module in its own axes, as `checks.run` does; return its outputs with their paths.

        The module has copies of the values, since it may change them in place.
        """
        copies = [value.clone() for value in values]
        return flatten(run(module or self.module, copies, doing=doing, is_eager=is_eager))

    def mixed_output(self) -> Output | None:
        """Return an output that changes for a sequence with the other sequences of its batch; None: there is none."""
        sequences = self.draw.tensors(0, ROWS, self.lengths[0])
        others = [value.clone() for value in self.draw.tensors(1, ROWS, self.lengths[0])]
        for value, other in zip(sequences, others, strict=True):
            other[0] = value[0]
        pairs = zip(self.outputs, self(sequences), self(others), strict=True)
        return next((one for one, found, again in pairs if not _are_near(found[0], again[0])), None)

    def _settle(
        self, given: Mapping[str, torch.Tensor], readings: Sequence[Mapping[str, int]], ids: Mapping[int, int]
    ) -> list[tuple[list[tuple[str, torch.Size]], Seen]]:
        """Run three sequences of two lengths, and two of one; few timesteps before more than the example's own.

        Returns:
            For each run the outputs' paths and shapes, and what the layers over an axis ran over.
        """
        first_error: RefusedModelError | None = None
        only: int | None = None
        for is_long, axes, from_examples in itertools.product((False, True), readings, (False, True)):
            steps = next(given[name].shape[axis] for name, axis in axes.items())
            longer = max(steps, LONGER)
            self.lengths = (longer, longer + 2) if is_long else LENGTHS
            self.inputs = [
                _input(name, value, axes.get(name), ids.get(at)) for at, (name, value) in enumerate(given.items())
            ]
            still = [one.name for one in self.inputs if one.time is None]
            self.draw = ExampleSampler(self.inputs, from_examples=from_examples, constant=still)
            short, long = self.lengths
            try:
                return [self._watched(*size) for size in ((ROWS, short), (ROWS, long), (2, short))]
            except RefusedModelError as exc:
                first_error = first_error or exc
            if is_long and only is None and self._takes(steps):
                only = steps
        assert first_error is not None
        if only is not None:
            raise RefusedModelError(
                f"The module takes sequences of {only} timesteps alone.",
                fix=f"If it flattens them, let it take the last {only} of any number: x[:, -{only}:]. Else let it take "
                "the number from its input, and so many rows of what it has for each timestep: table[: x.shape[1]].",
            ) from first_error
        raise RefusedModelError(
            f"The module takes its examples, but no {ROWS} sequences drawn like them. {first_error.problem}",
            fix="Build it for any number of sequences: take the batch size from the input, x.shape[0].",
        ) from first_error

    def _takes(self, steps: int) -> bool:
        """Whether the module runs over sequences of so many timesteps."""
        try:
            self.run(self.drawn(ROWS, steps))
        except RefusedModelError:
            return False
        return True

    def _watched(self, rows: int, steps: int) -> tuple[list[tuple[str, torch.Size]], Seen]:
        """Return the outputs' paths and shapes, and for each layer over an axis the lengths that it ran over."""
        seen = defaultdict[str, set[int]](set)
        paths = {id(layer): path for path, layer in self.module.named_modules()}

        def see(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shape = in_order(layer, args, kwargs)[0].shape
            if len(shape) == 3:
                seen[paths[id(layer)]].add(shape[layer.batch_first])

        with hooked(self.module, (nn.RNNBase, nn.MultiheadAttention), see):
            found = self.run(self.drawn(rows, steps))
        return [(path, value.shape) for path, value in found], seen

    def _output(self, path: str, one: torch.Size, longer: torch.Size, fewer: torch.Size) -> Output:
        steps, more = self.lengths
        what = f"Output {path!r}" if path else "The output"
        if not len(one) == len(longer) == len(fewer):
            raise RefusedModelError(f"{what} has a number of axes that changes.", fix="Return one fixed rank.")
        if (one[:1], longer[:1], fewer[:1]) == ((ROWS * steps,), (ROWS * more,), (2 * steps,)):
            batch = self._lead.batch
            return Output(path, batch, 1 - batch, len(one), folded=True)
        batches = [axis for axis in range(len(one)) if one[axis] != fewer[axis]]
        if len(batches) != 1 or (one[batches[0]], fewer[batches[0]]) != (ROWS, 2):
            raise RefusedModelError(
                f"{what} has shape {list(one)} for {ROWS} sequences and {list(fewer)} for 2; expected a batch axis.",
                fix="Return one answer per sequence; compute losses and means over the batch outside.",
            )
        batch = batches[0]
        times = [axis for axis in range(len(one)) if one[axis] != longer[axis]]
        if times and (len(times) > 1 or (one[times[0]], longer[times[0]]) != (steps, more)):
            raise RefusedModelError(
                f"{what} has shape {list(one)} for {steps} timesteps and {list(longer)} for {more}; expected one "
                "answer per timestep, or one per sequence.",
                fix="Pad convolutions on the left so that no timestep is lost, and take none together.",
            )
        return Output(path, batch, times[0] if times else None, len(one))

    @property
    def _lead(self) -> ExampleInput:
        """The first input with a time axis."""
        return next(one for one in self.inputs if one.time is not None)

    def _check_layers(self, seen: list[Seen]) -> None:
        """Refuse layers that run over the batch.

        Raises:
            RefusedModelError: There is one.
        """
        for path, layer in self.module.named_modules():
            one, longer, fewer = (run.get(path, set()) for run in seen)
            if one == longer == {ROWS} and fewer == {2}:
                what = f"{path!r} ({type(layer).__name__})" if path else type(layer).__name__
                axis = self._lead.batch
                raise RefusedModelError(
                    f"{what} runs over the batch axis: it has batch_first={layer.batch_first}, and axis {axis} of the "
                    f"examples is read as the batch, axis {self._lead.time} as time.",
                    fix=f"If axis {axis} is time, give `time_axis={axis}`. If it is the batch, the layer was trained "
                    f"over it: build it with batch_first={not layer.batch_first}, and train it again.",
                )

    def _check(self) -> None:
        values = self.drawn(ROWS, self.lengths[0])
        alone = self.run(self.drawn(1, self.lengths[0]))
        for one, (_, value), (_, single) in zip(self.outputs, self.run(values), alone, strict=True):
            numpy_dtype(value, one.called)
            if single.dim() < one.rank:
                raise RefusedModelError(
                    f"{one.called} has shape {list(single.shape)} for one sequence and {list(value.shape)} for {ROWS}.",
                    fix="Say which axis goes, squeeze(-1): squeeze() alone takes a batch axis of 1 away, too.",
                )
        check_behaviour(self.module, lambda: self.run(values))
        operations = self._captured(self.lengths[0])
        self.loops = operations != self._captured(self.lengths[1])
        if not self.loops:
            try:
                self.run(self.drawn(ROWS, DOUBLED))
            except RefusedModelError:  # it may have a table of fewer positions
                return
            self.loops = operations != self._captured(DOUBLED)

    def _captured(self, steps: int) -> int:
        """Refuse what no trace shows; return how many operations the module does for so many timesteps."""
        values = self.drawn(ROWS, steps)
        self.run(values)  # what it makes for a length once, and keeps, is no loop
        capture = Capture()
        try:
            capture.run(self.module, values)
        except RefusedModelError as exc:
            if own := _OWN_OPERATOR.search(str(exc.__cause__)):
                raise RefusedModelError(
                    f"The module calls {own[0]}, an operator of its own, of which no graph can be made.",
                    fix="Write that part with operations of torch, or use a form of the layer that has these alone: as "
                    "one timestep with its states, StepSpec(.., states=..).",
                ) from exc
            raise
        self.largest[steps] = capture.largest
        self.is_complex |= capture.is_complex
        reads, self._reads = self._reads, capture.reads
        other = (line for made, line in capture.reads.items() if reads is not None and made not in reads)
        self.read_of_sizes = self.read_of_sizes or next(other, None)
        return capture.operations

    def drawn(self, rows: int, steps: int) -> list[torch.Tensor]:
        """Return sequences in the module's own axes."""
        drawn = self.draw.tensors(0, rows, steps)
        return [one.to_module(value) for one, value in zip(self.inputs, drawn, strict=True)]


def _are_near(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return bool(torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-4, equal_nan=True))


def _readings(given: Mapping[str, torch.Tensor], time_axis: int) -> list[dict[str, int]]:
    """Return what may be the time axis of each input that has one, the likeliest first.

    Inputs with time have it in the size of one of them on the given axis, and more axes than those without.
    Where a size is the number of timesteps by chance, a reading without it comes later.
    """
    places = {
        name: time_axis % value.dim()
        for name, value in given.items()
        if value.dim() >= 2 and -value.dim() <= time_axis < value.dim()
    }
    if not places:
        shapes = {name: list(value.shape) for name, value in given.items()}
        raise RefusedModelError(
            f"The inputs have shapes {shapes}, and time_axis is {time_axis}; expected a batch axis and that.",
            fix="Give an example (batch, timesteps, features) and time_axis=1.",
        )
    batch = 1 if 0 in places.values() else 0
    readings = []
    for steps in dict.fromkeys(given[n].shape[places[n]] for n in sorted(places, key=lambda n: -given[n].dim())):
        found = {name: _time_axis(value, places.get(name), steps, batch) for name, value in given.items()}
        timed = {name: axis for name, axis in found.items() if axis is not None}
        for still in range(len(timed)):
            readings += [
                {name: axis for name, axis in timed.items() if name not in left_out}
                for left_out in itertools.combinations(sorted(timed, key=lambda n: given[n].dim()), still)
            ]
    return readings


def _time_axis(value: torch.Tensor, given: int | None, steps: int, batch: int) -> int | None:
    """Return the axis of so many timesteps: the given one, else the last or another."""
    likely = [value.dim() - 1 if given is None else given, value.dim() - 1, 1, 0]
    return next((a for a in likely if a != batch and a < value.dim() and value.shape[a] == steps), None)


def _sorted(value: torch.Tensor) -> torch.Tensor:
    return value.double().flatten().sort().values


def _input(name: str, example: torch.Tensor, time: int | None, ids: int | None) -> ExampleInput:
    batch = 1 if time == 0 else 0
    front = example.movedim(batch, 0) if time is None else example.movedim((batch, time), (0, 1)).flatten(0, 1)
    blank = ExampleInput(name, tuple(front.shape[1:]), numpy_dtype(example, repr(name)), np.asarray(front), batch, time)
    return replace(blank, ids=ids)
