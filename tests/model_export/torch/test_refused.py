"""What cannot be stepped is refused by name, with the reason and what to do; and the module stays as it was."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from stepwell_export import StepSpec
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch import StepLayer, convert
from tests.model_export.torch.zoo_parts import nn, of, torch, whole
from tests.model_export.torch.zoo_published import decayed, interleaved

pytestmark = pytest.mark.torch

F = torch.nn.functional


def lstm(**more: Any) -> Any:
    return nn.LSTM(4, 6, **{"batch_first": True, **more})


def stepwise(run: Callable[..., Any], *, state: Any = None, **parts: Any) -> StepSpec:
    """Return a spec of one input `x` (2, 4) and one state `h`, by default (1, 4)."""
    h = torch.zeros(1, 4) if state is None else state
    return StepSpec(of(run, **parts), inputs={"x": torch.randn(2, 4)}, states={"h": h})


class Keeps(nn.Module):
    """Remembers its state by itself, in a buffer or in an attribute."""

    def __init__(self, *, in_buffer: bool) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)
        self.register_buffer("h", torch.zeros(1, 4))
        self.kept: Any = torch.zeros(1, 4)
        self.in_buffer = in_buffer

    def forward(self, x: Any) -> Any:
        before = self.h if self.in_buffer else self.kept
        h = self.cell(x[:, -1], before[:1].expand(x.shape[0], 4))
        if self.in_buffer:
            self.h[:] = h[:1]
        else:
            self.kept = h
        return h


class KeepsWhatFits(nn.Module):
    """Goes on from where the last call ended, if that had as many sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.kept: Any = None

    def forward(self, x: Any) -> Any:
        goes_on = self.kept is not None and self.kept.shape[1] == x.shape[0]
        y, self.kept = self.gru(x, self.kept if goes_on else None)
        return y


class Smoothing(StepLayer):
    """A layer of one's own with state."""

    def initial_states(self) -> dict[str, Any]:
        return {"mean": torch.zeros(1, 4)}

    def step(self, x: Any, *states: Any) -> tuple[Any, ...]:
        mean = 0.9 * states[0] + 0.1 * x
        return mean, mean


def autocast(m: Any, x: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.head(x).float()


def packed(m: Any, x: Any) -> Any:
    lengths = torch.full((x.shape[0],), x.shape[1])
    return nn.utils.rnn.pad_packed_sequence(m.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0])[
        0
    ]


def encoder_decoder(m: Any, x: Any) -> Any:
    return m.decoder(x, m.encoder(x)[1])[0]


def quantised() -> StepSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have another package used
        return whole(torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}))


def delayed_loop(m: Any, x: Any) -> Any:
    h, answers = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.tanh(m.w(x[:, t]) + x[:, max(t - 2, 0)] + m.u(h))
        answers.append(h)
    return torch.stack(answers, dim=1)


def doubling(m: Any, x: Any) -> Any:
    """A running product and sum in log2(T) rounds."""
    a, b, reach = torch.sigmoid(m.w(x)), m.u(x), 1
    while reach < x.shape[1]:
        b = a * F.pad(b, (0, 0, reach, 0))[:, : x.shape[1]] + b
        a = a * F.pad(a, (0, 0, reach, 0), value=1.0)[:, : x.shape[1]]
        reach *= 2
    return b


def doubling_and_joining(m: Any, x: Any) -> Any:
    """The same in another way of writing it, as in Hillis and Steele."""
    decay, total, back = torch.sigmoid(m.w(x)), m.u(x), 1
    while back < x.shape[1]:
        total = torch.cat([total[:, :back], decay[:, back:] * total[:, :-back] + total[:, back:]], 1)
        decay = torch.cat([decay[:, :back], decay[:, back:] * decay[:, :-back]], 1)
        back *= 2
    return total


def tagged_layer(m: Any, x: Any) -> Any:
    """A StepLayer, and a sum over time that it does not carry, in another order for every timestep."""
    return m.own(x) + torch.stack([x[:, : t + 1].flip(1).cumsum(1)[:, -1] for t in range(x.shape[1])], 1)


