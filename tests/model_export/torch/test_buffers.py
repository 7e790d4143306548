"""Modules that keep their states in buffers, and TorchScript files: what changes is a state, from where it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from torch import Tensor, nn  # noqa: E402

from stepwell_export.exporter import export_source  # noqa: E402
from stepwell_export.runtime.errors import ManifestError, RefusedModelError  # noqa: E402
from stepwell_export.runtime.manifest import Array  # noqa: E402
from stepwell_export.runtime.step_model import StepModel  # noqa: E402
from stepwell_export.spec import StepSpec  # noqa: E402
from stepwell_export.torch.buffers import convert_buffers  # noqa: E402
from stepwell_export.verify.runners import stepped  # noqa: E402


class Policy(nn.Module):
    """A walking policy with its LSTM's states in buffers."""

    def __init__(self, taken: int = 5, given: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory = nn.LSTM(taken, 4)
        self.actor = nn.Sequential(nn.Linear(4, given), nn.ELU())
        self.register_buffer("hidden_state", torch.full((1, 1, 4), 0.3))
        self.register_buffer("cell_state", torch.zeros(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        out, (h, c) = self.memory(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.actor(out.squeeze(0))


class Parts(nn.Module):
    """Two modules with states of their own, and an attribute that is written before it is read."""

    def __init__(self, first: Any = None) -> None:
        super().__init__()
        self.a, self.b = nn.Module(), nn.ModuleList([nn.Module(), nn.Module()])
        self.a.register_buffer("h", torch.zeros(1, 2))
        self.b[1].h = torch.ones(3)
        self.scratch = torch.zeros(1, 2)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if self.first is not None:
            self.first += 1
        self.scratch = 2 * x
        self.a.h = 0.5 * self.a.h + self.scratch
        self.b[1].h.copy_(torch.roll(self.b[1].h, 1) * 0.9)
        return self.a.h + self.b[1].h[:2]


def as_users_run(module: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        return np.stack([module(torch.from_numpy(row[None]))[0].numpy() for row in x])


X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)


def test_buffers_that_change_are_states_and_rows_run_together(tmp_path: Path) -> None:
    policy = Policy().eval()
    export_source(StepSpec(policy, inputs={"obs": torch.zeros(1, 5)}, states="buffers"), tmp_path / "p.onnx")
    model = StepModel(tmp_path / "p.onnx")

    found = stepped(model, {"obs": np.stack([X, X[::-1]])})[0]

    assert [(state.input, state.shape) for state in model.manifest.states] == [
        ("hidden_state", [1, 4]), ("cell_state", [1, 4])
    ]  # fmt: skip
    assert np.allclose(model.manifest.states[0].initial(), 0.3)
    assert model.batched
    assert torch.equal(policy.hidden_state, torch.full((1, 1, 4), 0.3))
    np.testing.assert_allclose(found[model.manifest.outputs[0].name][0], as_users_run(policy, X), atol=1e-6)


def test_a_torchscript_file_runs_as_it_is_published(tmp_path: Path) -> None:
    torch.jit.script(Policy()).save(str(tmp_path / "policy.pt"))
    with pytest.raises(RefusedModelError, match="does not say what shapes") as caught:
        export_source(tmp_path / "policy.pt", tmp_path / "p.onnx")
    assert "--example x=1x47" in caught.value.fix

    export_source(tmp_path / "policy.pt", tmp_path / "p.onnx", examples={"obs": [1, 5]})
    model = StepModel(tmp_path / "p.onnx")
    found = stepped(model, {"obs": X[None]})[0]

    assert [state.input for state in model.manifest.states] == ["hidden_state", "cell_state"]
    np.testing.assert_allclose(found[model.manifest.outputs[0].name][0], as_users_run(Policy(), X), atol=1e-6)


def test_states_are_named_by_their_paths_and_what_is_written_first_is_none() -> None:
    found = convert_buffers(Parts(), {"x": torch.zeros(1, 2)}, name="m")

    states = {state.input: (state.shape, state.batch_axis) for state in found.manifest.states}
    assert states == {"a.h": ([2], 0), "b.1.h": ([3], None)}
    assert found.manifest.batch.mode == "single"


def test_attributes_of_torchscript_are_states_and_numbers_are_refused() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = torch.full((1, 3), 0.2)

        def forward(self, x: Tensor) -> Tensor:
            self.h = torch.tanh(x + self.h)
            return 2 * self.h

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return x * self.count

    found = convert_buffers(torch.jit.script(Kept()), {"x": torch.zeros(1, 3)}, name="m")
    assert [(state.input, state.initial().tolist()[0]) for state in found.manifest.states] == [
        ("h", pytest.approx(0.2))
    ]
    with pytest.raises(RefusedModelError, match="changes the number 'count'"):
        convert_buffers(torch.jit.script(Counting()), {"x": torch.zeros(1, 3)}, name="m")


def test_a_python_number_that_changes_is_refused_by_name() -> None:
    with pytest.raises(RefusedModelError, match="changes the number 'first'"):
        convert_buffers(Parts(first=1), {"x": torch.zeros(1, 2)}, name="m")


def test_a_module_that_keeps_nothing_is_refused_and_buffers_are_proposed() -> None:
    with pytest.raises(RefusedModelError, match="changes none of its buffers"):
        convert_buffers(nn.Linear(2, 2), {"x": torch.zeros(1, 2)}, name="m")
    with pytest.raises(ManifestError) as caught:
        StepSpec(Policy(), inputs={"x": torch.zeros(1, 5)})
    assert 'states="buffers"' in caught.value.fix


class Private(nn.Module):
    """States whose names begin with `_`, next to one whose name does not."""

    def __init__(self, count: int | None = None) -> None:
        super().__init__()
        self._h, self.g = torch.full((1, 2), 0.5), torch.zeros(1, 2)
        self._n = count

    def forward(self, x: Tensor) -> Tensor:
        if self._n is not None:
            self._n += 1
        self._h, self.g = 0.5 * self._h + x, 0.9 * self.g + x
        return self._h * self.g


def test_attributes_that_begin_with_an_underscore_are_states(tmp_path: Path) -> None:
    export_source(StepSpec(Private(), inputs={"x": torch.zeros(1, 2)}, states="buffers"), tmp_path / "p.onnx")
    model = StepModel(tmp_path / "p.onnx")

    found = stepped(model, {"x": X[None, :, :2]})[0]

    assert [state.input for state in model.manifest.states] == ["_h", "g"]
    np.testing.assert_allclose(found[model.manifest.outputs[0].name][0], as_users_run(Private(), X[:, :2]), atol=1e-6)


def test_a_number_that_begins_with_an_underscore_is_refused() -> None:
    with pytest.raises(RefusedModelError, match="changes the number '_n'"):
        convert_buffers(Private(0), {"x": torch.zeros(1, 2)}, name="m")


def test_a_torchscript_attribute_that_changes_in_place_is_a_state(tmp_path: Path) -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = torch.full((1, 5), 0.2)
            self.factor = torch.full((1, 5), 0.9)

        def forward(self, x: Tensor) -> Tensor:
            self.h.mul_(self.factor).add_(x)
            return 2 * self.h

    torch.jit.script(Leaky()).save(str(tmp_path / "leaky.pt"))
    export_source(tmp_path / "leaky.pt", tmp_path / "p.onnx", examples={"x": [1, 5]})
    model = StepModel(tmp_path / "p.onnx")
    found = stepped(model, {"x": X[None]})[0]

    assert [(state.input, state.initial().tolist()[0]) for state in model.manifest.states] == [
        ("h", pytest.approx(0.2))
    ]  # fmt: skip
    np.testing.assert_allclose(found[model.manifest.outputs[0].name][0], as_users_run(Leaky(), X), atol=1e-5)


class Listed(nn.Module):
    """A state in a list and one in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.hs = [torch.zeros(1, 2), torch.ones(1, 2)]
        self.register_buffer("g", torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.hs[0] = 0.5 * self.hs[0] + x
        self.g.mul_(0.5).add_(x)
        return self.hs[0] + self.g


class Keyed(Listed):
    """A state in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"h": torch.zeros(1, 2)}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["h"].mul_(0.5).add_(x)
        self.g.mul_(0.5).add_(x)
        return self.kept["h"] + self.g


class Late(Listed):
    """A state that is None at first, and one that is written before it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.h = self.shown = None

    def forward(self, x: Tensor) -> Tensor:
        self.shown = 2 * x
        self.h = self.shown if self.h is None else 0.5 * self.h + self.shown
        self.g.mul_(0.5).add_(x)
        return self.h + self.g


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Listed(), r"changes 'hs\[0\]' in `forward`"),
        (torch.jit.script(Listed()), r"changes 'hs\[0\]' in `forward`"),
        (Keyed(), r"changes \"kept\['h'\]\" in `forward`"),
        (Late(), "keeps 'h', which is no tensor until `forward` has run"),
    ],
)
def test_a_state_that_is_no_tensor_of_its_own_is_refused_by_its_path(module: Any, words: str) -> None:
    with pytest.raises(RefusedModelError, match=words):
        convert_buffers(module, {"x": torch.ones(1, 2)}, name="m")
