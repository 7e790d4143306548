"""Zoo: attention over time, with a mask of a fixed window or over a declared number of timesteps, and as a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stepwell_export import StepSpec
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


def time_first() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        at = torch.arange(x.shape[0])
        mask = torch.where(at[:, None] >= at[None, :], 0.0, -torch.inf)
        return m.attend(x, x, x, attn_mask=mask)[0]

    return replace(whole(of(run, attend=nn.MultiheadAttention(4, 2)), 7, 2, 4, time_axis=0), length=LENGTH)


def padded_keys() -> StepSpec:
    """Timesteps that do not count are no keys, and have no answer."""

    def run(m: Any, x: Any, counts: Any) -> Any:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        found = m.attend(x, x, x, attn_mask=mask, key_padding_mask=~counts, need_weights=False)[0]
        return torch.where(counts[..., None], found, torch.zeros_like(found))

    module = of(run, attend=nn.MultiheadAttention(8, 2, batch_first=True))
    examples = {"x": torch.randn(2, 7, 8), "counts": torch.rand(2, 7) > 0.4}
    return StepSpec(module, examples, time_axis=1, length=LENGTH)


def additive() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h, _ = m.rnn(x)
        scores = m.score(torch.tanh(m.query(h)[:, :, None] + m.key(h)[:, None])).squeeze(-1)
        weights = scores.masked_fill(ages(x) < 0, -1e9).softmax(-1)
        return (weights[..., None] * h[:, None]).sum(2)

    parts = {
        "rnn": nn.GRU(4, 4, batch_first=True), "query": nn.Linear(4, 6), "key": nn.Linear(4, 6),
        "score": nn.Linear(6, 1),
    }  # fmt: skip
    return replace(whole(of(run, **parts)), length=LENGTH)


def grouped_and_rotated() -> StepSpec:
    """Two heads of queries for each of keys, whose places turn them."""

    def turned(x: Any) -> Any:
        angles = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
        return x * angles.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angles.sin()

    def run(m: Any, x: Any) -> Any:
        q = m.query(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = m.shared(x).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        k, v = (part.repeat_interleave(2, 1) for part in (turned(k), v))
        found = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        return found.transpose(1, 2).flatten(2)

    return replace(whole(of(run, query=nn.Linear(4, 16), shared=nn.Linear(4, 16))), length=LENGTH)


def decoder() -> StepSpec:
    def run(m: Any, x: Any, memory: Any) -> Any:
        return m.layer(x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))

    module = of(run, layer=nn.TransformerDecoderLayer(8, 2, 16, batch_first=True))
    return StepSpec(module, {"x": torch.randn(2, 7, 8), "memory": torch.randn(2, 5, 8)}, time_axis=1, length=LENGTH)


def pooled_by_the_last_state() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h, _ = m.rnn(x)
        return m.attend(h[:, -1:], h, h, need_weights=False)[0][:, 0]

    parts = {"rnn": nn.GRU(4, 6, batch_first=True), "attend": nn.MultiheadAttention(6, 2, batch_first=True)}
    return replace(whole(of(run, **parts)), length=LENGTH)


ZOO = {
    "banded_encoder": ZooModule(
        banded_encoder, "nn.TransformerEncoder with a mask of the last 5 timesteps", "the past 4 keys and values"
    ),
    "causal_encoder": ZooModule(
        causal_encoder, "nn.TransformerEncoder with a causal mask, StepSpec(length=64)", "the past 63 keys and values"
    ),
    "time_first_attention": ZooModule(
        time_first, "nn.MultiheadAttention, time first, a mask of -inf, StepSpec(length=64)", "past keys and values"
    ),
    "padded_keys": ZooModule(
        padded_keys, "nn.MultiheadAttention with a causal mask and a key_padding_mask, StepSpec(length=64)",
        "past keys and values, and which of them count",
    ),
    "additive_attention": ZooModule(
        additive, "causal attention by sums of queries and keys, StepSpec(length=64)", "past keys and values"
    ),
    "grouped_and_rotated": ZooModule(
        grouped_and_rotated, "fewer heads of keys than of queries, rotary positions, StepSpec(length=64)",
        "past keys and values; the position in the stream",
    ),
    "decoder": ZooModule(
        decoder, "nn.TransformerDecoderLayer: causal attention, then attention to a static input, StepSpec(length=64)",
        "past keys and values",
    ),
    "pooled_by_the_last_state": ZooModule(
        pooled_by_the_last_state, "the last state attends to all timesteps so far, StepSpec(length=64)",
        "past keys and values; the recurrent state",
    ),
}  # fmt: skip
