"""Recurrent layers timestep by timestep: what each is called with, its next states, what it returns.

Torch's own functions run the timestep, so that its exporter makes operators of them, as chunks need them;
`stepwell_export.graph.decompose_rnn` writes them out for single steps. Projections are written out here: onnxruntime
refuses what torch makes of them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stepwell_export.patched import patched
from stepwell_export.runtime.errors import RefusedModelError

_CELLS: dict[Any, str] = {nn.LSTMCell.forward: "lstm", nn.GRUCell.forward: "gru", nn.RNNCell.forward: "rnn"}
"""Torch's function for whole sequences, by the method for one timestep."""


@contextmanager
def layers_written_out(module: Any) -> Iterator[None]:
    """Let layers compute timestep by timestep: those that are called with one, and those without an operator."""
    pairs = ((layer, _by_timesteps(layer)) for layer in module.modules())
    with patched(*((layer, "forward", partial(how, layer)) for layer, how in pairs if how is not None)):
        yield


def _by_timesteps(layer: Any) -> Callable[..., Any] | None:
    """Return what computes a layer timestep by timestep; None for one that has no state, or a `forward` of its own."""
    if isinstance(layer, nn.RNNBase) and not isinstance(layer, Subclassed):
        return _run_layers
    return _run_cell if isinstance(layer, nn.RNNCellBase) and type(layer).forward in _CELLS else None


