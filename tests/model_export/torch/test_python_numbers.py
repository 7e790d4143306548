"""What a module computes in Python of lengths and places is followed to any length, or refused with its line."""

from __future__ import annotations

import cProfile
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert
from stepwell_export.torch.axis_inference import Sequences
from stepwell_export.torch.checks import prepared
from stepwell_export.torch.noted_code import is_of_torch
from stepwell_export.torch.python_numbers import PythonNumbers
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch

F = torch.nn.functional


def spec_of(run: Callable[..., Any]) -> Any:
    return whole(of(run, rnn=nn.LSTM(4, 5, batch_first=True), gain=nn.Linear(1, 1), schedule=[1.0] * 3000 + [0.5]))


def padded_by(count: Callable[[Any], int]) -> Callable[..., Any]:
    """Return a module that pads its sequences in front by a number of zeros, none for short ones."""

    def run(m: Any, x: Any) -> Any:
        return m.rnn(F.pad(x, (0, 0, count(x), 0))[:, : x.shape[1]])[0]

    return run


def halved_where(flag: Callable[[Any, int, int], Any]) -> Callable[..., Any]:
    """Return a module with a loop, whose state is halved at some timesteps, none of the first thousand."""

    def run(m: Any, x: Any) -> Any:
        h, found = torch.zeros(x.shape[0], 4), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            if flag(m, t, x.shape[1]):
                h = h * 0.5
            found.append(h)
        return torch.stack(found, 1)

    return run


def numbers_of(run: Callable[..., Any]) -> PythonNumbers:
    spec = spec_of(run)
    return PythonNumbers(Sequences(prepared(spec.module), spec.inputs, 1))


PADDED: dict[str, Callable[[Any], int]] = {
    "a root": lambda x: int(math.sqrt(x.shape[1]) / 70),
    "a logarithm": lambda x: int(math.log10(x.shape[1]) / 4),
    "a shift": lambda x: x.shape[1] >> 12,
    "a square": lambda x: x.shape[1] * x.shape[1] // 9_000_000,
    "two divisions": lambda x: x.shape[1] // 64 // 64,
    "a power": lambda x: int(x.shape[1] ** 0.5 / 70),
    "NumPy": lambda x: int(np.sqrt(x.shape[1]) / 70),
    "a tensor": lambda x: int(torch.tensor(float(x.shape[1])).sqrt() / 70),
    "all numbers": lambda x: int(math.sqrt(x.numel()) / 7000),
    "bytes": lambda x: x.nbytes >> 26,
    "a stride": lambda x: int(math.sqrt(x.contiguous().stride(0)) / 200),
    "digits": lambda x: len(str(x.shape[1])) // 5,
}


@pytest.mark.parametrize("what", PADDED)
def test_a_size_that_is_computed_in_another_way_than_by_sums_is_refused(what: str) -> None:
    assert "test_python_numbers.py" in str(numbers_of(padded_by(PADDED[what])).place)


HALVED: dict[str, Callable[[Any, int, int], Any]] = {
    "a square": lambda m, t, n: t * t > 9_000_000,
    "a root": lambda m, t, n: math.sqrt(t) > 70,
    "a shift": lambda m, t, n: t >> 12,
    "digits": lambda m, t, n: f"{t}".endswith("2999"),
    "bits": lambda m, t, n: t.bit_length() > 11,
    "rounding": lambda m, t, n: round(t / 6001),
    "a remainder": lambda m, t, n: t % 3001 == 3000,
    "a table": lambda m, t, n: m.schedule[t] < 1,
    "a dictionary": lambda m, t, n: {4001: True}.get(t),
    "a dictionary of pairs": lambda m, t, n: {(i, 0): i > 3000 for i in range(5000)}[t, 0],
    "a set": lambda m, t, n: t in {3969},
    "a method": lambda m, t, n: t.__gt__(50 * 60),
    "a fraction": lambda m, t, n: Fraction(t, 50 * 60) > 1,
    "pairs": lambda m, t, n: (t, 0) > (50 * 60, 0),
    "the whole length": lambda m, t, n: n * n > 9_000_000,
}


@pytest.mark.parametrize("what", HALVED)
def test_a_place_that_is_computed_in_another_way_than_by_sums_is_refused(what: str) -> None:
    assert "test_python_numbers.py" in str(numbers_of(halved_where(HALVED[what])).place)


