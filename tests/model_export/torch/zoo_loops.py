"""Zoo: loops over time in a module's own code, and recurrences that are computed without one."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell_export import StepSpec
from stepwell_export.torch import StepLayer
from tests.model_export.torch.zoo_parts import ZooModule, nn, of, torch, whole

F = torch.nn.functional


def final_state() -> StepSpec:
    def run(m: Any, x: Any, start: Any) -> Any:
        h = torch.tanh(m.start(start))
        for t in range(x.shape[1]):
            h = torch.tanh(m.input(x[:, t]) + m.carried(h))
        return m.head(h)

    parts = {"start": nn.Linear(3, 5), "input": nn.Linear(4, 5), "carried": nn.Linear(5, 5), "head": nn.Linear(5, 2)}
    inputs = {"x": torch.randn(2, 7, 4), "start": torch.randn(2, 3)}
    return StepSpec(of(run, **parts), inputs=inputs, time_axis=1)


def cell_after_a_convolution() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        u = torch.relu(m.conv(F.pad(x.transpose(1, 2), (2, 0)))).transpose(1, 2)
        h = c = torch.zeros(x.shape[0], 5)
        found = []
        for step in u.unbind(1):
            h, c = m.cell(step, (h, c))
            found.append(h)
        return m.head(torch.stack(found, 1)), c

    return whole(of(run, conv=nn.Conv1d(4, 6, 3), cell=nn.LSTMCell(6, 5), head=nn.Linear(5, 2)))


def selective_scan(u: Any, delta: Any, A: Any, B: Any, C: Any) -> Any:
    """The scan of Gu and Dao 2023, "Mamba": u and delta `(batch, width, time)`, B and C `(batch, states, time)`."""
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    driven = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h, found = A.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + driven[:, :, t]
        found.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(found, dim=2)


def mamba() -> StepSpec:
    """Two blocks, in the layout of the paper's reference."""
    width, states, rank, kernel = 8, 4, 2, 4

    def block(m: Any, x: Any) -> Any:
        u, gate = m.into(m.norm(x)).chunk(2, -1)
        u = F.silu(m.conv(u.transpose(1, 2))[..., : x.shape[1]])
        delta, B, C = m.select(u.transpose(1, 2)).split([rank, states, states], -1)
        delta = F.softplus(m.delta(delta)).transpose(1, 2)
        y = selective_scan(u, delta, -torch.exp(m.decay), B.transpose(1, 2), C.transpose(1, 2))
        return x + m.out((y + u * m.skip[:, None]).transpose(1, 2) * F.silu(gate))

    def made() -> Any:
        return of(
            block,
            norm=nn.LayerNorm(4),
            into=nn.Linear(4, 2 * width),
            conv=nn.Conv1d(width, width, kernel, groups=width, padding=kernel - 1),
            select=nn.Linear(width, rank + 2 * states),
            delta=nn.Linear(rank, width),
            decay=nn.Parameter(torch.log(torch.arange(1.0, states + 1).repeat(width, 1))),
            skip=nn.Parameter(torch.ones(width)),
            out=nn.Linear(width, 4),
        )

    return whole(nn.Sequential(made(), made(), nn.Linear(4, 2)))


def diagonal_states() -> StepSpec:
    """S4D in its recurrent form, complex numbers as pairs; of Gu et al. 2022, "On the Parameterization and ..."."""

    def run(m: Any, x: Any) -> Any:
        u = m.into(x)
        size, turn = torch.exp(-torch.exp(m.log_decay)), m.frequency
        real, imaginary = size * torch.cos(turn), size * torch.sin(turn)
        re = im = torch.zeros(x.shape[0], 6, 4)
        found = []
        for t in range(x.shape[1]):
            re, im = real * re - imaginary * im + u[:, t, :, None], real * im + imaginary * re
            found.append((re * m.out_re - im * m.out_im).sum(-1))
        return m.head(torch.stack(found, 1) + m.skip * u)

    parts = {
        "into": nn.Linear(4, 6),
        "log_decay": nn.Parameter(torch.randn(6, 4) * 0.5 - 1),
        "frequency": nn.Parameter(torch.randn(6, 4)),
        "out_re": nn.Parameter(torch.randn(6, 4)),
        "out_im": nn.Parameter(torch.randn(6, 4)),
        "skip": nn.Parameter(torch.randn(6)),
        "head": nn.Linear(6, 2),
    }
    return whole(of(run, **parts))


