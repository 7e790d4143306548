"""A module that does something else for longer or shorter sequences is refused with the length and the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch import convert
from stepwell_export.torch.axis_inference import Sequences
from stepwell_export.torch.checks import prepared
from stepwell_export.torch.lengths import check_lengths
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch

F = torch.nn.functional
HOUR = 60 * 60


def computed(m: Any, x: Any) -> Any:
    last = m.limit * 2 - 100
    return x[:, -last:].sum(1)


def a_factor_in_a_loop(m: Any, x: Any) -> Any:
    h, found = torch.zeros(x.shape[0], 4), []
    for t, now in enumerate(x.unbind(1)):
        h = h * (0.5 if t < 1000 else 0.9) + now
        found.append(h)
    return torch.stack(found, 1)


def a_lag_in_a_loop(m: Any, x: Any) -> Any:
    h, found = torch.zeros(x.shape[0], 4), []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t] - x[:, max(t - 720, 0)]
        found.append(h)
    return torch.stack(found, 1)


DECIDING: dict[str, Callable[[Any, Any], Any]] = {
    "a_comparison": lambda m, x: x.cumsum(1) * (2.0 if x.shape[1] > 2500 else 1.0),
    "equality": lambda m, x: m.extra(x) if x.size(1) == 300 else x,
    "few_timesteps": lambda m, x: x * 2 if x.shape[1] < 10 else x,
    "a_length_of_the_module": lambda m, x: m.extra(x.cumsum(1)) if len(x[0]) >= m.limit else x.cumsum(1),
    "a_global_number": lambda m, x: x.cumsum(1) / max(x.shape[1], HOUR) * HOUR,
    "pieces": lambda m, x: torch.cat([part.cumsum(1) for part in x.split(2048, 1)], 1),
    "the_last": lambda m, x: x[:, -4096:].sum(1),
    "the_first": lambda m, x: F.relu(x)[:, :500].sum(1),
    "computed": computed,
    "a_factor_in_a_loop": a_factor_in_a_loop,
    "a_lag_in_a_loop": a_lag_in_a_loop,
}


def spec_of(run: Callable[..., Any]) -> Any:
    return whole(of(run, extra=nn.Linear(4, 4), limit=700))


@pytest.mark.parametrize("name", DECIDING)
def test_a_decision_by_the_number_of_timesteps_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(RefusedModelError, match=r"does something else for a sequence of .* \(test_lengths.py, line "):
        convert(spec_of(DECIDING[name]), name="decides")


def a_loop(m: Any, x: Any) -> Any:
    h = torch.zeros(x.shape[0], 4)
    for t in range(1, x.shape[1]):
        h = 0.5 * h + 100 * x[:, t] - x[:, t - 1]
    return h.reshape(x.shape[0], 2, 2)


GROWING: dict[str, Callable[[Any, Any], Any]] = {
    "a_window": lambda m, x: x[:, -5:].sum(1),
    "a_mean": lambda m, x: x.mean(1) + x.sum(1) / x.shape[1],
    "folded": lambda m, x: m.extra(x.reshape(-1, 4)).clamp(max=512).view(x.shape[0], x.shape[1], 4),
    "a_loop": a_loop,
}


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_with_the_timesteps_is_no_decision(name: str) -> None:
    spec = spec_of(GROWING[name])

    check_lengths(Sequences(prepared(spec.module), spec.inputs, 1), None)


def test_a_module_with_a_declared_length_may_decide_by_longer_ones() -> None:
    made = convert(replace(spec_of(DECIDING["a_comparison"]), length=64), name="declared")

    assert made.only_length == 64
