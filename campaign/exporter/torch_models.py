"""Generated models as PyTorch modules: over sequences, and with states that they take and return."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from campaign.exporter.built import VOCABULARY, Array, Built, exported
from campaign.exporter.cases import BY_PLACE, KEEP_WIDTH, Case
from campaign.exporter.ops import Setting, Tensor
from campaign.exporter.rare import CELLS, SEQUENCE, STEPWISE, is_beyond
from stepwell_export.spec import StepSpec


class TorchOps:
    """`SequenceOps` on tensors."""

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b) if isinstance(b, torch.Tensor) else a.clamp(min=b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b) if isinstance(b, torch.Tensor) else a.clamp(max=b)

    def mod(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.remainder(a, b)

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return (a > b).float()

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition > 0.5, a, b)

    def abs(self, a: Tensor) -> Tensor:
        return a.abs()

    def exp(self, a: Tensor) -> Tensor:
        return a.exp()

    def log(self, a: Tensor) -> Tensor:
        return a.log()

    def sqrt(self, a: Tensor) -> Tensor:
        return a.sqrt()

    def tanh(self, a: Tensor) -> Tensor:
        return a.tanh()

    def floor(self, a: Tensor) -> Tensor:
        return a.floor()

    def round(self, a: Tensor) -> Tensor:
        return a.round()

    def sign(self, a: Tensor) -> Tensor:
        return a.sign()

    def relu(self, a: Tensor) -> Tensor:
        return a.relu()

    def clip(self, a: Tensor, low: float, high: float) -> Tensor:
        return a.clamp(low, high)

    def log1p(self, a: Tensor) -> Tensor:
        return a.log1p()

    def expm1(self, a: Tensor) -> Tensor:
        return a.expm1()

    def tail(self, a: Tensor) -> Tensor:
        return a.erfc()

    def floor_quotient(self, a: Tensor, b: float) -> Tensor:
        return a // b

    def first(self, a: Tensor) -> Tensor:
        return a[:, :1]

    def how_many(self, a: Tensor, limit: float) -> Tensor:
        return a.new_tensor(float(a[a > limit].numel()))

    def feature_max(self, a: Tensor) -> Tensor:
        return a.amax(-1, keepdim=True)

    def largest_place(self, a: Tensor) -> Tensor:
        return nn.functional.one_hot(a.argmax(-1), a.shape[-1]).float()

    def running_max(self, a: Tensor) -> Tensor:
        return a.cummax(1).values

    def running_sum(self, a: Tensor) -> Tensor:
        return a.cumsum(1)

    def late(self, a: Tensor, steps: int) -> Tensor:
        return nn.functional.pad(a, (0, 0, steps, 0))[:, : a.shape[1]]

    def early(self, a: Tensor, steps: int) -> Tensor:
        return nn.functional.pad(a, (0, 0, 0, steps))[:, steps:]

    def count(self, a: Tensor) -> Tensor:
        return torch.ones_like(a[..., :1]).cumsum(1)

    def time_max(self, a: Tensor) -> Tensor:
        return a.amax(1, keepdim=True)

    def time_mean(self, a: Tensor) -> Tensor:
        return a.mean(1, keepdim=True)

    def row_max(self, a: Tensor) -> Tensor:
        return a.amax(0, keepdim=True)

    def decaying_attention(self, a: Tensor, decay: float) -> Tensor:
        place = torch.arange(a.shape[1], device=a.device)
        distance = (place[:, None] - place[None, :]).float()
        scores = a @ a.transpose(1, 2) / math.sqrt(a.shape[2]) - decay * distance
        return scores.masked_fill(distance < 0, -math.inf).softmax(-1) @ a

    def if_longer(self, a: Tensor, at: Setting, then: Callable[[Tensor], Tensor]) -> Tensor:
        return then(a) if is_beyond(a.shape[1], at) else a

    def if_above(self, a: Tensor, limit: float, how: int, then: Callable[[Tensor], Tensor]) -> Tensor:
        def by_copy() -> bool:
            kept = torch.zeros(2)
            kept[0] = a.max()
            return bool(kept[0] > limit)

        ways: list[Callable[[], bool]] = [
            lambda: bool(a.max() > limit),
            lambda: float(a.max()) > limit,
            lambda: a.max().item() > limit,
            lambda: len(torch.nonzero(a > limit)) > 0,
            lambda: not torch.allclose(torch.relu(a - limit), torch.zeros_like(a)),
            lambda: bool((a > limit).any()),
            lambda: bool(a.detach().numpy().max() > limit),
            lambda: a[a > limit].numel() > 0,
            lambda: float(f"{float(a.max()):.9g}") > limit,
            by_copy,
            lambda: not torch.equal(a.clamp(max=limit), a),
            lambda: bool(np.asarray(a.detach()).max() > limit),
        ]
        return then(a) if ways[how % len(ways)]() else a


def _by_place(x: Tensor, at: Setting) -> Tensor:
    """Return a moving sum that is doubled from a timestep on."""
    total, found = x[:, 0] * 0, []
    for t in range(x.shape[1]):
        total = total * 0.9 + x[:, t]
        found.append(total * 2 if is_beyond(t, at) else total)
    return torch.stack(found, 1)


class Loop(nn.Module):  # type: ignore[misc]  # torch has no types that are checked here
    """A cell, stepped over time by a Python loop."""

    def __init__(self, case: Case, name: str) -> None:
        super().__init__()
        self.case, self.name = case, name

    def forward(self, x: Tensor) -> Tensor:
        state, answers = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            answer, state = CELLS[self.name].step(TorchOps(), x[:, t], state, self.case.setting)
            answers.append(answer)
        return torch.stack(answers, 1)


class CausalConv(nn.Module):  # type: ignore[misc]  # as above
    """A convolution over the last three timesteps."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, units, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