def _run_layers(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an `nn.LSTM`, `nn.GRU` or `nn.RNN`."""
    x, *rest = in_order(layer, args, kwargs)  # not by name: torch's own for the first is `input`
    hx, axis, lacks_operator = rest[0] if rest else None, int(layer.batch_first), has_no_operator(layer)
    if x.dim() != 3 or layer.bidirectional or not (x.shape[axis] == 1 or lacks_operator):
        return type(layer).forward(layer, x, *rest)
    is_lstm = isinstance(layer, nn.LSTM)
    if hx is None:
        widths = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 1 + is_lstm]
        zeros = [layer.weight_hh_l0.new_zeros(1, layer.num_layers, width) for width in widths]
        rows = x.shape[1 - axis]  # in a trace it is of any size; a timestep's is not, in a loop
        states = [value.expand(rows, *value.shape[1:]) for value in zeros]
    else:
        states = [state.transpose(0, 1) for state in (hx if isinstance(hx, tuple | list) else (hx,))]
    weights = [_joined(layer.mode, own) if lacks_operator else own for own in layer.all_weights]
    run, answers = _run_joined if lacks_operator else _run, []
    for t in range(x.shape[axis]):  # no `unbind`: what is cut into so many has no other length
        now, after = x.select(axis, t), []
        for k, own in enumerate(weights):
            after.append(run(layer.mode.lower(), now, [state[:, k] for state in states], own))
            now = after[-1][0]
        answers.append(now)
        states = [torch.stack(parts, dim=1) for parts in zip(*after, strict=True)]
    answer = now.unsqueeze(axis) if len(answers) == 1 else torch.stack(answers, axis)
    last = tuple(state.transpose(0, 1).contiguous() for state in states)  # as torch's own, for `h.view`
    return answer, last if is_lstm else last[0]


def _run_cell(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell`."""
    x, *rest = in_order(layer, args, kwargs)
    if x.dim() != 2:
        return type(layer).forward(layer, x, *rest)
    kind, hx = _CELLS[type(layer).forward], rest[0] if rest else None
    if hx is None:
        zeros = layer.weight_hh.new_zeros(1, layer.hidden_size).expand(x.shape[0], layer.hidden_size)
        hx = (zeros, zeros) if kind == "lstm" else zeros
    biases = [layer.bias_ih, layer.bias_hh] if layer.bias else []
    mode = f"rnn_{layer.nonlinearity}" if kind == "rnn" else kind
    after = _run(mode, x, tuple(hx) if kind == "lstm" else (hx,), [layer.weight_ih, layer.weight_hh, *biases])
    return after if kind == "lstm" else after[0]


def has_no_operator(layer: Any) -> bool:
    """Whether onnxruntime has no operator for a layer over whole sequences, as with projections, and in float64."""
    return isinstance(layer, nn.RNNBase) and bool(
        layer.proj_size or any(weight.dtype != torch.float32 for weight in layer.parameters())
    )


def in_order(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return what a layer is called with, in the order of its `forward`; arguments by name may come in any other."""
    bound = inspect.signature(type(layer).forward).bind(layer, *args, **kwargs)
    return [*bound.args[1:], *bound.kwargs.values()]


def _run(kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the next states of one layer by torch's own function, of which an exporter makes one operator.

    Onnxruntime has the operators in float32 alone; other numbers go by torch's function for one timestep.
    """
    if x.dtype != torch.float32:
        found = getattr(torch, f"{kind}_cell")(x, states if len(states) > 1 else states[0], *weights)
        return found if isinstance(found, tuple) else (found,)
    given = [state.unsqueeze(0) for state in states]
    first = given if len(given) > 1 else given[0]
    has_biases = len(weights) > 2
    _, *after = getattr(torch, kind)(x.unsqueeze(0), first, list(weights), has_biases, 1, 0.0, False, False, False)
    return tuple(state.squeeze(0) for state in after)


def _joined(mode: str, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return weights and bias of one product of input and state, and the projection.

    Of a GRU, the product gives the new values' parts of the input and of the state apart.
    """
    w_ih, w_hh, *others = weights
    projection = others.pop() if len(others) % 2 else None
    if mode != "GRU":
        return torch.cat([w_ih, w_hh], 1), others[0] + others[1] if others else None, projection
    gates, of_input, of_state = 2 * w_ih.shape[0] // 3, torch.zeros_like(w_ih), torch.zeros_like(w_hh)
    weight = torch.cat([
        torch.cat([w_ih[:gates], w_hh[:gates]], 1),
        torch.cat([w_ih[gates:], of_state[gates:]], 1),
        torch.cat([of_input[gates:], w_hh[gates:]], 1),
    ])  # fmt: skip
    bias = torch.cat([others[0][:gates] + others[1][:gates], *(one[gates:] for one in others)]) if others else None
    return weight, bias, projection


def _run_joined(kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the next states of one layer by `_joined`: a loop over timesteps then carries its states alone.

    Source: torch.nn.LSTM, GRU, RNN; gates in the order i, f, g, o and r, z, n.
    """
    weight, bias, projection = weights
    product, h = nn.functional.linear(torch.cat([x, states[0]], -1), weight, bias), states[0]
    if kind == "gru":
        r, z, n, of_state = product.chunk(4, dim=-1)
        n = torch.tanh(n + torch.sigmoid(r) * of_state)
        return (n + torch.sigmoid(z) * (h - n),)
    if kind != "lstm":
        return (torch.tanh(product) if kind == "rnn_tanh" else torch.relu(product),)
    i, f, g, o = product.chunk(4, dim=-1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if projection is None else nn.functional.linear(h, projection)), c


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


# ---------------------------------------------------------------- subclasses

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


class Subclassed:
    """What marks a layer whose `super().forward` is its module `rnn`."""


def with_layers_of_torch(module: nn.Module) -> None:
    """Let each subclass in a module call a layer of torch's own, which shares its weights; the module is changed.

    A subclass may take other arguments, or compute before and after `super().forward(..)`: that runs as it is written,
    and only what `super().forward` stands for has a state.
    """
    for part in list(module.modules()):
        kind = next((kind for kind in _KINDS if isinstance(part, kind)), None)
        if kind is None or type(part).forward is kind.forward or isinstance(part, Subclassed):
            continue
        own = kind.__new__(kind)
        own.__dict__.update(copy.copy(vars(part)) | {"_modules": {}})
        try:
            part.__class__ = _subclassed(type(part), kind)
        except TypeError:  # with other bases besides; it is stepped as its kind then
            continue
        part.add_module("rnn", own)


def _subclassed(cls: Any, kind: Any) -> Any:
    """Return a class in which `super().forward` of `cls` calls the module `rnn`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rnn(*args, **kwargs)

    between = type(kind.__name__, (Subclassed, kind), {"forward": forward})
    return type(cls.__name__, (cls, between), {})
