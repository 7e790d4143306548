"""Recurrent layers of PyTorch run a whole chunk in one operator each, and single steps without operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.chunk.selection import dynamic_graph, dynamic_manifest
from stepwell_export.converted import verify_model
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from stepwell_export.verify.tolerance import Tolerance
from tests.model_export.torch import zoo
from tests.model_export.torch.zoo_parts import nn, of, torch

pytestmark = pytest.mark.torch

AT_ONCE, INSIDE = "all timesteps at once", "timestep by timestep inside one run"
FUSED = ["stacked", "learned_start", "state_passed_on", "transformer"]
LOOPED = ["projected", "cells_in_a_loop"]


@pytest.mark.parametrize(("name", "how"), [*((n, AT_ONCE) for n in FUSED), *((n, INSIDE) for n in LOOPED)])
def test_a_chunk_equals_its_steps(name: str, how: str) -> None:
    made = zoo.made(name)
    found_how, proto, _ = dynamic_graph(made.proto, made.manifest)
    step = StepModel(made.proto.SerializeToString(), made.manifest)
    model = StepModel(proto.SerializeToString(), dynamic_manifest(made.manifest))
    data = made.kinds["random"](np.random.default_rng(0), 3, 20)
    want = step.chunk(data, step.initial_states(3))

    assert found_how == how
    for found, expected in zip(model.chunk(data, model.initial_states(3)), want, strict=True):
        assert all(Tolerance(1e-5, 1e-4).holds(found[key], expected[key]) for key in expected)


def test_a_row_of_a_step_is_bit_for_bit_what_it_is_alone() -> None:
    model = StepModel(verify_model(zoo.made("stacked"), long_steps=100)[0])
    data = {"x": np.random.default_rng(0).standard_normal((5, 9, 4)).astype(np.float32)}
    states, answers = model.initial_states(5), []
    for t in range(9):
        answer, states = model.step({"x": data["x"][:, t]}, states)
        answers.append(answer)
    for row in range(5):
        alone = model.initial_states(1)
        for t, answer in enumerate(answers):
            found, alone = model.step({"x": data["x"][row : row + 1, t]}, alone)
            assert all(np.array_equal(found[name][0], answer[name][row]) for name in answer)


def two_cells(m: Any, x: Any, h: Any) -> Any:
    one = m.first(x, h[:, :6])
    two = m.second(torch.relu(m.norm(one)), h[:, 6:])
    return two, torch.cat([one, two], 1)


def mixed_cells(m: Any, x: Any, h: Any) -> Any:
    """What is in front of the second cell uses its state of the timestep before."""
    one = m.first(x, h[:, :6])
    two = m.second(torch.relu(m.norm(one)) + h[:, 6:], h[:, 6:])
    return two, torch.cat([one, two], 1)


@pytest.mark.parametrize(("run", "how"), [(two_cells, AT_ONCE), (mixed_cells, INSIDE)])
def test_cells_that_share_a_state_run_at_once_unless_something_else_uses_it(run: Any, how: str) -> None:
    cells = {"first": nn.GRUCell(4, 6), "second": nn.GRUCell(6, 6), "norm": nn.LayerNorm(6)}
    made = convert(StepSpec(of(run, **cells), {"x": torch.randn(2, 4)}, {"h": torch.zeros(1, 12)}), name="two")
    _, report = verify_model(made, long_steps=100)

    assert report.chunk is not None
    assert (report.chunk.chunk, report.chunk.why) == ("dynamic", how)
