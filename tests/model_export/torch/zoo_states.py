"""Zoo: modules that take one timestep and their states, and return them."""

from __future__ import annotations

from typing import Any

from stepwell_export import StepSpec
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch

F = torch.nn.functional


def layer_with_its_state() -> StepSpec:
    def run(m: Any, x: Any, h: Any, c: Any) -> Any:
        y, state = m.lstm(x[None], (h, c))
        return m.head(y[0]), state

    module = of(run, lstm=nn.LSTM(4, 8, num_layers=2), head=nn.Linear(8, 3))
    states = {"h": torch.zeros(2, 1, 8), "c": torch.full((2, 1, 8), 0.5)}
    return StepSpec(module, inputs={"x": torch.randn(2, 4)}, states=states, output_names=["label"])


def projected_with_its_state() -> StepSpec:
    def run(m: Any, x: Any, h: Any, c: Any) -> Any:
        y, state = m.lstm(input=x[:, None], hx=(h, c))
        return y[:, 0], *state

    states = {"h": torch.zeros(2, 1, 5), "c": torch.zeros(2, 1, 8)}
    module = of(run, lstm=nn.LSTM(4, 8, num_layers=2, proj_size=5, batch_first=True))
    return StepSpec(module, inputs={"x": torch.randn(2, 4)}, states=states)


def cell() -> StepSpec:
    def run(m: Any, x: Any, h: Any) -> Any:
        h = m.gru(x, h)
        return h, h

    return StepSpec(of(run, gru=nn.GRUCell(4, 6)), inputs={"x": torch.randn(2, 4)}, states={"h": torch.randn(1, 6)})


def ring() -> StepSpec:
    def run(m: Any, x: Any, past: Any) -> Any:
        seen = torch.cat([past, x[..., None]], dim=-1)
        return {"filtered": m.conv(seen)[..., 0], "next": seen[..., 1:]}

    return StepSpec(
        of(run, conv=nn.Conv1d(4, 5, 3)), inputs={"x": torch.randn(2, 4)}, states={"past": torch.zeros(1, 4, 2)}
    )


def counted_attention() -> StepSpec:
    def run(m: Any, x: Any, keys: Any, values: Any, count: Any) -> Any:
        q, k, v = m.qkv(x).chunk(3, dim=-1)
        at = F.one_hot(count % 5, 5)[..., None].to(k.dtype)
        keys, values = keys * (1 - at) + k[:, None] * at, values * (1 - at) + v[:, None] * at
        unseen = torch.arange(5) > count[:, None]
        scores = (keys @ q[..., None])[..., 0].masked_fill(unseen, -1e9)
        return (scores.softmax(-1)[:, None] @ values)[:, 0], keys, values, count + 1

    states = {"keys": torch.zeros(1, 5, 4), "values": torch.zeros(1, 5, 4), "count": torch.zeros(1, dtype=torch.int64)}
    return StepSpec(of(run, qkv=nn.Linear(4, 12)), inputs={"x": torch.randn(2, 4)}, states=states)


ZOO = {
    "layer_with_its_state": ZooModule(
        layer_with_its_state, "nn.LSTM called with its state, as (layers, batch, width)", "h and c; the batch on axis 1"
    ),
    "projected_with_its_state": ZooModule(
        projected_with_its_state, "nn.LSTM with projections called with its state", "h and c; the batch on axis 1"
    ),
    "cell": ZooModule(cell, "GRUCell whose state is its answer", "h, which begins with numbers of its own"),
    "counted_attention": ZooModule(
        counted_attention, "attention over a ring of keys and values, with an int64 count", "keys, values, count"
    ),
}