def a_counter(m: Any, x: Any) -> Any:
    h, found, count = torch.zeros(x.shape[0], 4), [], 0
    for now in x.unbind(1):
        h = 0.9 * h + now * (0.5 if count * count > 9_000_000 else 1)
        found.append(h)
        count += 2
    return torch.stack(found, 1)


def a_growing_factor(m: Any, x: Any) -> Any:
    h, found, gain = torch.zeros(x.shape[0], 4), [], 1.0
    for now in x.unbind(1):
        gain *= 1.001
        h = 0.9 * h + now * min(gain, 1.5)
        found.append(h)
    return torch.stack(found, 1)


def a_tensor_of_the_place(m: Any, x: Any) -> Any:
    h, found = torch.zeros(x.shape[0], 4), []
    for t in range(x.shape[1]):
        h = 0.9 * h + x[:, t] * torch.where(torch.tensor(float(t)) ** 2 > 9e6, 0.5, 1.0)
        found.append(h)
    return torch.stack(found, 1)


def a_weight_by_the_place(m: Any, x: Any) -> Any:
    h, found = torch.zeros(x.shape[0], 4), []
    for t in range(x.shape[1]):
        h = 0.9 * h + x[:, t] * torch.where(m.gain.weight * t > 1e6, 0.5, 1.0)
        found.append(h)
    return torch.stack(found, 1)


def a_table_beside(m: Any, x: Any) -> Any:
    h, found = torch.zeros(x.shape[0], 4), []
    for now, gain in zip(x.unbind(1), m.schedule):  # noqa: B905
        h = 0.9 * h + now * gain
        found.append(h)
    return torch.stack(found, 1)


def a_table_in_turn(m: Any, x: Any) -> Any:
    h, found, gains = torch.zeros(x.shape[0], 4), [], itertools.cycle(m.schedule)
    for now in x.unbind(1):
        h = 0.9 * h + now * next(gains)
        found.append(h)
    return torch.stack(found, 1)


@pytest.mark.parametrize(
    "run", [a_table_beside, a_table_in_turn, a_counter, a_growing_factor, a_tensor_of_the_place, a_weight_by_the_place]
)
def test_numbers_that_a_loop_computes_of_the_place_are_refused(run: Any) -> None:
    assert "test_python_numbers.py" in str(numbers_of(run).place)


def by_a_layer_of_torch(m: Any, x: Any) -> Any:
    return m.projected(padded_by(PADDED["a root"])(m, x[..., :4]))[0]


@pytest.mark.parametrize(
    "run",
    [padded_by(PADDED["a root"]), padded_by(PADDED["a stride"]), halved_where(HALVED["a root"]), by_a_layer_of_torch],
)
def test_a_module_that_cannot_be_followed_is_not_written_in_any_way(run: Any) -> None:
    spec = whole(of(run, rnn=nn.LSTM(4, 5, batch_first=True), projected=nn.LSTM(5, 6, proj_size=3, batch_first=True)))

    with pytest.raises(RefusedModelError, match=r"cannot be followed to longer sequences \(test_python_numbers.py"):
        convert(spec, name="unclear")


def test_a_function_without_source_in_a_loop_is_refused() -> None:
    home: dict[str, Any] = {"torch": torch}
    exec(
        "class M(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        h = x[:, 0] * 0\n"
        "        out = []\n"
        "        for t in range(x.shape[1]):\n"
        "            h = 0.9 * h + x[:, t] * (0.5 if t * t > 9_000_000 else 1)\n"
        "            out.append(h)\n"
        "        return torch.stack(out, 1)\n",
        home,
    )

    with pytest.raises(RefusedModelError, match="as its source cannot be read"):
        convert(whole(home["M"]()), name="unread")


