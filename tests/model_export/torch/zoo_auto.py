"""Zoo: modules over whole sequences whose memory is in recurrent layers, and in layers with a state."""

from __future__ import annotations

from typing import Any

from stepwell_export import StepSpec
from stepwell_export.torch import CachedAttention, CausalConv1d, LinearRecurrentUnit, StepLayer
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch, whole

F = torch.nn.functional


class Leaky(StepLayer):
    """A layer of one's own: a leaky sum, with a learned rate."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(features))

    def initial_states(self) -> dict[str, Any]:
        return {"sum": torch.full((1, len(self.rate)), 0.5)}

    def step(self, x: Any, *states: Any) -> tuple[Any, ...]:
        now = self.rate * states[0] + x
        return now, now


def stacked() -> StepSpec:
    parts = {
        "lstm": nn.LSTM(4, 8, num_layers=2, batch_first=True, dropout=0.3),
        "norm": nn.LayerNorm(8),
        "gru": nn.GRU(8, 6, batch_first=True),
        "head": nn.Linear(6, 3),
    }
    return whole(of(lambda m, x: m.head(m.gru(m.norm(m.lstm(x)[0]))[0]), **parts))


def first(layer: Any) -> Any:
    """Return a module that gives a recurrent layer's answers without its last states."""
    return of(lambda m, x: m.layer(x)[0], layer=layer)


def learned_start() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h0 = m.h0.expand(-1, x.shape[0], -1).contiguous()
        return m.gru(x, h0)[0]

    return whole(of(run, gru=nn.GRU(4, 5, num_layers=2, batch_first=True), h0=nn.Parameter(torch.randn(2, 1, 5))))


def cells_in_a_loop() -> StepSpec:
    def run(m: Any, ids: Any) -> Any:
        x = m.table(ids)
        h = c = x.new_zeros(x.shape[0], 8)
        g, r = m.start.expand(x.shape[0], -1), x.new_zeros(x.shape[0], 4)
        answers = []
        for t in range(x.shape[1]):
            h, c = m.lstm(x[:, t], (h, c))
            g = m.gru(h, g)
            r = m.rnn(g, r)
            answers.append(r)
        return torch.stack(answers, dim=1)

    module = of(
        run,
        table=nn.Embedding(11, 4),
        lstm=nn.LSTMCell(4, 8),
        gru=nn.GRUCell(8, 5),
        rnn=nn.RNNCell(5, 4),
        start=nn.Parameter(torch.randn(1, 5)),
    )
    return StepSpec(module, inputs={"ids": torch.zeros(2, 7, dtype=torch.long)}, time_axis=1)


def state_passed_on() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        state, answers = None, []
        for timestep in x.split(1, dim=1):
            y, state = m.lstm(timestep, state)
            answers.append(m.head(y))
        return torch.cat(answers, dim=1)

    return whole(of(run, lstm=nn.LSTM(4, 6, batch_first=True), head=nn.Linear(6, 2)))


def started_by_an_input() -> StepSpec:
    def run(m: Any, x: Any, who: Any) -> Any:
        h0 = torch.tanh(m.begin(who))[None]
        return m.head(torch.cat([m.gru(x, h0)[0], who[:, None].expand(-1, x.shape[1], -1)], dim=-1))

    module = of(run, gru=nn.GRU(4, 6, batch_first=True), begin=nn.Linear(7, 6), head=nn.Linear(13, 2))
    return StepSpec(module, inputs={"x": torch.randn(2, 7, 4), "who": torch.randn(2, 7)}, time_axis=1)


def two_in_two_out() -> StepSpec:
    def run(m: Any, sound: Any, button: Any) -> Any:
        h = torch.cat([m.lstm(sound)[0], m.gru(m.table(button))[0]], dim=-1)
        return {"speed": m.head(h), "alarm": h.sum(-1) > 0, "nested": (h[:, -1], [h.argmax(-1)])}

    module = of(
        run,
        lstm=nn.LSTM(4, 6, batch_first=True),
        table=nn.Embedding(5, 3),
        gru=nn.GRU(3, 2, batch_first=True),
        head=nn.Linear(8, 1),
    )
    button = torch.zeros(2, 7, dtype=torch.int32)
    return StepSpec(module, inputs={"sound": torch.randn(2, 7, 4), "button": button}, time_axis=1)


def folded_head() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = m.rnn(x)[0]
        return m.head(m.norm(h.reshape(-1, 6)))

    return whole(of(run, rnn=nn.RNN(4, 6, batch_first=True), norm=nn.BatchNorm1d(6), head=nn.Linear(6, 3)))


def both_of_two() -> StepSpec:
    def run(m: Any, left: Any, right: Any) -> Any:
        return m.head(m.gru(left)[0] - m.gru(right)[0])

    module = of(run, gru=nn.GRU(4, 5, batch_first=True), head=nn.Linear(5, 2))
    return StepSpec(module, inputs={"left": torch.randn(2, 7, 4), "right": torch.randn(2, 7, 4)}, time_axis=1)


