"""Modules as libraries have them: inputs in tuples and dicts, a trainer that is still attached, checkpoints."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.export_sources import load_source
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_parts import nn, of, torch

pytestmark = pytest.mark.torch


def names(spec: StepSpec) -> tuple[list[str], list[str], list[str]]:
    """Export a module; return the names of its inputs, states and outputs."""
    graph, _ = verify_model(convert(spec, name="m"), long_steps=70)
    manifest = StepModel(graph).manifest
    return (
        [given.name for given in manifest.inputs],
        [state.input for state in manifest.states],
        [output.name for output in manifest.outputs],
    )


def rnn() -> Any:
    return nn.GRU(6, 5, batch_first=True)


def test_tensors_in_a_tuple_are_inputs_by_their_places() -> None:
    """A forecaster of time series takes one tuple: the past, covariates, and perhaps static ones."""

    def run(m: Any, given: Any) -> Any:
        past, covariates, static = given
        assert static is None
        return m.rnn(torch.cat([past, covariates], -1))[0]

    example = (torch.randn(2, 9, 4), torch.randn(2, 9, 2), None)

    found = names(StepSpec(of(run, rnn=rnn()), inputs={"x": example}, time_axis=1))

    assert found == (["x_0", "x_1"], ["rnn.h"], ["output"])


def test_tensors_in_a_dict_are_inputs_by_their_keys() -> None:
    def run(m: Any, batch: Any) -> Any:
        h, _ = m.rnn(torch.cat([batch["target"], batch["known"]], -1))
        return {"loc": h[..., :1], "scale": nn.functional.softplus(h[..., 1:2])}

    example = {"target": torch.randn(2, 9, 4), "known": torch.randn(2, 9, 2)}

    found = names(StepSpec(of(run, rnn=rnn()), inputs={"batch": example}, time_axis=1))

    assert found == (["target", "known"], ["rnn.h"], ["loc", "scale"])


def test_states_in_a_tuple_are_states_by_their_places() -> None:
    def run(m: Any, x: Any, hc: Any) -> Any:
        hc = m.cell(x, hc)
        return hc[0], hc

    spec = StepSpec(
        of(run, cell=nn.LSTMCell(4, 5)),
        inputs={"x": torch.zeros(2, 4)},
        states={"hc": (torch.zeros(1, 5), torch.zeros(1, 5))},
    )

    assert names(spec) == (["x"], ["hc_0", "hc_1"], ["output"])


class Attached(nn.Module):
    """A module with what a training framework leaves in it."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.rnn = rnn()
        self._trainer = threading.Lock()  # a trainer holds some
        self.logger = threading.Lock()
        self._uses = uses

    def forward(self, x: Any) -> Any:
        if self._trainer is not None and self._uses:
            return x
        if self._uses:
            self.logger.acquire()
        return self.rnn(x)[0]


def test_a_trainer_is_left_out_of_the_copy() -> None:
    module = Attached(uses=False)

    found = names(StepSpec(module, inputs={"x": torch.randn(2, 9, 6)}, time_axis=1))

    assert found == (["x"], ["rnn.h"], ["output"])
    assert module._trainer is not None


def test_an_attribute_that_cannot_be_copied_is_named_if_it_is_used() -> None:
    with pytest.raises(RefusedModelError, match="`forward` uses 'logger', which cannot be copied"):
        convert(StepSpec(Attached(uses=True), inputs={"x": torch.randn(2, 9, 6)}, time_axis=1), name="m")


def test_a_checkpoint_is_refused_with_the_function_to_write(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"")

    with pytest.raises(RefusedModelError, match="does not describe the module") as caught:
        load_source(str(path))

    assert "load_from_checkpoint" in caught.value.fix
