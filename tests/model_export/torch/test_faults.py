"""Modules that were once refused, or refused for the wrong reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import ParityError, RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_loops import associative_scan
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch

F = torch.nn.functional


def by_keyword() -> StepSpec:
    """The initial state is named before the input."""
    parts = {"g": nn.GRU(4, 6, batch_first=True), "h0": nn.Parameter(torch.randn(1, 1, 6))}
    return whole(of(lambda m, x: m.g(hx=m.h0.expand(1, x.shape[0], 6).contiguous(), input=x)[0], **parts))


def long_kernel() -> StepSpec:
    """It takes no sequence of fewer than 16 timesteps."""
    parts = {"conv": nn.Conv1d(4, 6, 16), "g": nn.GRU(6, 6, batch_first=True)}
    return whole(of(lambda m, x: m.g(m.conv(x.mT).mT)[0][:, -1], **parts), 2, 30, 4)


@pytest.mark.parametrize("build", [by_keyword, long_kernel])
def test_a_module_that_can_be_stepped_is_exported(build: Callable[[], StepSpec]) -> None:
    _, report = verify_model(convert(build(), name="module"), long_steps=100)

    assert report.parity.max_abs <= 1e-5


def test_a_layer_that_is_called_twice_with_the_same_has_one_state() -> None:
    """Its weights are in the file once."""
    made = convert(
        whole(of(lambda m, x: m.g(x)[0] + m.g(x)[0].tanh(), g=nn.GRU(4, 6, batch_first=True))), name="module"
    )

    assert [state.shape for state in made.manifest.states] == [[6]]
    assert [list(one.dims) for one in made.proto.graph.initializer].count([1, 18, 6]) == 1


def test_a_module_that_takes_many_timesteps_together_is_not_said_to_take_one_length() -> None:
    parts = {"e": nn.Conv1d(1, 16, 16, 8), "d": nn.ConvTranspose1d(16, 1, 16, 8)}
    spec = whole(of(lambda m, x: m.d(m.e(x).relu()), **parts), 2, 1, 160, time_axis=2)

    with pytest.raises(RefusedModelError, match="has stride 8 over time") as caught:
        convert(spec, name="strided")

    assert "timesteps alone" not in caught.value.problem


@pytest.mark.parametrize("shape", [(0, 7, 4)])
def test_an_example_without_numbers_is_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedModelError, match=r"'x' has shape .*, without a number"):
        convert(whole(of(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(4, 4)), *shape), name="empty")


def test_an_example_of_no_stream_is_refused_by_name() -> None:
    spec = StepSpec(nn.GRUCell(4, 4), inputs={"x": torch.zeros(0, 4)}, states={"h": torch.zeros(1, 4)})

    with pytest.raises(RefusedModelError, match=r"'x' has shape .*, without a number"):
        convert(spec, name="empty")


FROM_SIZES: dict[str, Callable[[Any], Any]] = {
    "number_of_timesteps": lambda x: torch.full((x.shape[0],), x.shape[1]),
    "share_of_a_row": lambda x: torch.ones(x.shape[0]) / x.shape[0],
    "numbers_in_all": lambda x: torch.zeros(x.shape[0]) + x.numel(),
}


@pytest.mark.parametrize("name", FROM_SIZES)
def test_an_output_that_follows_from_sizes_alone_is_refused_by_name(name: str) -> None:
    spec = whole(of(lambda m, x: (m.rnn(x)[0], FROM_SIZES[name](x)), rnn=nn.GRU(4, 4, batch_first=True)))

    with pytest.raises(RefusedModelError, match="Output 'output_1' follows from the sizes of the inputs alone"):
        convert(spec, name="sizes")


def test_the_position_of_each_timestep_is_an_answer() -> None:
    def run(m: Any, x: Any) -> Any:
        return m.rnn(x)[0], torch.arange(x.shape[1]).expand(x.shape[0], -1)

    made = convert(whole(of(run, rnn=nn.GRU(4, 4, batch_first=True))), name="positions")

    assert len(made.manifest.outputs) == 2


@pytest.mark.parametrize(
    ("batch_first", "time_axis", "advice"),
    [(True, 0, "`time_axis=1`"), (False, 1, "`time_axis=0`")],
)
def test_a_wrong_time_axis_is_answered_with_the_right_one(batch_first: bool, time_axis: int, advice: str) -> None:
    spec = whole(of(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 6, batch_first=batch_first)), time_axis=time_axis)

    with pytest.raises(RefusedModelError, match="runs over the batch axis") as caught:
        convert(spec, name="axis")

    assert advice in caught.value.fix


def test_sequences_are_drawn_in_the_range_of_each_number_of_the_example() -> None:
    low, high = torch.tensor([-1000.0, 0.0, 5.0]), torch.tensor([-990.0, 1e-6, 5.0])
    example = low + (high - low) * torch.rand(2, 40, 3)
    made = convert(whole_of(example), name="ranges")
    assert made.samplers is not None

    drawn = made.samplers["random"](np.random.default_rng(0), 9, 64)["x"].reshape(-1, 3)

    assert (example.flatten(0, 1).min(0).values.numpy()[:2] <= drawn.min(0)[:2]).all()
    assert (drawn.max(0)[:2] <= example.flatten(0, 1).max(0).values.numpy()[:2]).all()
    assert drawn[:, 0].std() > 2
    assert drawn[:, 2].std() > 1


def test_an_example_of_zeros_has_no_range_and_normal_numbers_are_drawn() -> None:
    made = convert(whole_of(torch.zeros(2, 10, 3)), name="zeros")
    assert made.samplers is not None

    assert 0.9 < made.samplers["random"](np.random.default_rng(0), 9, 64)["x"].std() < 1.1


def whole_of(example: Any) -> StepSpec:
    module = of(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(3, 4, batch_first=True))
    return StepSpec(module, inputs={"x": example}, time_axis=1)


class Frame:
    """What is used of a pandas data frame."""

    columns = ("up", "down", "wind")

    def to_numpy(self) -> Any:
        return np.random.default_rng(0).normal(size=(20, 3))


def test_the_columns_of_a_data_frame_are_the_labels_of_the_input(tmp_path: Path) -> None:
    done = export_source(whole_of(Frame()), tmp_path / "frame.onnx")

    [spec] = StepModel(done.path).manifest.model_dump()["inputs"]
    assert (spec["name"], spec["labels"]) == ("x", ["up", "down", "wind"])


def test_the_mask_of_an_associative_scan_has_one_element_for_each_stream() -> None:
    """It shows whether the stream has begun, however much the scan itself carries."""

    def run(m: Any, x: Any) -> Any:
        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        keep = torch.sigmoid(m.keep(x)).unflatten(-1, (12, 8))
        return associative_scan(combine, (keep, m.input(x).unflatten(-1, (12, 8))), 1)[1].flatten(2)

    made = convert(whole(of(run, keep=nn.Linear(4, 96), input=nn.Linear(4, 96))), name="scan")

    assert sorted(state.shape for state in made.manifest.states) == [[1, 1], [12, 8]]
    assert not verify_model(made, long_steps=100)[1].weak


def test_a_refusal_from_within_a_module_ends_the_export() -> None:
    """It is no failure of the exporter that traces the module, so no other one is tried."""

    def run(m: Any, x: Any) -> Any:
        if torch.jit.is_tracing():
            raise RefusedModelError("The module cannot be traced.", fix="Give another.")
        return (m.conv(x.mT).mT).cumsum(1)

    with pytest.raises(RefusedModelError, match="cannot be traced"):
        convert(whole(of(run, conv=nn.Conv1d(4, 4, 1))), name="refuses")


def test_a_deviation_over_time_is_refused_with_what_to_write() -> None:
    with pytest.raises(RefusedModelError, match="is known after the last timestep only") as caught:
        convert(whole(of(lambda _, x: x.std(1))), name="module")

    assert "the mean of the squares less the square of the mean" in caught.value.fix

    spec = whole(of(lambda _, x: ((x * x).mean(1) - x.mean(1) ** 2).clamp(min=1e-6).sqrt()))

    assert verify_model(convert(spec, name="module"), long_steps=100)[1].parity.max_abs <= 1e-5


def test_weights_that_are_divided_by_a_number_of_keys_are_refused_with_what_to_write() -> None:
    """There is none at the first timestep."""

    def run(m: Any, x: Any) -> Any:
        counts = (x > 2).float()
        return (m.score(x).softmax(1) * counts * x).sum(1) / counts.sum(1)

    with pytest.raises(ParityError) as caught:
        verify_model(convert(whole(of(run, score=nn.Linear(4, 1))), name="module"), long_steps=0)

    assert "which divides by 0. Let the divisor be a positive number where it is 0" in caught.value.problem


def test_the_place_of_an_extreme_is_in_the_sequence_where_all_are_masked() -> None:
    """At the beginning of a stream, the numbers in front of it are as small as those that a mask leaves."""

    def run(m: Any, x: Any) -> Any:
        return x.masked_fill(x < 0.4, -torch.inf)[:, -4:].argmax(1)

    _, report = verify_model(convert(whole(of(run)), name="module"), long_steps=100)

    assert report.parity.max_abs == 0


def test_a_module_without_an_answer_for_one_timestep_is_refused_with_the_reason() -> None:
    """The mean over pairs of neighbours is one over none then."""
    spec = whole(of(lambda _, x: (x[:, 1:] * x[:, :-1] < 0).float().mean(1)))

    with pytest.raises(ParityError, match="The original has no number there, as a mean of no timesteps") as caught:
        verify_model(convert(spec, name="module"), long_steps=0)

    assert "torch.nan_to_num(x[:, 7:].mean(1))" in caught.value.fix


def test_a_variance_of_the_last_timesteps_is_refused_with_what_to_write() -> None:
    """That of one timestep is NaN in PyTorch: neither a mean of none nor a window that is too short is the reason."""
    spec = whole(of(lambda _, x: x[:, -3:].var(1)))

    with pytest.raises(ParityError, match="or PyTorch's variance of one") as caught:
        verify_model(convert(spec, name="module"), long_steps=0)

    assert "x.var(1, correction=0)" in caught.value.fix
    spec = whole(of(lambda _, x: x[:, -3:].var(1, correction=0)))
    assert verify_model(convert(spec, name="module"), long_steps=0)[1].parity.max_abs <= 1e-5


@pytest.mark.parametrize("read", ["recurrence", "deviation"])
def test_a_window_that_is_not_padded_is_refused_with_what_to_write(read: str) -> None:
    """At the first timesteps the module runs over fewer of them; the layers make other values of the zeros in front."""

    def run(m: Any, x: Any) -> Any:
        last = x[:, -5:]
        if read == "recurrence":
            return m.rnn(last)[0][:, -1]
        if read == "convolution":
            return m.conv(last.mT).amax(2)
        return (m.score(last).softmax(1) * last).sum(1) if read == "attention" else torch.nan_to_num(last.std(1))

    parts = {"rnn": nn.GRU(4, 3, batch_first=True), "conv": nn.Conv1d(4, 3, 3, padding=1), "score": nn.Linear(4, 1)}
    with pytest.raises(ParityError) as caught:
        verify_model(convert(whole(of(run, **parts)), name="module"), long_steps=0)

    assert "takes the last 5 timesteps, x[:, -5:], and a stream has fewer before timestep 5" in caught.value.problem
    assert "F.pad(x, (0, 0, 4, 0))[:, -5:] in PyTorch" in caught.value.fix


def test_a_network_over_a_window_is_exported_where_it_begins_with_the_last_timesteps() -> None:
    """Convolutions with any padding and strides, and dense layers: the past of the window is the only state."""

    def run(m: Any, x: Any) -> Any:
        return m.head(m.pool(m.conv(x[:, -8:].mT).relu()).flatten(1))

    parts = {"conv": nn.Conv1d(4, 6, 3, padding=1), "pool": nn.MaxPool1d(2), "head": nn.Linear(24, 2)}
    made = convert(whole(of(run, **parts), 2, 12, 4), name="module")
    _, report = verify_model(made, long_steps=100)

    assert [state.shape for state in made.manifest.states] == [[7, 4]]
    assert report.parity.max_abs <= 1e-5
