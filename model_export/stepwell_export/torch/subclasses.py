"""`with_layers_of_torch`: a subclass of `nn.LSTM` with a `forward` of its own, as a module that calls an `nn.LSTM`.

The subclass may take other arguments, or compute before and after `super().forward(..)`: that runs as it is written,
and only what `super().forward` stands for has a state.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


class Subclassed:
    """What marks a layer whose `super().forward` is its module `rnn`."""


def with_layers_of_torch(module: nn.Module) -> None:
    """Let each subclass in a module call a layer of torch's own, which shares its weights; the module is changed."""
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
