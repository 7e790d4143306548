"""`AutoStep`: a module over whole sequences as one that takes one timestep and its states.

The module itself runs, on sequences of one timestep; its recurrent layers take their state from outside instead of
beginning anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.axis_inference import ROWS, Sequences
from stepwell_export.torch.capture import Capture
from stepwell_export.torch.cells import CellCall, States, decomposed, patch_recurrent_layers
from stepwell_export.torch.checks import HOW_TO_WRITE_IT
from stepwell_export.torch.lengths import check_lengths, check_one_timestep
from stepwell_export.torch.sampling import STEPS_OF_AN_EXAMPLE
from stepwell_export.torch.timesteps import check_timesteps

STARTED = "started"
"""The state that shows whether a stream has begun, where the module computes an initial state from its inputs."""

_ATOL, _RTOL = 1e-4, 1e-3
"""How near the timesteps must come to whole sequences; the verification of an export is stricter."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a recurrent layer within a timestep.

    Attributes:
        path: The layer's path in the module.
        initial: What each state begins with, shape `(1, *row)`; a row is that of the layer, with an axis in front
            where the module folds another axis into the layer's batch, and without axes of one layer.
        inner: Rows of each state as the layer has them.
        outer: Rows of each state as the stream has them.
        computed: Whether the module computes the initial states from its inputs.
    """

    path: str
    initial: dict[str, Tensor]
    inner: tuple[tuple[int, ...], ...]
    outer: tuple[tuple[int, ...], ...]
    computed: bool


@dataclass(slots=True)
class _Feed:
    """The states of one timestep, on their way into the layers and out of them."""

    states: list[Tensor]
    started: Tensor | None
    calls: Iterator[_Call]
    after: list[Tensor] = field(default_factory=list)


class AutoStep(nn.Module):
    """Steps any module whose memory is in `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells, and `StepLayer`s.

    `forward(*inputs, *states)` takes one timestep `(batch, *row)` of every input, and returns the outputs and the
    next states. A state is named after its layer: `encoder.lstm.h`.

    Everything else in the module has to treat each timestep by itself.
    """

    def __init__(self, module: Any, *, time_axis: int = 1) -> None:
        """Wrap a module; it stays as it is.

        Args:
            module: A module over whole sequences.
            time_axis: Where its inputs have their time axis; the batch axis is 0, or 1 where time is 0.
        """
        super().__init__()
        self.module = module
        self._time_axis = time_axis
        self._whole: Sequences | None = None
        self._calls: list[_Call] = []

    def initial_states(self, *timestep: Tensor) -> dict[str, Tensor]:
        """Return every state's name and what a stream begins with, shape `(1, *row)`.

        Args:
            timestep: An example of each input, shape `(batch, *row)`; needed once.

        Raises:
            RefusedModelError: The module cannot be stepped, or its timesteps do not equal its sequences.
        """
        if self._whole is None:
            axes = (0 if self._time_axis else 1, self._time_axis)
            long = [torch.stack([value] * STEPS_OF_AN_EXAMPLE, 1).movedim((0, 1), axes) for value in timestep]
            names = [f"input_{at}" for at in range(len(long))]
            whole = Sequences(self.module, dict(zip(names, long, strict=True)), self._time_axis)
            if (numbers := check_lengths(whole, None)) is not None:
                numbers.check()
            self.learn(whole)
        states: dict[str, Tensor] = {}
        for at, call in enumerate(self._calls):
            again = [other.path for other in self._calls[:at]].count(call.path)
            parts = [*filter(None, [call.path]), *([f"call{again + 1}"] if again else [])]
            states |= {".".join([*parts, kind]): value for kind, value in call.initial.items()}
        if any(call.computed for call in self._calls):
            states[STARTED] = torch.zeros(1)
        return states

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Consume one timestep.

        Args:
            values: The inputs, then the states in the order of `initial_states`; shape `(batch, *row)` each.

        Returns:
            The outputs, shape `(batch, *row)`, then the next states.
        """
        if self._whole is None:
            raise RuntimeError("AutoStep needs an example first: call initial_states(*timestep).")
        count = len(self._whole.inputs)
        states = list(values[count:])
        started = states.pop() if any(call.computed for call in self._calls) else None
        feed = _Feed(states, started, iter(self._calls))
        outputs = self._run(self._whole, values[:count], partial(_fed, feed))
        return (*outputs, *feed.after, *([] if started is None else [torch.ones_like(started)]))

    # ---------------------------------------------------------------- within

    def learn(self, whole: Sequences) -> None:
        """Find every call of a recurrent layer, by two runs on different numbers.

        Args:
            whole: The module, with what is known of its axes.

        Raises:
            RefusedModelError: It takes no single timestep, or answers otherwise than for whole sequences.
        """
        both: list[list[CellCall]] = [[], []]
        for seed, seen in enumerate(both):
            timestep = [value[:, 0] for value in whole.draw.tensors(seed, ROWS, 1)]
            with torch.no_grad():
                self._run(whole, timestep, partial(_seen, seen))
        check_one_timestep(whole)
        depend = _depend_on_inputs(whole)
        calls = [_call(*found, depends=depends) for *found, depends in zip(*both, depend, strict=True)]
        if [call.path for call in calls] != check_timesteps(whole):
            raise RefusedModelError(
                "The module calls other recurrent layers for one timestep than for several.", fix=HOW_TO_WRITE_IT
            )
        self._calls, self._whole = calls, whole
        try:
            self._compare(whole)
        except RefusedModelError:
            self._whole = None  # it is refused again if it is used again
            raise

    def _compare(self, whole: Sequences) -> None:
        """Compare the answers of single timesteps with those of whole sequences."""
        values = whole.draw.tensors(2, ROWS, whole.lengths[0])
        states = [value.repeat_interleave(ROWS, 0) for value in self.initial_states().values()]
        steps = []
        for timestep in zip(*(value.unbind(1) for value in values), strict=True):
            answer = self(*timestep, *states)
            steps.append(answer[: len(whole.outputs)])
            states = list(answer[len(whole.outputs) :])
        for one, want, found in zip(whole.outputs, whole(values), zip(*steps, strict=True), strict=True):
            got = found[-1] if one.time is None else torch.stack(found, dim=1)
            is_near = got.shape == want.shape and torch.allclose(
                got.double(), want.double(), rtol=_RTOL, atol=_ATOL, equal_nan=True
            )
            if not is_near:
                raise RefusedModelError(
                    f"{one.called} depends on more of the past than the recurrent layers carry.", fix=HOW_TO_WRITE_IT
                )

    def _run(
        self, whole: Sequences, timestep: Sequence[Tensor], handle: Callable[[CellCall], tuple[Tensor, States]]
    ) -> list[Tensor]:
        """Run sequences of one timestep, with `handle` in the place of every recurrent layer over time."""
        with patch_recurrent_layers(self.module, handle):
            found = whole([value.unsqueeze(1) for value in timestep])
        return [
            value if one.time is None else value.select(1, 0) for one, value in zip(whole.outputs, found, strict=True)
        ]


def _depend_on_inputs(whole: Sequences) -> list[bool]:
    """Return for each call of a recurrent layer, at one timestep, whether the states that it gives follow from inputs.

    Raises:
        RefusedModelError: The module decides by a value, at one timestep.
    """
    capture, found = Capture(), list[bool]()

    def see(taken: CellCall) -> tuple[Tensor, States]:
        found.append(any(map(capture.depends, taken.states or ())))
        return decomposed(taken)

    values = [one.to_module(v) for one, v in zip(whole.inputs, whole.draw.tensors(0, ROWS, 1), strict=True)]
    with patch_recurrent_layers(whole.module, see):
        capture.run(whole.module, values)
    return found


def _seen(seen: list[CellCall], taken: CellCall) -> tuple[Tensor, States]:
    """Answer for a layer as it would by itself, and note what it was called with."""
    seen.append(taken)
    return decomposed(taken)


def _fed(feed: _Feed, taken: CellCall) -> tuple[Tensor, States]:
    """Answer for a layer from the states of the stream."""
    call = next(feed.calls)
    count = len(call.inner)
    states, feed.states = feed.states[:count], feed.states[count:]
    if call.computed and feed.started is not None:
        states = [
            torch.where(feed.started.reshape(-1, *[1] * len(row)) > 0, old, new.reshape(-1, *row))
            for old, new, row in zip(states, taken.begin(), call.outer, strict=True)
        ]
    inner = tuple(value.reshape(-1, *row) for value, row in zip(states, call.inner, strict=True))
    answer, after = taken.how.advance(taken.layer, taken.x, inner)
    feed.after += [value.reshape(-1, *row) for value, row in zip(after, call.outer, strict=True)]
    return answer, after


def _call(one: CellCall, other: CellCall, *, depends: bool) -> _Call:
    """Describe a call, seen twice with different numbers coming in.

    Args:
        one: The call.
        other: The same with other numbers.
        depends: Whether its states follow from an input.
    """
    rows = one.x.shape[0]  # streams, or a multiple where the module folds another axis into them
    fold = rows // ROWS
    if fold * ROWS != rows:
        raise RefusedModelError(
            f"{one.path!r} ({type(one.layer).__name__}) runs on {rows} rows for {ROWS} streams.",
            fix="Keep the streams apart: each must have rows of its own.",
        )
    begin = one.begin()
    outer = [value.reshape(ROWS, *_outer(fold, one.layer, value.shape[1:])) for value in begin]
    fixed = (
        not depends
        and all(map(torch.equal, begin, other.begin()))
        and all(torch.equal(value, value[:1].expand_as(value)) for value in outer)
    )
    initial = [value[:1].clone() if fixed else torch.zeros_like(value[:1]) for value in outer]
    kinds = one.how.initial(one.layer)
    inner, streams = (tuple(tuple(value.shape[1:]) for value in values) for values in (begin, outer))
    return _Call(one.path, dict(zip(kinds, initial, strict=True)), inner, streams, computed=not fixed)


def _outer(fold: int, layer: Any, row: Sequence[int]) -> tuple[int, ...]:
    one_layer = isinstance(layer, nn.RNNBase) and row[0] == 1
    return (*([fold] if fold > 1 else []), *(row[1:] if one_layer else row))
