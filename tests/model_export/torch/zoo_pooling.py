"""Zoo: attention pooling and masked means, as heads of published models have them."""

from __future__ import annotations

from typing import Any

from stepwell_export import StepSpec
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch, whole

F = torch.nn.functional


def pooled(run: Any, scores: int = 1, **parts: Any) -> Any:
    """Return the builder of a GRU of 6 features, pooled by `run(m, h)` to 6 of them."""

    def build() -> StepSpec:
        given = {"rnn": nn.GRU(4, 6, batch_first=True), "score": nn.Linear(6, scores), "head": nn.Linear(6, 2)}
        made = {name: part() for name, part in parts.items()}
        return whole(of(lambda m, x: m.head(run(m, m.rnn(x)[0])), **given, **made))

    return build


def several_queries(m: Any, h: Any) -> Any:
    """Lin et al. 2017, "A Structured Self-attentive Sentence Embedding"."""
    weights = torch.softmax(m.score(torch.tanh(m.first(h))), dim=1)
    return torch.bmm(weights.transpose(1, 2), h).mean(dim=1)


def gated(m: Any, h: Any) -> Any:
    """Ilse et al. 2018, "Attention-based Deep Multiple Instance Learning"."""
    scores = m.score(torch.tanh(m.first(h)) * torch.sigmoid(m.gate(h)))
    return torch.einsum("btk,btd->bkd", F.softmax(scores, dim=1), h).squeeze(1)


def statistics(m: Any, h: Any) -> Any:
    """Okabe et al. 2018, "Attentive Statistics Pooling for Deep Speaker Embedding": channels in front of time."""
    x = h.transpose(1, 2)
    weights = torch.softmax(m.second(torch.tanh(m.first(x))), dim=2)
    mean = torch.sum(x * weights, dim=2)
    spread = torch.sqrt((torch.sum(x * x * weights, dim=2) - mean * mean).clamp(min=1e-3))
    return mean + spread


def masked_heads(m: Any, h: Any) -> Any:
    scores = m.score(h).transpose(1, 2).masked_fill((h[..., 0] < 0).unsqueeze(1), -1e9)
    weights = torch.softmax(scores, dim=-1).unsqueeze(-1)
    values = h.unflatten(-1, (2, 3)).transpose(1, 2)
    return (weights * values).sum(dim=2).flatten(1)


def masked_mean(m: Any, h: Any) -> Any:
    """The mean of the tokens that count, as in sentence embeddings."""
    mask = (h[..., 0] > 0).unsqueeze(-1).expand(h.size()).float()
    return (h * mask).sum(1) / mask.sum(1).clamp(min=1e-6)


def window(m: Any, x: Any) -> Any:
    """A module that was trained on windows of 6 timesteps: two directions, attention without a mask, RevIN."""
    x = torch.nn.functional.pad(x, (0, 0, 5, 0))[:, -6:]
    x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    h = m.attend(m.rnn(x)[0])
    return m.head(torch.cat([h[:, -1], h.mean(1), h.amax(1)], -1))


_SOFTMAX = "a weighted mean, the sum of the weights, the largest score unless all are small"

ZOO = {
    "window": ZooModule(
        lambda: whole(
            of(
                window,
                rnn=nn.GRU(4, 3, batch_first=True, bidirectional=True),
                attend=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
                head=nn.Linear(18, 2),
            )
        ),
        "a window of the last 6 timesteps: normalised, a bidirectional GRU, a transformer layer without mask, pooling",
        "the past 5 timesteps",
    ),
    "pooled_by_several_queries": ZooModule(
        pooled(several_queries, 3, first=lambda: nn.Linear(6, 6)), "a GRU, structured self-attention: 3 queries, `bmm`",
        _SOFTMAX,
    ),
    "pooled_by_gated_attention": ZooModule(
        pooled(gated, first=lambda: nn.Linear(6, 6), gate=lambda: nn.Linear(6, 6)),
        "a GRU, gated attention pooling of multiple instance learning, `einsum`", _SOFTMAX,
    ),
    "attentive_statistics": ZooModule(
        pooled(statistics, first=lambda: nn.Conv1d(6, 3, 1), second=lambda: nn.Conv1d(3, 6, 1)),
        "a GRU, attentive statistics pooling: weighted mean and standard deviation of each channel",
        "two weighted means, the sums of the weights, the largest scores",
    ),
    "pooled_masked_heads": ZooModule(
        pooled(masked_heads, 2), "a GRU, two heads of a softmax over time with `masked_fill` of -1e9", _SOFTMAX
    ),
    "masked_mean": ZooModule(
        pooled(masked_mean), "a GRU, the sum of what a mask lets through, divided by its count",
        "the sum and the count",
    ),
}  # fmt: skip
