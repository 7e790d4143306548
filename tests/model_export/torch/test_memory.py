"""What a module remembers beside its recurrent layers is stepped with them or refused, however rarely it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from stepwell_export.verify.runners import stepped
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch

F = torch.nn.functional


def gain_by_the_largest(x: Any) -> Any:
    return x / x.abs().amax(1, keepdim=True).clamp(min=10.0)


def peek(x: Any) -> Any:
    after = F.pad(x, (0, 0, 0, 1))[:, 1:]
    return torch.where(after > 8, torch.zeros(1), x)


def mean_of_rare(x: Any) -> Any:
    return x - F.relu(x - 8).mean(1, keepdim=True)


def latch(x: Any) -> Any:
    alarm = (x.abs() > 8).float().cummax(1).values
    return x * (1 - alarm)


def counted(x: Any) -> Any:
    return x + (x > 8).float().cumsum(1)


def delayed(x: Any) -> Any:
    return x + F.pad(F.relu(x - 8), (0, 0, 3, 0))[:, :-3]


def sorted_rare(x: Any) -> Any:
    return x + F.relu(x - 8).sort(1).values


def by_position(x: Any) -> Any:
    table = torch.ones(5000)
    table[2500:] = 2.0
    return x * table[: x.shape[1], None]


MIXING: dict[str, Callable[[Any], Any]] = {
    one.__name__: one
    for one in (gain_by_the_largest, peek, mean_of_rare, latch, counted, delayed, sorted_rare, by_position)
}


def projected(change: Callable[[Any], Any]) -> StepSpec:
    return whole(of(lambda m, x: m.rnn(change(x))[0], rnn=nn.LSTM(4, 6, proj_size=3, batch_first=True)))


def doubles(change: Callable[[Any], Any]) -> StepSpec:
    module = of(lambda m, x: m.rnn(change(x.double()))[0].float(), rnn=nn.GRU(4, 6, batch_first=True).double())
    return whole(module)


def cell_loop(change: Callable[[Any], Any]) -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h, found = torch.zeros(x.shape[0], 6), []
        for now in change(x).unbind(1):
            h = m.cell(now, h)
            found.append(h)
        return torch.stack(found, 1)

    return whole(of(run, cell=nn.GRUCell(4, 6)))


def in_the_loop(carry: Callable[[Any, Any], Any]) -> Callable[[], StepSpec]:
    def run(m: Any, x: Any) -> Any:
        h, found = torch.zeros(x.shape[0], 6), []
        for t in range(x.shape[1]):
            h = m.cell(x[:, t], h)
            found.append(h)
            h = carry(h, x[:, t])
        return torch.stack(found, 1)

    return lambda: whole(of(run, cell=nn.GRUCell(4, 6)))


def skipped() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h = before = torch.zeros(x.shape[0], 6)
        found = []
        for t in range(x.shape[1]):
            before, h = h, m.cell(x[:, t], before)
            found.append(h)
        return torch.stack(found, 1)

    return whole(of(run, cell=nn.GRUCell(4, 6)))


def started_rarely() -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        return m.rnn(x, F.relu(x[:, 0] - 8)[None].contiguous())[0]

    return whole(of(run, rnn=nn.GRU(4, 4, batch_first=True).double().float()))


def by_a_row_of_a_table(t: int, x: Any) -> Any:
    table = torch.ones(5000)
    table[2500:] = 2.0
    return x * table[t]


def by_a_number(t: int, x: Any) -> Any:
    return x + t * 1e-9


def of_the_position(change: Callable[[int, Any], Any]) -> StepSpec:
    def run(m: Any, x: Any) -> Any:
        h, found = torch.zeros(x.shape[0], 6), []
        for t in range(x.shape[1]):
            h = m.cell(change(t, x[:, t]), h)
            found.append(h)
        return torch.stack(found, 1)

    return whole(of(run, cell=nn.GRUCell(4, 6)))


CARRIED = {
    "reset_by_a_value": in_the_loop(lambda h, x: torch.where(x[:, :1] > 8, torch.zeros(1), h)),
    "clamped": in_the_loop(lambda h, x: h.clamp(max=0.9999)),
    "written": in_the_loop(lambda h, x: h.mul_((x[:, :1] < 8).float())),
}


@pytest.mark.parametrize("build", [projected, cell_loop, doubles])
@pytest.mark.parametrize("name", ["gain_by_the_largest", "peek", "mean_of_rare", "sorted_rare"])
def test_what_looks_ahead_rarely_is_refused(name: str, build: Any) -> None:
    with pytest.raises(RefusedModelError):
        convert(build(MIXING[name]), name="ahead")


def answers(made: Any, x: Any) -> Any:
    graph, _ = verify_model(made, long_steps=0)
    return stepped(StepModel(graph), {"x": x})[0]["output"]


def loud() -> Any:
    x = np.random.default_rng(0).standard_normal((2, 20, 4)).astype(np.float32)
    x[0, 5, 1] = 9.0
    return x


@pytest.mark.parametrize("name", ["latch", "counted", "delayed"])
def test_a_rare_memory_beside_a_loop_over_time_is_stepped_with_it(name: str) -> None:
    """A causal latch beside a GRUCell is a state of its own."""
    spec = cell_loop(MIXING[name])
    x = loud()

    want = spec.module(torch.from_numpy(x)).detach().numpy()

    np.testing.assert_allclose(answers(convert(spec, name="latch"), x), want, atol=1e-5)


@pytest.mark.parametrize("name", ["gain_by_the_largest"])
def test_a_refusal_of_what_a_graph_does_with_time_is_final(name: str) -> None:
    spec = whole(of(lambda m, x: m.rnn(MIXING[name](x))[0], rnn=nn.GRU(4, 6, batch_first=True)))

    with pytest.raises(RefusedModelError):
        convert(spec, name="final")


@pytest.mark.parametrize("name", [*CARRIED, "started_rarely"])
def test_a_state_that_is_changed_between_two_timesteps_is_stepped_so(name: str) -> None:
    spec = started_rarely() if name == "started_rarely" else CARRIED[name]()
    x = loud()
    x[1, 0, 1] = 9.0

    want = spec.module(torch.from_numpy(x)).detach().numpy()

    np.testing.assert_allclose(answers(convert(spec, name="carried"), x), want, atol=1e-5)


@pytest.mark.parametrize("change", [by_a_row_of_a_table, by_a_number])
def test_what_differs_from_timestep_to_timestep_is_refused(change: Any) -> None:
    with pytest.raises(RefusedModelError):
        convert(of_the_position(change), name="position")


def test_a_state_of_the_timestep_before_the_last_one_is_refused() -> None:
    with pytest.raises(RefusedModelError, match="a loop over the timesteps in its own code with 'cell'"):
        convert(skipped(), name="skipped")