class Smoothing(StepLayer):
    """A layer of one's own with state."""

    def initial_states(self) -> dict[str, Any]:
        return {"mean": torch.zeros(1, 4)}

    def step(self, x: Any, *states: Any) -> tuple[Any, ...]:
        mean = 0.9 * states[0] + 0.1 * x
        return mean, mean


def layer_and_padding() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        return m.own(m.conv(F.pad(x.mT, (2, 0))).mT)

    return whole(of(run, own=Smoothing(), conv=nn.Conv1d(4, 4, 3)))


def in_log_space(log_keep: Any, logs: Any, start: Any) -> Any:
    """The parallel scan of Feng et al. 2024, "Were RNNs All We Needed?"."""
    total = F.pad(torch.cumsum(log_keep, dim=1), (0, 0, 1, 0))
    return torch.exp(total + torch.logcumsumexp(torch.cat([start, logs], dim=1) - total, dim=1))[:, 1:]


def log_of_positive(x: Any) -> Any:
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))


def min_gru() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        gate, candidate = m.gate(x), m.candidate(x)
        start = log_of_positive(torch.zeros(x.shape[0], 1, 6))
        h = in_log_space(-F.softplus(gate), log_of_positive(candidate) - F.softplus(-gate), start)
        return m.head(h)

    return whole(of(run, gate=nn.Linear(4, 6), candidate=nn.Linear(4, 6), head=nn.Linear(6, 2)))


def running_extremes() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        shrunk = torch.cumprod(torch.sigmoid(x[..., :2] + 3), dim=1)
        parts = torch.cummax(x, dim=1).values, x.cummin(1)[0], shrunk, x.logcumsumexp(1)
        return m.head(torch.cat(parts, -1))

    return whole(of(run, head=nn.Linear(14, 2)))


def associative_scan(combine: Any, values: Any, dim: int) -> Any:
    """PyTorch's own, in its form for all devices."""
    home = pytest.importorskip("torch._higher_order_ops", reason="PyTorch has no associative_scan before release 2.5")
    return home.associative_scan(combine, values, dim, combine_mode="generic")


def scanned_recurrence() -> StepSpec:
    """The recurrence of a linear recurrent unit, h = decay * h + x, with a decay that follows from the timestep."""

    def run(m: Any, x: Any) -> Any:
        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        decay = torch.sigmoid(m.decay(x))
        _, h = associative_scan(combine, (decay, (1 - decay) * m.input(x)), 1)
        return m.head(torch.tanh(h))

    return whole(of(run, decay=nn.Linear(4, 6), input=nn.Linear(4, 6), head=nn.Linear(6, 2)))


ZOO = {
    "scanned_recurrence": ZooModule(
        scanned_recurrence, "a linear recurrence by `associative_scan`", "the products and h, and whether it has begun"
    ),
    "final_state": ZooModule(
        final_state, "a recurrence in a loop, its first state from an input without time axis, its last one", "h"
    ),
    "cell_after_a_convolution": ZooModule(
        cell_after_a_convolution, "a padded Conv1d and an LSTMCell in a loop over `unbind`", "the past, h and c"
    ),
    "mamba": ZooModule(mamba, "two blocks of Mamba with the scan as a loop", "past timesteps and h of each block"),
    "diagonal_states": ZooModule(
        diagonal_states, "S4D as a recurrence, complex numbers as pairs", "both parts of the states"
    ),
    "min_gru": ZooModule(min_gru, "minGRU by its parallel scan in log space", "the logarithm of h"),
    "running_extremes": ZooModule(
        running_extremes, "cummax, cummin, cumprod and logcumsumexp over time", "the value so far of each"
    ),
    "layer_and_padding": ZooModule(
        layer_and_padding, "a padded Conv1d, and a StepLayer that runs over time by itself", "the past, and its state"
    ),
}
