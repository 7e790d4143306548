"""One timestep of every recurrent layer: what it was called with, its next states, what it returns.

Torch's own functions run the timestep, so that its exporter makes operators of them, as chunks need them;
`stepwell_export.graph.decompose_rnn` writes them out for single steps. Projections are written out here: onnxruntime
refuses what torch makes of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.layers import StepLayer
from stepwell_export.torch.subclasses import Subclassed

States = tuple[Tensor, ...]
"""Shape `(rows, *row)` each, in the order of the layer's `initial`."""


@dataclass(frozen=True, slots=True)
class CellCall:
    """One timestep that a module has called a recurrent layer with.

    Attributes:
        path: The layer's path in the module.
        layer: The layer.
        how: How its kind takes a timestep.
        x: The timestep, shape `(rows, *row)`.
        states: The states that the call gives; None: the layer's own initial ones.
    """

    path: str
    layer: Any
    how: CellAdapter
    x: Tensor
    states: States | None

    def begin(self) -> States:
        """Return the states that the call gives, else the layer's own initial ones."""
        if self.states is not None:
            return self.states
        rows = self.x.shape[0]  # in a trace it is of any size
        return tuple(v.expand(rows, *v.shape[1:]) for v in self.how.initial(self.layer).values())


class CellAdapter(Protocol):
    """How one kind of layer takes a single timestep."""

    def initial(self, layer: Any) -> dict[str, Tensor]:
        """Return what the layer's states begin with unless the call sets it, shape `(1, *row)`."""
        ...

    def take(self, layer: Any, x: Tensor, hx: Any = None) -> tuple[Tensor, States | None] | None:
        """Return the timestep, shape `(rows, *row)`, and the states that a call gives; None: not one timestep."""
        ...

    def advance(self, layer: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Return the layer's answer to a timestep, and its next states."""
        ...

    def give(self, layer: Any, answer: Tensor, states: States) -> Any:
        """Return what the layer's `forward` would."""
        ...


class _Layers:
    """`nn.LSTM`, `nn.GRU`, `nn.RNN`: some layers in one module, `(layers, width)` a state."""

    def initial(self, layer: Any) -> dict[str, Tensor]:
        like, deep = layer.weight_hh_l0, layer.num_layers
        h = like.new_zeros(1, deep, layer.proj_size or layer.hidden_size)
        return {"h": h, "c": like.new_zeros(1, deep, layer.hidden_size)} if isinstance(layer, nn.LSTM) else {"h": h}

    def take(self, layer: Any, x: Tensor, hx: Any = None) -> tuple[Tensor, States | None] | None:
        axis = int(layer.batch_first)
        if x.dim() != 3 or x.shape[axis] != 1 or layer.bidirectional:
            return None
        given = hx if hx is None or isinstance(hx, tuple | list) else (hx,)
        return x.select(axis, 0), None if given is None else tuple(state.transpose(0, 1) for state in given)

    def advance(self, layer: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        after = []
        for k, weights in enumerate(layer.all_weights):
            given = [state[:, k] for state in states]
            now = _projected(layer, x, given, weights) if layer.proj_size else _run(layer.mode, x, given, weights)
            after.append(now)
            x = now[0]
        return x, tuple(torch.stack(parts, dim=1) for parts in zip(*after, strict=True))

    def give(self, layer: Any, answer: Tensor, states: States) -> Any:
        last = tuple(state.transpose(0, 1).contiguous() for state in states)  # as torch's own, for `h.view`
        return answer.unsqueeze(int(layer.batch_first)), last if isinstance(layer, nn.LSTM) else last[0]


_MODES: dict[Any, str] = {nn.LSTMCell.forward: "lstm", nn.GRUCell.forward: "gru", nn.RNNCell.forward: ""}
"""Torch's function for whole sequences, by the method for one timestep; RNNs have one for each nonlinearity."""


class _Cell:
    """`nn.LSTMCell`, `nn.GRUCell`, `nn.RNNCell` in a loop of the user's."""

    def initial(self, layer: Any) -> dict[str, Tensor]:
        zeros = layer.weight_hh.new_zeros(1, layer.hidden_size)
        return {"h": zeros, "c": zeros} if isinstance(layer, nn.LSTMCell) else {"h": zeros}

    def take(self, layer: Any, x: Tensor, hx: Any = None) -> tuple[Tensor, States | None] | None:
        if x.dim() != 2:
            return None
        return x, hx if hx is None else tuple(hx) if isinstance(layer, nn.LSTMCell) else (hx,)

    def advance(self, layer: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        forward = type(layer).forward
        if forward in _MODES:
            biases = [layer.bias_ih, layer.bias_hh] if layer.bias else []
            mode = _MODES[forward] or f"rnn_{layer.nonlinearity}"
            after = _run(mode, x, states, [layer.weight_ih, layer.weight_hh, *biases])
        else:  # of the user's own
            found = forward(layer, x, states if isinstance(layer, nn.LSTMCell) else states[0])
            after = tuple(found) if isinstance(layer, nn.LSTMCell) else (found,)
        return after[0], after

    def give(self, layer: Any, answer: Tensor, states: States) -> Any:
        return states if isinstance(layer, nn.LSTMCell) else answer


class _Own:
    """A `StepLayer`."""

    def initial(self, layer: Any) -> dict[str, Tensor]:
        return dict(layer.initial_states())

    def take(self, layer: Any, x: Tensor, hx: Any = None) -> tuple[Tensor, States | None] | None:
        return (x.select(layer.time_axis, 0), None) if x.shape[layer.time_axis] == 1 else None

    def advance(self, layer: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        answer, *after = layer.step(x, *states)
        return answer, tuple(after)

    def give(self, layer: Any, answer: Tensor, states: States) -> Any:
        return answer.unsqueeze(layer.time_axis)


@contextmanager
def patch_recurrent_layers(module: Any, handle: Callable[[CellCall], tuple[Tensor, States]]) -> Iterator[None]:
    """Let `handle` answer for every recurrent layer that is called with one timestep, as `CellAdapter.advance` does.

    Args:
        module: Whose layers; parts of a `StepLayer` are its own affair.
        handle: Returns a layer's answer and next states.
    """
    own = tuple(f"{path}." for path, part in module.named_modules() if isinstance(part, StepLayer))
    layers = [
        (layer, vars(layer).get("forward"), partial(_answer, handle, how, path, layer))
        for path, layer in module.named_modules()
        if (how := stepping(layer)) and not path.startswith(own)
    ]
    for layer, _, forward in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, before, _ in layers:
            if before is None:
                del layer.forward
            else:
                layer.forward = before


def in_order(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return what a layer is called with, in the order of its `forward`; arguments by name may come in any other."""
    bound = inspect.signature(type(layer).forward).bind(layer, *args, **kwargs)
    return [*bound.args[1:], *bound.kwargs.values()]


def decomposed(taken: CellCall) -> tuple[Tensor, States]:
    """Answer for a layer as it would by itself, with the states that the call gives."""
    return taken.how.advance(taken.layer, taken.x, taken.begin())


def stepping(layer: Any) -> CellAdapter | None:
    """Return how a layer takes a single timestep; None for one that has no state."""
    if isinstance(layer, Subclassed):
        return None
    kinds: list[tuple[type, CellAdapter]] = [(nn.RNNBase, _Layers()), (nn.RNNCellBase, _Cell()), (StepLayer, _Own())]
    return next((how for kind, how in kinds if isinstance(layer, kind)), None)


def _answer(
    handle: Callable[[CellCall], tuple[Tensor, States]],
    how: CellAdapter,
    path: str,
    layer: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    given = how.take(layer, *in_order(layer, args, kwargs))  # not by name: torch's own for the first is `input`
    if given is None:
        return type(layer).forward(layer, *args, **kwargs)
    answer, after = handle(CellCall(path, layer, how, *given))
    return how.give(layer, answer, after)


def _run(mode: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> States:
    """Return the next states of one layer by torch's own function, of which an exporter makes one operator.

    Onnxruntime has the operators in float32 alone; other numbers go by torch's function for one timestep.
    """
    kind = mode.lower()
    if x.dtype != torch.float32:
        found = getattr(torch, f"{kind}_cell")(x, states if len(states) > 1 else states[0], *weights)
        return found if isinstance(found, tuple) else (found,)
    given = [state.unsqueeze(0) for state in states]
    first = given if len(given) > 1 else given[0]
    has_biases = len(weights) > 2
    _, *after = getattr(torch, kind)(x.unsqueeze(0), first, list(weights), has_biases, 1, 0.0, False, False, False)
    return tuple(state.squeeze(0) for state in after)


def _projected(layer: Any, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> States:
    """Return the next states of a layer of an `nn.LSTM` with projections, which ONNX's operator does not have.

    Source: torch.nn.LSTM; gates in the order i, f, g, o.
    """
    w_ih, w_hh, *biases, w_hr = weights
    b_ih, b_hh = biases or (None, None)
    gates = nn.functional.linear(x, w_ih, b_ih) + nn.functional.linear(states[0], w_hh, b_hh)
    i, f, g, o = gates.split(layer.hidden_size, dim=-1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return nn.functional.linear(torch.sigmoid(o) * torch.tanh(c), w_hr), c


def refuse_packed(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a recurrent layer that is given a packed sequence.

    Raises:
        RefusedModelError: It is.
    """
    if isinstance(in_order(layer, args, kwargs)[0], nn.utils.rnn.PackedSequence):
        raise RefusedModelError(
            f"{type(layer).__name__} is given a packed sequence; expected a tensor of all timesteps.",
            fix="A stream is never padded, so it needs no lengths: for the export, leave pack_padded_sequence, "
            "pad_packed_sequence and an input of lengths out of `forward`. The weights stay as they are, and so do the "
            "outputs at all timesteps that are no padding.",
        )