def frequency_both_ways() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        b, t, f, c = x.shape
        h = m.over_frequency(x.reshape(b * t, f, c))[0].reshape(b, t, f, 6).permute(0, 2, 1, 3)
        h = m.over_time(h.reshape(b * f, t, 6))[0].reshape(b, f, t, 4)
        return h.permute(0, 2, 1, 3)

    parts = {
        "over_frequency": nn.GRU(2, 3, batch_first=True, bidirectional=True),
        "over_time": nn.LSTM(6, 4, batch_first=True),
    }
    return whole(of(run, **parts), 2, 7, 5, 2)


def frames() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        b, t = x.shape[:2]
        seen = torch.relu(m.conv(x.flatten(0, 1))).flatten(1).unflatten(0, (b, t))
        return m.head(m.gru(seen)[1][-1])

    parts = {"conv": nn.Conv2d(1, 3, 3, stride=2), "gru": nn.GRU(27, 5, batch_first=True), "head": nn.Linear(5, 2)}
    return whole(of(run, **parts), 2, 5, 1, 8, 8)


def causal_network() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = m.norm(torch.relu(m.first(x)))
        return h + m.second(h)

    parts = {
        "first": CausalConv1d(4, 6, 3),
        "norm": nn.BatchNorm1d(6),
        "second": CausalConv1d(6, 6, 2, dilation=4, groups=2, bias=False),
    }
    return whole(of(run, **parts), 2, 4, 9, time_axis=2)


def transformer() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = x + m.attend(m.before(x))
        return h + m.down(F.gelu(m.up(m.after(h))))

    parts = {
        "before": nn.LayerNorm(8),
        "attend": CachedAttention(8, heads=2, window=6),
        "after": nn.LayerNorm(8),
        "up": nn.Linear(8, 16),
        "down": nn.Linear(16, 8),
    }
    return whole(of(run, **parts), 2, 7, 8)


def in_training() -> StepSpec:
    parts = {"rnn": nn.RNN(4, 6, batch_first=True), "drop": nn.Dropout(0.5), "head": nn.Linear(6, 2)}
    return whole(of(lambda m, x: m.head(m.drop(m.rnn(x)[0])), **parts).train())


ZOO = {
    "stacked": ZooModule(stacked, "LSTM of two layers with dropout, LayerNorm, GRU, Linear", "h and c of each layer"),
    "projected": ZooModule(
        lambda: whole(first(nn.LSTM(4, 8, num_layers=2, proj_size=5, batch_first=True))),
        "LSTM with projections",
        "h of the projection's width, c of the layer's",
    ),
    "bare": ZooModule(
        lambda: whole(nn.GRU(4, 5, batch_first=True)), "a GRU alone, its last state an output too", "h"
    ),
    "learned_start": ZooModule(learned_start, "GRU with a learned initial state", "h, which begins with the parameter"),
    "cells_in_a_loop": ZooModule(
        cells_in_a_loop, "Embedding, LSTMCell, GRUCell and RNNCell in a loop over time", "the states of the cells"
    ),
    "state_passed_on": ZooModule(state_passed_on, "LSTM called timestep by timestep in a loop", "h and c"),
    "started_by_an_input": ZooModule(
        started_by_an_input, "an initial state computed from an input without time", "h, and whether the stream began"
    ),
    "two_in_two_out": ZooModule(
        two_in_two_out, "two inputs, one of int32 ids; a dict of outputs, nested, some bool and int64", "states of both"
    ),
    "folded_head": ZooModule(folded_head, "BatchNorm1d and Linear over batch and time as one axis", "h"),
    "both_of_two": ZooModule(both_of_two, "one GRU called on two inputs", "an h for each call"),
    "frequency_both_ways": ZooModule(
        frequency_both_ways,
        "a bidirectional GRU over frequency, an LSTM over time for every frequency",
        "h and c of every frequency",
    ),
    "frames": ZooModule(frames, "Conv2d on each frame of a video, GRU, a head on h_n", "h"),
    "causal_network": ZooModule(
        causal_network, "CausalConv1d, dilated, grouped, BatchNorm1d, a residual", "the past of each convolution"
    ),
    "transformer": ZooModule(
        transformer, "a transformer block with CachedAttention", "keys and values of the last timesteps"
    ),
    "linear_recurrence": ZooModule(
        lambda: whole(nn.Sequential(LinearRecurrentUnit(4, 8), nn.GELU(), LinearRecurrentUnit(4, 6))),
        "LinearRecurrentUnit, two of them",
        "real and imaginary part",
    ),
    "in_float64": ZooModule(
        lambda: StepSpec(
            first(nn.GRU(4, 5, batch_first=True)).double(),
            inputs={"x": torch.randn(2, 7, 4, dtype=torch.float64)},
            time_axis=1,
        ),
        "a module in double precision",
        "h in float64",
    ),
    "in_training": ZooModule(in_training, "a module in training mode, with dropout", "h; exported in eval mode"),
}  # fmt: skip
