"""Zoo: attention over time, with a mask of a fixed window or over a declared number of timesteps, and as a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model_export import StepSpec
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch, whole

F = torch.nn.functional
LENGTH = 64


def ages(x: Any) -> Any:
    """Return how many timesteps each key is older than each query."""
    at = torch.arange(x.shape[1])
    return at[:, None] - at[None, :]


def encoder(mask: Any, **more: Any) -> Any:
    """Return two layers of `nn.TransformerEncoder` between linear ones."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **more)

    def run(m: Any, x: Any) -> Any:
        return m.head(m.encoder(m.embed(x), mask=mask(x)))

    return of(
        run,
        embed=nn.Linear(4, 8),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(8, 3),
    )


def banded_encoder() -> StepSpec:
    return whole(encoder(lambda x: (ages(x) < 0) | (ages(x) >= 5), norm_first=True))


def causal_encoder() -> StepSpec:
    spec = whole(encoder(lambda x: nn.Transformer.generate_square_subsequent_mask(x.shape[1])))
    return replace(spec, length=LENGTH)


def with_positions() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = m.embed(x) + m.table[: x.shape[1]] + m.learned(torch.arange(x.shape[1]))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return m.head(h + m.attend(h, h, h, attn_mask=mask, need_weights=False)[0])

    parts = {
        "embed": nn.Linear(4, 8),
        "table": nn.Parameter(torch.randn(LENGTH, 8)),
        "learned": nn.Embedding(LENGTH, 8),
        "attend": nn.MultiheadAttention(8, 2, batch_first=True),
        "head": nn.Linear(8, 3),
    }
    return replace(whole(of(run, **parts)), length=LENGTH)


def time_first() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        at = torch.arange(x.shape[0])
        mask = torch.where(at[:, None] >= at[None, :], 0.0, -torch.inf)
        return m.attend(x, x, x, attn_mask=mask)[0]

    return replace(whole(of(run, attend=nn.MultiheadAttention(4, 2)), 7, 2, 4, time_axis=0), length=LENGTH)


def scaled_dot_product() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, 4)).unbind(2)
        parts = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)

    return replace(whole(of(run, qkv=nn.Linear(4, 24))), length=LENGTH)


def pooled_by_a_query() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h, _ = m.rnn(x)
        return m.head(m.attend(m.query.expand(x.shape[0], -1, -1), h, h, need_weights=False)[0][:, 0])

    parts = {
        "rnn": nn.GRU(4, 8, batch_first=True),
        "query": nn.Parameter(torch.randn(1, 1, 8)),
        "attend": nn.MultiheadAttention(8, 2, batch_first=True),
        "head": nn.Linear(8, 2),
    }
    return whole(of(run, **parts))


ZOO = {
    "banded_encoder": ZooModule(
        banded_encoder, "nn.TransformerEncoder with a mask of the last 5 timesteps", "the past 4 keys and values"
    ),
    "causal_encoder": ZooModule(
        causal_encoder, "nn.TransformerEncoder with a causal mask, StepSpec(length=64)", "the past 63 keys and values"
    ),
    "with_positions": ZooModule(
        with_positions,
        "positions from a parameter and an Embedding, nn.MultiheadAttention with a causal mask, StepSpec(length=64)",
        "past keys and values; the position in the stream",
    ),
    "time_first_attention": ZooModule(
        time_first, "nn.MultiheadAttention, time first, a mask of -inf, StepSpec(length=64)", "past keys and values"
    ),
    "scaled_dot_product": ZooModule(
        scaled_dot_product, "scaled_dot_product_attention with is_causal, StepSpec(length=64)", "past keys and values"
    ),
    "pooled_by_a_query": ZooModule(
        pooled_by_a_query,
        "a GRU, nn.MultiheadAttention from a learned query to all timesteps",
        "a weighted mean, the sum of the weights, the largest score",
    ),
}