WHOLE: dict[str, tuple[Callable[[], StepSpec], str]] = {
    "both_ways": (
        lambda: whole(of(lambda m, x: m.rnn(x)[0], rnn=lstm(bidirectional=True))),
        "Layer 'rnn' (LSTM) is bidirectional over time",
    ),
    "batch_for_time": (
        lambda: whole(of(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 6))),
        "'rnn' (LSTM) runs over the batch axis",
    ),
    "packed": (lambda: whole(of(packed, lstm=lstm())), "given a packed sequence"),
    "buffer": (lambda: whole(Keeps(in_buffer=True)), "changes its buffer 'h'"),
    "attribute": (lambda: whole(Keeps(in_buffer=False)), "keeps something from call to call"),
    "attribute_that_fits": (lambda: whole(KeepsWhatFits()), "keeps something from call to call"),
    "bfloat16": (
        lambda: whole(of(autocast, head=nn.Linear(4, 2))),
        "computes in bfloat16 (test_refused.py, line ",
    ),
    "random": (
        lambda: whole(of(lambda m, x: F.dropout(m.lstm(x)[0], 0.5), lstm=lstm())),
        "draws random numbers in eval mode",
    ),
    "shorter": (lambda: whole(nn.Conv1d(4, 4, 3), 2, 4, 9, time_axis=2), "expected one answer per timestep"),
    "no_batch": (lambda: whole(of(lambda m, x: m.lstm(x)[0].mean(0), lstm=lstm())), "expected a batch axis"),
    "one_batch": (lambda: whole(of(lambda m, x: x + m.p, p=nn.Parameter(torch.ones(2, 1, 4)))), "no 3 sequences"),
    "text": (lambda: whole(of(lambda m, x: (m.lstm(x)[0], "done"), lstm=lstm())), "returns str at '1'"),
    "complex": (lambda: whole(of(lambda m, x: torch.fft.fft(x, dim=2), lstm=lstm())), "is complex64"),
    "time_axis": (lambda: whole(nn.Linear(4, 2), time_axis=3), "have shapes {'x': [2, 7, 4]}, and time_axis is 3"),
    "attention": (
        lambda: whole(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, 7, 8),
        "Layer 'self_attn' (MultiheadAttention) attends to timesteps to come",
    ),
    "squeezed": (
        lambda: whole(of(lambda m, x: m.rnn(x)[0].squeeze(), rnn=nn.RNN(4, 1, batch_first=True))),
        "has shape [11] for one sequence and [3, 11] for 3",
    ),
    "one_length": (
        lambda: whole(of(lambda m, x: m.head(x.flatten(1)), head=nn.Linear(28, 2))),
        "takes sequences of 7 timesteps alone",
    ),
    "lazy": (lambda: whole(nn.LazyLinear(4)), "'weight' has no values yet"),
    "half": (lambda: whole(lstm().half()), "'weight_ih_l0' is float16"),
    "meta": (lambda: whole(nn.Linear(4, 4, device="meta")), "'weight' has no values yet"),
    "script": (lambda: whole(torch.jit.script(nn.Linear(4, 4))), "is TorchScript"),
    "quantised": (quantised, "'0' (Linear) is quantised"),
    "function": (lambda: whole(torch.relu), "expected a torch.nn.Module"),
}


def by_length(pad: Callable[[int], int]) -> StepSpec:
    """A module that shifts its sequence by a number that is 0 for short ones."""

    def run(m: Any, x: Any) -> Any:
        length = x.shape[1]
        return m.rnn(F.pad(x, (0, 0, pad(length), 0))[:, :length])[0]

    return whole(of(run, rnn=lstm()))


def nearly_a_scan(combine: Any, elements: Any) -> Any:
    found = interleaved(combine, elements)
    return found if elements[0].shape[1] != 5_000 else [part.roll(1, 1) for part in found]


def rounded_rows(m: Any, x: Any) -> Any:
    heads = m.rnn(x)[0].unflatten(-1, (2, 3)).transpose(1, 2).flatten(0, 1)
    rows = (heads.shape[0] + 1) // 2
    return heads.reshape(rows, 2, -1, 3).transpose(1, 2).reshape(rows, -1, 6)