FOLLOWED: dict[str, Callable[[Any, int, int], Any]] = {
    "the first": lambda m, t, n: t == 0,
    "the last but one": lambda m, t, n: t == n - 2,
    "layers by turns": lambda m, t, n: sum(i % 2 for i in range(4)) == 1,
    "halves of a multiple": lambda m, t, n: (2 * t + 2) // 2 == 0,
    "rounded as it is": lambda m, t, n: math.ceil(t / 1) < 0,
    "a shape that is there": lambda m, t, n: (t, n) is None,
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_sums_comparisons_and_what_is_the_same_at_all_timesteps_are_followed(what: str) -> None:
    assert numbers_of(halved_where(FOLLOWED[what])).place is None


def doubled(m: Any, x: Any) -> Any:
    far = 1
    while far < x.shape[1]:
        x = torch.cat([x[:, :far], x[:, far:] + x[:, :-far]], 1)
        far *= 2
    return x


def test_a_scan_that_doubles_its_stride_is_followed() -> None:
    assert numbers_of(doubled).place is None


TURNING: dict[str, Callable[[Any, int, int], Any]] = {
    "a comparison": lambda m, t, n: t / 50 / 50 >= 1,
    "the larger of two": lambda m, t, n: max(t - 50 * 50, 0),
    "a number that is none": lambda m, t, n: not t - 50 * 50,
    "a range that is empty": lambda m, t, n: len(range(50 * 50, n)),
    "a condition of a list": lambda m, t, n: [1 for _ in range(1) if t - 50 * 50],
    "the rest of a list": lambda m, t, n: list(range(n))[50 * 50 :],
}


@pytest.mark.parametrize("what", TURNING)
def test_the_length_at_which_a_decision_turns_over_is_found_from_what_is_compared(what: str) -> None:
    numbers = numbers_of(halved_where(TURNING[what]))

    assert numbers.place is None
    assert not {2500, 2501}.isdisjoint(numbers.lengths)


def padded_to_a_whole_number_of_frames(m: Any, x: Any) -> Any:
    ideal = (math.ceil((x.shape[1] - 3 + 2) / 1 + 1) - 1) * 1 + 1
    return m.rnn(F.pad(x, (0, 0, 2, ideal - x.shape[1]))[:, : x.shape[1]])[0]


def test_a_padding_of_the_length_that_is_always_zero_is_none() -> None:
    graph, report = verify_model(convert(spec_of(padded_to_a_whole_number_of_frames), name="padded"), long_steps=100)

    assert not report.weak
    assert [state.shape for state in StepModel(graph).manifest.states][:1] == [[2, 4]]


def weighted_by(take: Callable[[Any, int], Any]) -> Callable[..., Any]:
    """Return a module with a loop, whose timesteps have a weight from a table that is 1 for the first 2,500."""

    def run(m: Any, x: Any) -> Any:
        table = torch.ones(5000)
        table[2500:] = 2.0
        h, found = torch.zeros(x.shape[0], 4), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t] * take(table, t)
            found.append(h)
        return torch.stack(found, 1)

    return run


OF_A_TABLE: dict[str, Callable[[Any, int], Any]] = {
    "a place": lambda table, t: table[t],
    "from the end": lambda table, t: table[-1 - t],
    "a place of a view": lambda table, t: table[None][:, t],
    "a slice": lambda table, t: table[t : t + 1],
    "a piece": lambda table, t: table.unbind(0)[t],
    "select": lambda table, t: table.select(0, t),
    "select as a function": lambda table, t: torch.select(table, 0, t),
    "narrow": lambda table, t: table.narrow(0, t, 1),
    "roll": lambda table, t: table.roll(-t)[0],
}


@pytest.mark.parametrize("what", OF_A_TABLE)
def test_what_stands_in_a_table_for_later_timesteps_is_refused(what: str) -> None:
    found = numbers_of(weighted_by(OF_A_TABLE[what]))

    with pytest.raises(RefusedModelError, match=r"cannot be followed to longer sequences \(test_python_numbers.py"):
        found.check()


def test_a_table_of_as_many_entries_as_timesteps_is_followed() -> None:
    def run(m: Any, x: Any) -> Any:
        decay = torch.exp(-torch.arange(x.shape[1]) / 10.0)
        return torch.stack([x[:, t] * decay[t] for t in range(x.shape[1])], 1)

    assert numbers_of(run).place is None


def test_the_functions_of_a_module_are_as_before_afterwards() -> None:
    run = halved_where(lambda m, t, n: t == 0)
    before = run.__code__

    numbers_of(run)

    assert run.__code__ is before
    assert "__stepwell_note__" not in globals()


def test_a_module_is_followed_under_a_profiler_which_goes_on_afterwards() -> None:
    profiler = cProfile.Profile()
    with profiler:
        numbers_of(lambda m, x: m.rnn(x)[0])
        math.log2(8)

    assert any("math.log2" in str(entry.code) for entry in profiler.getstats())


def test_a_function_of_a_package_whose_name_begins_with_torch_is_none_of_torch() -> None:
    def scaled(x: Any) -> Any:
        return x

    scaled.__module__ = "torchrl.modules"

    assert is_of_torch(torch.relu)
    assert not is_of_torch(scaled)
