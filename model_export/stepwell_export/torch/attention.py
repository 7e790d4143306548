"""Writes `nn.MultiheadAttention` out in plain operations, which keep batch and time open in a traced graph."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from stepwell_export.patched import patched
from stepwell_export.torch.checks import in_turn


@contextlib.contextmanager
def attention_written_out() -> Iterator[None]:
    """Trace attention without the sizes of the example, and a mask of `nn.TransformerEncoder` as it is.

    Torch's own function writes sizes into shapes. The encoder compares its mask with a causal one, which no trace can
    do; without the comparison the mask is applied, to the same result. In other threads, which may train a model, both
    stay as they are.
    """
    thread = threading.get_ident()
    layer, encoder = nn.MultiheadAttention, nn.modules.transformer
    forward, detect = layer.forward, encoder._detect_is_causal_mask

    def written_out(self: Any, *args: Any, **kwargs: Any) -> Any:
        query = args[0] if args else kwargs["query"]
        if threading.get_ident() != thread or self.bias_k is not None or self.add_zero_attn or query.dim() != 3:
            return forward(self, *args, **kwargs)
        return _attend(self, *args, **kwargs)

    def as_given(mask: Any, is_causal: Any = None, size: Any = None) -> bool:
        return bool(is_causal) if threading.get_ident() == thread else detect(mask, is_causal, size)

    with in_turn(), patched((layer, "forward", written_out), (encoder, "_detect_is_causal_mask", as_given)):
        yield


def _attend(  # noqa: PLR0917  # the arguments of `nn.MultiheadAttention.forward`, in its order
    layer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,  # a hint for other implementations: `attn_mask` is given with it
) -> tuple[Tensor, Tensor | None]:
    """Compute what `nn.MultiheadAttention.forward` does with a batch axis."""
    rows = [given if layer.batch_first else given.transpose(0, 1) for given in (query, key, value)]
    weights = (
        layer.in_proj_weight.chunk(3)
        if layer._qkv_same_embed_dim
        else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    )
    biases = (None, None, None) if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    q, k, v = (
        functional.linear(given, weight, bias).unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)
        for given, weight, bias in zip(rows, weights, biases, strict=True)
    )
    scores = (q * (1 / math.sqrt(layer.head_dim))) @ k.transpose(-2, -1)  # (batch, heads, queries, keys)
    if attn_mask is not None:
        mask = attn_mask.unflatten(0, (-1, layer.num_heads)) if attn_mask.dim() == 3 else attn_mask
        scores = _masked(scores, mask)
    if key_padding_mask is not None:
        scores = _masked(scores, key_padding_mask[:, None, None, :])
    shares = scores.softmax(-1)
    found = layer.out_proj((shares @ v).transpose(1, 2).flatten(2))
    if not layer.batch_first:
        found = found.transpose(0, 1)
    if average_attn_weights:
        shares = shares.mean(1)
    return found, shares if need_weights else None


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, -math.inf) if not mask.is_floating_point() else scores + mask