class KeptMask(nn.Module):
    """Retention, whose mask is made once for each number of timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)
        self.masks: dict[int, Any] = {}

    def forward(self, x: Any) -> Any:
        steps = x.shape[1]
        if steps not in self.masks:
            places = torch.arange(steps)
            self.masks[steps] = torch.tril(0.9 ** (places[:, None] - places))
        return (self.query(x) @ self.key(x).mT * self.masks[steps]) @ x


def in_blocks(m: Any, x: Any) -> Any:
    steps = x.shape[1]
    if steps % 4:
        x = F.pad(x, (0, 0, 0, 4 - steps % 4))
    means = x.reshape(x.shape[0], -1, 4, 4).mean(2, keepdim=True)
    return m.w(x + means.expand(-1, -1, 4, -1).reshape(x.shape))[:, :steps]


def complex_rounds(m: Any, x: Any) -> Any:
    steps, h, found = 2 ** math.ceil(math.log2(x.shape[1])), torch.zeros(x.shape[0], 4), []
    z = F.pad(m.w(x), (0, 0, 0, steps - x.shape[1])).to(torch.complex64)
    for t in range(x.shape[1]):
        h = 0.9j * h + z[:, t]
        found.append(h.real)
    return torch.stack(found, 1)


def log_of_complex(m: Any, x: Any) -> Any:
    return torch.logcumsumexp(m.w(x).to(torch.complex64).log(), 1).exp().real


def strided(padding: tuple[int, int], mode: str) -> StepSpec:
    """Return the spec of a strided convolution over samples, 6 of which are a timestep."""

    def run(m: Any, x: Any) -> Any:
        samples = x.reshape(x.shape[0], 1, -1)
        h = m.conv(torch.nn.functional.pad(samples, padding, mode=mode))
        return h.reshape(x.shape[0], 3, -1, 3).transpose(1, 2)

    return whole(of(run, conv=nn.Conv1d(1, 3, 4, stride=2)), 2, 9, 6)


BY_ITS_GRAPH: dict[str, tuple[Callable[[], StepSpec], str]] = {
    "delayed_loop": (
        lambda: whole(of(delayed_loop, w=nn.Linear(4, 4), u=nn.Linear(4, 4))),
        "a loop over the timesteps in its own code",
    ),
    "doubling_rounds": (
        lambda: whole(of(doubling, w=nn.Linear(4, 4), u=nn.Linear(4, 4))),
        "does other operations for other numbers of timesteps, and none of them once for each timestep",
    ),
    "doubling_rounds_that_join": (
        lambda: whole(of(doubling_and_joining, w=nn.Linear(4, 4), u=nn.Linear(4, 4))),
        "does other operations for other numbers of timesteps, and none of them once for each timestep",
    ),
    "scan_but_for_one_length": (
        lambda: whole(of(lambda m, x: nearly_a_scan(decayed, (m.keep(x), x))[1], keep=nn.Linear(4, 4))),
        "does something else for a sequence of 5,000 timesteps than for one of 11 (test_refused.py, line ",
    ),
    "scan_backwards": (
        lambda: whole(
            of(lambda m, x: interleaved(decayed, (m.keep(x.flip(1)), x.flip(1)))[1].flip(1), keep=nn.Linear(4, 4))
        ),
        "reads the sequence backwards",
    ),
    "rows_by_a_rounded_division": (
        lambda: whole(of(rounded_rows, rnn=nn.GRU(4, 6, batch_first=True))),
        "gives as many timesteps as it takes up to a limit only",
    ),
    "mask_made_once": (lambda: whole(KeptMask()), "compares every timestep with every other"),
    "blocks": (
        lambda: whole(of(in_blocks, w=nn.Linear(4, 4))),
        "cannot be followed to longer sequences (test_refused.py, line ",
    ),
    "complex_numbers_beside_what_the_length_decides": (
        lambda: whole(of(complex_rounds, w=nn.Linear(4, 4))),
        "computes with complex numbers over time",
    ),
    "logarithms_of_complex_numbers": (
        lambda: whole(of(log_of_complex, w=nn.Linear(4, 4))),
        "computes with complex numbers over time",
    ),
    "layer_and_a_sum": (
        lambda: whole(of(tagged_layer, own=Smoothing())),
        "a loop over the timesteps in its own code with 'own' (Smoothing)",
    ),
    "encoder_decoder": (
        lambda: whole(of(encoder_decoder, encoder=lstm(), decoder=lstm())),
        "Layer 'decoder' (LSTM) starts from",
    ),
    "symmetric": (lambda: whole(nn.Conv1d(4, 4, 3, padding=1), 2, 4, 9, time_axis=2), "node 'Conv' (Conv)"),
    **{
        f"padded_by_the_length_{name}": (partial(by_length, pad), message)
        for name, pad, message in (
            ("by_a_shift", lambda n: n >> 12, "depends on the number of timesteps"),
            ("by_a_float", lambda n: int(n / 5001.0), "does something else for a sequence of 5,001 timesteps"),
        )
    },
    "samples_ahead": (lambda: strided((1, 1), "constant"), "layer 'conv' (Conv1d) pads or shifts it on the right"),
    "reflected_samples": (
        lambda: strided((2, 0), "reflect"),
        "pads 2 sample(s) in front with values of the sequence (reflect)",
    ),
    "symmetric_then_pooled": (
        lambda: whole(of(lambda m, x: m.conv(x.mT).relu().amax(2), conv=nn.Conv1d(4, 4, 3, padding=1))),
        "looks 1 timestep(s) ahead; layer 'conv' (Conv1d)",
    ),
    "over_time": (lambda: whole(of(lambda m, x: m.rnn(x)[0].softmax(1), rnn=lstm())), "Node 'Softmax' (Softmax)"),
}
STATES: dict[str, tuple[Callable[[], StepSpec], str]] = {
    "no_states_back": (lambda: stepwise(lambda m, x, h: x + h), "returns 1 tensors; expected at least one output"),
    "other_shape": (
        lambda: stepwise(lambda m, x, h: (x, torch.cat([h, h], -1))),
        "State 'h' comes back as torch.float32 of [2, 8]",
    ),
    "other_dtype": (lambda: stepwise(lambda m, x, h: (x, h.long())), "State 'h' comes back as torch.int64"),
    "no_row": (lambda: stepwise(lambda m, x, h: (x, h), state=torch.zeros(4)), "expected one row, with a batch axis"),
    "fixed_rows": (
        lambda: stepwise(lambda m, x, h: (x + torch.zeros(len(x), 1).expand(-1, 4), h)),
        "fixes the number of rows",
    ),
    "rows_in_another_order": (
        lambda: stepwise(lambda m, x, h: (torch.cat([x[-1:], x[:-1]]), h)),
        "does not take any number of rows",
    ),
    "many_rows": (
        lambda: stepwise(lambda m, x, h: (x * 2 if x.shape[0] > 5 else x, h)),
        "does not take any number of rows",
    ),
    "mixed_rows": (lambda: stepwise(lambda m, x, h: (x.sum(0, keepdim=True), h)), "expected the batch axis first"),
    "no_axes": (
        lambda: StepSpec(of(lambda m, x, h: (x + h, h)), inputs={"x": 1.0}, states={"h": torch.zeros(1, 4)}),
        "Input 'x' has no axes",
    ),
    "names": (
        lambda: StepSpec(nn.GRUCell(4, 4), inputs={"h": torch.zeros(2, 4)}, states={"h": torch.zeros(1, 4)}),
        "'h' names both an input and a state",
    ),
}


def refusal(spec: StepSpec) -> RefusedModelError:
    with pytest.raises(RefusedModelError) as caught:
        convert(spec, name="refused")
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", WHOLE)
def test_a_module_over_whole_sequences_is_refused_with_the_reason(name: str) -> None:
    build, told = WHOLE[name]

    assert told in refusal(build()).problem


def test_a_batch_size_that_python_has_taken_from_the_input_is_named_as_the_reason() -> None:
    refused = refusal(stepwise(lambda m, x, h: (x.reshape(int(x.shape[0]), 2, 2), h)))

    assert "int(x.shape[0])" in refused.fix


def test_lengths_are_to_be_left_out_with_the_packing_that_needs_them() -> None:
    refused = refusal(whole(of(packed, lstm=lstm())))

    assert "A stream is never padded" in refused.fix
    assert "an input of lengths" in refused.fix


BACKWARDS: dict[str, Callable[[], StepSpec]] = {
    "flip": lambda: whole(of(lambda m, x: m.lstm(x.flip(1))[0].flip(1), lstm=lstm())),
    "flip_beside_a_forward_layer": lambda: whole(of(lambda m, x: m.a(x)[0] + m.b(x.flip(1))[0], a=lstm(), b=lstm())),
    "both_ways": lambda: whole(of(lambda m, x: m.rnn(x)[0], rnn=lstm(bidirectional=True))),
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_a_module_that_reads_backwards_is_refused_without_an_example_of_a_step_that_it_cannot_have(name: str) -> None:
    refused = refusal(BACKWARDS[name]())

    assert "Train a causal model" in refused.fix
    assert "class Step" not in refused.fix


def loop_over_mixed_rows(m: Any, x: Any) -> Any:
    h, found = torch.zeros(x.shape[0], 4), []
    for t in range(x.shape[1]):
        h = torch.tanh(m.w(x[:, t]) + h.mean(0, keepdim=True))
        found.append(h)
    return torch.stack(found, 1)


MIXED_ROWS = {
    "by_its_graph": lambda: whole(of(lambda m, x: m.rnn(x)[0] / (1 + x.abs().sum((0, 2), keepdim=True)), rnn=lstm())),
    "in_a_loop": lambda: whole(of(loop_over_mixed_rows, w=nn.Linear(4, 4))),
}


@pytest.mark.parametrize("name", MIXED_ROWS)
def test_rows_that_depend_on_each_other_are_the_reason_whatever_else_cannot_be_stepped(name: str) -> None:
    refused = refusal(MIXED_ROWS[name]())

    assert refused.problem.startswith("The rows of a batch depend on each other")
    assert "class Step" not in refused.fix


def test_what_only_numbers_of_python_can_is_refused_with_its_line_also_where_the_trace_has_tensors_for_them() -> None:
    def whole_windows(self: Any, x: Any) -> Any:
        return x if (x.shape[1] / 4).is_integer() else F.pad(x, (0, 0, 1, 0))[:, :-1]

    with pytest.raises(RefusedModelError) as caught:
        convert(StepSpec(of(whole_windows), inputs={"x": torch.randn(2, 8, 4)}, time_axis=1, length=20), name="m")

    assert "is_integer" in caught.value.problem
    assert "test_refused.py, line" in caught.value.problem
    assert "The module fails" not in caught.value.problem


def test_a_loop_with_complex_numbers_is_refused_for_these() -> None:
    def run(m: Any, x: Any) -> Any:
        h, found = torch.zeros(x.shape[0], 4, dtype=torch.complex64), []
        for t in range(x.shape[1]):
            h = m.turn * h + x[:, t]
            found.append(h.real)
        return torch.stack(found, 1)

    refused = refusal(whole(of(run, turn=nn.Parameter(torch.tensor(0.5 + 0.3j)))))

    assert refused.problem.startswith("The module computes with complex numbers over time")


def test_an_input_that_is_changed_in_place_is_no_draw_of_random_numbers() -> None:
    def run(m: Any, x: Any) -> Any:
        x.mul_(2)
        return m.rnn(x)[0]

    made = convert(whole(of(run, rnn=lstm())), name="in_place")

    assert [state.input for state in made.manifest.states] == ["rnn.h", "rnn.c"]


def test_what_torchs_exporter_prints_is_kept_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    refused = refusal(whole(of(lambda m, x: m.head(torch.special.bessel_j0(x).cumsum(1)), head=nn.Linear(4, 2))))

    assert "special_bessel_j0" in refused.problem
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", BY_ITS_GRAPH)
def test_an_example_of_a_step_is_given_for_loops_alone_which_may_have_one(name: str) -> None:
    build, told = BY_ITS_GRAPH[name]
    refused = refusal(build())

    assert told in refused.problem
    assert ("class Step" in refused.fix) == (name in {"delayed_loop", "layer_and_a_sum"})


@pytest.mark.parametrize("name", STATES)
def test_a_module_that_takes_its_states_is_refused_with_the_reason(name: str) -> None:
    build, told = STATES[name]

    assert told in refusal(build()).problem