def _layer(name: str, width: int, units: int) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "lstm": lambda: nn.LSTM(width, units, batch_first=True),
        "gru": lambda: nn.GRU(width, units, batch_first=True),
        "rnn": lambda: nn.RNN(width, units, batch_first=True),
        "conv": lambda: CausalConv(width, units),
        "dense": lambda: nn.Linear(width, units),
        "relu": nn.ReLU,
        "norm": lambda: nn.LayerNorm(width),
    }
    return makers[name]()


class Model(nn.Module):  # type: ignore[misc]  # as above
    """A generated model over sequences."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        width, units = case.features, case.units
        if case.takes_ids:
            self.table, width = nn.Embedding(VOCABULARY, units), units
        self.start = width
        layers: list[Any] = [Loop(case, case.rare)] if case.place == "inside" else []
        for name in case.blocks:
            if name in CELLS:
                layers.append(Loop(case, name))
            elif name != "embedding":
                layers.append(_layer(name, width, units))
                width = width if name in KEEP_WIDTH else units
        self.layers = nn.ModuleList(layers)
        self.last = nn.Linear(width, 2)
        self.around = nn.Linear(self.start, 2)

    def forward(self, x: Tensor) -> Tensor:
        case, ops = self.case, TorchOps()
        if case.rare == "ids modulo":
            x = x % VOCABULARY
        elif case.rare == "ids divided":
            x = torch.div(x, 1000, rounding_mode="floor") % VOCABULARY
        if case.takes_ids:
            x = self.table(x)
        part = SEQUENCE.get(case.rare) or STEPWISE.get(case.rare)
        if part is not None and case.place == "before":
            x = part(ops, x, case.setting)
        if case.rare == BY_PLACE:
            x = _by_place(x, case.setting)
        start = x
        for layer in self.layers:
            x = layer(x)
            if isinstance(x, tuple):
                x = x[0]
        y = self.last(x)
        if part is not None and case.place == "behind":
            y = part(ops, y + self.around(start), case.setting)
        heads: dict[str, Callable[[], Tensor]] = {
            "each": lambda: y,
            "last": lambda: y[:, -1],
            "mean": lambda: y.mean(1),
            "recent": lambda: y[:, -case.setting.period :].mean(1),
        }
        return heads[case.head]()


class Step(nn.Module):  # type: ignore[misc]  # as above
    """A generated model that takes and returns its states."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.cells = ([case.rare] if case.place == "inside" else []) + list(case.blocks)
        self.last = nn.Linear(case.features, 2)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        after, start, at, ops = [], x, self.case.setting, TorchOps()
        part = SEQUENCE.get(self.case.rare) or STEPWISE.get(self.case.rare)
        if part is not None and self.case.place == "before":
            x = part(ops, x, at)
        for name, state in zip(self.cells, states, strict=True):
            x, found = CELLS[name].step(ops, x, state, at)
            after.append(found)
        if part is not None and self.case.place == "behind":
            x = part(ops, x + start, at)
        return self.last(x), *after


def build(case: Case) -> Built:
    """Return a PyTorch model."""
    torch.manual_seed(case.seed * 1000 + case.index)
    return _with_states(case) if case.front_end == "states" else _over_sequences(case)


def _over_sequences(case: Case) -> Built:
    model = Model(case).eval()

    def run(x: Array) -> Array:
        with torch.no_grad():
            answer: Array = model(torch.from_numpy(x)).numpy()
        return answer

    example = torch.zeros((2, 6), dtype=torch.int64) if case.takes_ids else torch.randn(2, 6, case.features)
    return Built(run, lambda path: exported(StepSpec(model, inputs={"x": example}, time_axis=1), path))


def _with_states(case: Case) -> Built:
    model = Step(case).eval()

    def run(x: Array) -> Array:
        states = [torch.zeros(len(x), case.features) for _ in model.cells]
        answers = []
        with torch.no_grad():
            for t in range(x.shape[1]):
                answer, *states = model(torch.from_numpy(x[:, t]), *states)
                answers.append(answer.numpy())
        return np.stack(answers, 1)

    states = {f"s{k}": torch.zeros(1, case.features) for k in range(len(model.cells))}
    return Built(
        run, lambda path: exported(StepSpec(model, inputs={"x": torch.randn(1, case.features)}, states=states), path)
    )
