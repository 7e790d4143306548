"""What a proof is worth: wrong graphs of every scale are caught, right ones pass, weak proofs are marked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from stepwell_export import streaming
from stepwell_export.converted import ConvertedModel, verify_model
from stepwell_export.graph.decompose_rnn import decompose_rnn
from stepwell_export.graph.nodes import attributes
from stepwell_export.precision import narrow_store
from stepwell_export.runtime.errors import ParityError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.parity import verify_parity
from stepwell_export.verify.runners import stepped
from stepwell_export.verify.tolerance import RTOL, Tolerance
from tests import graphs
from tests.model_export.mutants import MUTANTS, ROW_MUTANTS, mutated
from tests.model_export.streaming.zoo_parts import LSTM, batch_first, graph

SCALES = (1e-9, 1.0, 1e7)


def from_onnx(scale: float) -> ConvertedModel:
    """An LSTM with a head."""
    model = batch_first(
        "yl = LSTM <hidden_size = 5> (xt, W, R, B)\nyh = MatMul (yl, D)\nyb = Add (yh, E)\nyt = Mul (yb, scale)",
        D=(5, 5), E=(5,), scale=np.float32(scale), **LSTM,
    )  # fmt: skip
    return streaming.convert(model, name="m")


def from_keras(scale: float) -> ConvertedModel:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    from stepwell_export.keras import convert

    keras.utils.set_random_seed(3)
    layers = [keras.Input((None, 4)), keras.layers.LSTM(6, return_sequences=True), keras.layers.Dense(3)]
    model = keras.Sequential([*layers, keras.layers.Rescaling(scale)])
    for layer in model.layers[:2]:
        layer.set_weights([np.random.default_rng(5).normal(0, 0.5, w.shape) for w in layer.get_weights()])
    return convert(model, name="m")


def from_torch(scale: float) -> ConvertedModel:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from stepwell_export import StepSpec
    from stepwell_export.torch import convert
    from tests.model_export.torch.zoo_parts import of

    torch.manual_seed(3)
    parts = {"rnn": torch.nn.LSTM(4, 6, batch_first=True), "head": torch.nn.Linear(6, 3)}
    module = of(lambda m, x: m.head(m.rnn(x)[0]) * scale, **parts)
    return convert(StepSpec(module, inputs={"x": torch.randn(2, 7, 4)}, time_axis=1), name="m")


FRONTS: dict[str, Callable[[float], ConvertedModel]] = {"onnx": from_onnx, "keras": from_keras, "torch": from_torch}


@pytest.fixture(scope="module")
def made() -> Callable[[str, float], ConvertedModel]:
    """A candidate of a front end and a scale, made once."""
    known: dict[tuple[str, float], ConvertedModel] = {}

    def make(front: str, scale: float) -> ConvertedModel:
        if (front, scale) not in known:
            known[front, scale] = FRONTS[front](scale)
        return known[front, scale]

    return make


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("front", FRONTS)
def test_a_right_graph_passes_at_every_scale_and_its_proof_is_strong(
    made: Callable[[str, float], ConvertedModel], front: str, scale: float
) -> None:
    _, report = verify_model(made(front, scale), long_steps=100)

    [line] = report.outputs
    assert not report.weak
    assert not line.weak
    assert line.atol < line.scale.median / 10
    assert line.scale.largest > line.scale.median > 0
    assert 0.5 < line.scale.distinct <= 1
    assert scale / 100 < line.scale.largest < scale * 100


@pytest.mark.many
@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("scale", [1e-9, 1e7])
@pytest.mark.parametrize("front", FRONTS)
def test_a_wrong_graph_is_caught_at_every_scale(
    made: Callable[[str, float], ConvertedModel], front: str, scale: float, mutant: str
) -> None:
    with pytest.raises(ParityError):
        verify_model(mutated(made(front, scale), MUTANTS[mutant]), long_steps=400)


LARGE = 100_000_000
"""Weights with which the rows run alone over fewer timesteps, and the step graph in a thread beside the original."""


@pytest.mark.parametrize("mutant", [None, *MUTANTS, "fourth row"])
def test_a_wrong_graph_is_caught_as_that_of_a_large_model(
    made: Callable[[str, float], ConvertedModel], mutant: str | None
) -> None:
    right = made("onnx", 1.0)
    candidate = right if mutant is None else mutated(right, {**MUTANTS, **ROW_MUTANTS}[mutant])
    model = StepModel(decompose_rnn(candidate.proto).SerializeToString(), candidate.manifest)

    with nullcontext() if mutant is None else pytest.raises(ParityError):
        report = verify_parity(candidate.original, model, against="itself", long_steps=256, size=LARGE)
        assert not report.weak
        assert report.skipped[0].what == "rows alone beyond 32 timesteps"
        assert report.chunk_lengths == []  # a chunk is its single steps


@pytest.mark.parametrize("size", [0, LARGE])
def test_rows_that_depend_on_each_other_are_refused_although_the_original_does_the_same(
    made: Callable[[str, float], ConvertedModel], size: int
) -> None:
    wrong = mutated(made("onnx", 1.0), ROW_MUTANTS["fourth row"])
    model = StepModel(decompose_rnn(wrong.proto).SerializeToString(), wrong.manifest)
    assert model.batched

    with pytest.raises(ParityError, match="depends on the other rows of the batch"):
        verify_parity(lambda inputs: stepped(model, inputs)[0], model, against="itself", long_steps=0, size=size)


@pytest.mark.parametrize("scale", [1e-9, 1e7])
def test_a_wrong_step_rule_is_caught_at_every_scale(scale: float) -> None:
    """A recurrence that is wrong by 84 %: the step rule decays by 0.1 where the layer does by 0.9."""
    model = graph(
        "(float[batch, time, 4] x) => (float[batch, time, 4] y) { c = CumSum (x, one) y = Mul (c, scale) }",
        one=np.int64(1), scale=np.float32(scale),
    )  # fmt: skip
    made = streaming.convert(model, name="sum")

    with pytest.raises(ParityError, match="timestep 2 "):
        verify_model(mutated(made, MUTANTS["dropped state"]), long_steps=0)


# -------------------------------------------------------------------- what a report shows of its worth

Sequences = dict[str, Array]


def summed(inputs: Any) -> dict[str, Array]:
    return {"y": np.cumsum(inputs["x"], axis=1, dtype=np.float32)}


def total() -> StepModel:
    return StepModel(*graphs.total())


def test_a_tolerance_that_a_person_gave_is_taken_as_it_is_and_the_proof_is_weak_where_it_is_too_large() -> None:
    report = verify_parity(summed, total(), against="numpy", tolerance=Tolerance(5.0, 0), long_steps=0)

    assert report.parity.atol == 5.0
    assert report.weak
    assert "5 is allowed" in report.outputs[0].why


def test_an_output_that_was_constant_proves_nothing() -> None:
    def nothing(inputs: Any) -> dict[str, Array]:
        return {"y": np.zeros_like(inputs["x"])}

    text = "y = Sub (x, x) s_next = Add (s, x)"
    model = StepModel(*graphs.of_nodes(text))
    report = verify_parity(nothing, model, against="numpy", long_steps=0)

    assert report.weak
    assert "constant" in report.outputs[0].why
    assert report.outputs[0].scale.largest == 0


@pytest.mark.parametrize("limit", ["2.0", "-1e9"])
def test_numbers_that_are_infinite_in_both_prove_nothing_and_cannot_be_served(limit: str) -> None:
    """Some of them, where sums are above a limit; or all."""

    def limited(inputs: Any) -> dict[str, Array]:
        sums = summed(inputs)["y"]
        return {"y": np.where(sums > float(limit), np.float32(np.inf), sums)}

    text = (
        f"s_next = Add (s, x) limit = Constant <value = float[1] {{{limit}}}> () "
        f"one = Constant <value = float[1] {{1.0}}> () zero = Constant <value = float[1] {{0.0}}> () "
        f"infinity = Div (one, zero) is_above = Greater (s_next, limit) y = Where (is_above, infinity, s_next)"
    )
    model = StepModel(*graphs.of_nodes(text))
    report = verify_parity(limited, model, against="numpy", long_steps=0)

    assert report.weak
    assert "are infinite, in the original and in the step graph" in report.outputs[0].why


def test_numbers_of_very_different_size_in_one_output_are_each_held_against_their_own() -> None:
    """The second number is wrong by all of it, and a millionth of the first."""
    sizes = np.array([1e3, 1e-3], np.float32)

    def both(inputs: Any) -> dict[str, Array]:
        return {"y": summed(inputs)["y"] * sizes}

    text = "s_next = Add (s, x) y = Mul (s_next, sizes)"

    def model(*sizes: float) -> StepModel:
        weights = {"sizes": np.array(sizes, np.float32)}
        return StepModel(*graphs.of_nodes(text, weights=weights))

    right = verify_parity(both, model(1e3, 1e-3), against="numpy", long_steps=0)
    wrong = verify_parity(both, model(1e3, 0.0), against="numpy", long_steps=0)

    assert not right.weak
    assert wrong.weak
    assert "number [1]" in wrong.outputs[0].why


def test_answers_that_decay_to_nothing_are_held_to_rounding_and_not_called_weak() -> None:
    """Half of the values are below what rounding made of the first ones."""

    def decays(inputs: Any) -> dict[str, Array]:
        factor = np.float32(0.5) ** np.arange(inputs["x"].shape[1], dtype=np.float32)[:, None]
        return {"y": inputs["x"][:, :1] * (factor + np.float32(5e-8))}

    text = (
        "zero = Sub (s, s) fresh = Equal (s, zero) now = Where (fresh, x, s) "
        "half = Constant <value = float[1] {0.5}> () s_next = Mul (now, half) y = Identity (now)"
    )
    report = verify_parity(decays, StepModel(*graphs.of_nodes(text)), against="numpy", long_steps=0)

    assert not report.weak


def test_zeros_among_the_answers_do_not_make_a_proof_weak() -> None:
    """A ReLU gives more zeros than not."""

    def relu(inputs: Any) -> dict[str, Array]:
        return {"y": np.maximum(summed(inputs)["y"] - 2, 0)}

    text = "s_next = Add (s, x) two = Constant <value = float[1] {2.0}> () less = Sub (s_next, two) y = Relu (less)"
    model = StepModel(*graphs.of_nodes(text))

    assert not verify_parity(relu, model, against="numpy", long_steps=0).weak


def test_integers_are_compared_exactly_whatever_their_size() -> None:
    def one_off(inputs: Any) -> dict[str, Array]:
        answers = np.cumsum(inputs["x"] + 1, axis=1) * 1_000_000
        answers[0, 40] += 1
        return {"y": answers}

    text = """many (int64[B,1] x, int64[B,1] h) => (int64[B,1] y, int64[B,1] h_next) {
        one = Constant <value = int64[1] {1}> ()
        million = Constant <value = int64[1] {1000000}> ()
        more = Add (x, one)
        h_next = Add (h, more)
        y = Mul (h_next, million)
    }"""
    model = StepModel(graphs.graph_from_text(text), graphs.fold()[1])

    with pytest.raises(ParityError, match="timestep 41 "):
        verify_parity(one_off, model, against="numpy")


def test_the_part_of_the_value_is_told_also_where_all_of_it_is_lost() -> None:
    def tiny(inputs: Any) -> dict[str, Array]:
        return {"y": summed(inputs)["y"] * np.float32(1e-9)}

    text = "s_next = Add (s, x) y = Sub (x, x)"
    model = StepModel(*graphs.of_nodes(text))

    report = verify_parity(tiny, model, against="numpy", tolerance=Tolerance(1e-5, RTOL), long_steps=0)

    assert report.outputs[0].max_rel == pytest.approx(1.0)
    assert report.weak


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_tolerance_of_no_person_is_of_the_size_of_the_values(size: float) -> None:
    values = np.array([0.5, -2.0, 1.0], np.float64) * size
    plain = Tolerance(1e-5, 0.0, scaled=True).on(values)

    assert plain == Tolerance(pytest.approx(2e-5 * size), 0.0)  # type: ignore[arg-type]  # equal within rounding
    assert plain.holds(values + 1.9e-5 * size, values)
    assert not plain.holds(values + 2.1e-5 * size, values)


# -------------------------------------------------------------------- chunks, the long run, rows, stored states


@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_an_operator_that_is_not_what_its_single_step_is_is_not_taken_for_chunks(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """A GRU whose reset gate works before the product is another GRU; its answers are as small as the model's."""
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    from stepwell_export.chunk import loops
    from stepwell_export.keras import convert

    gru = keras.layers.GRU(6, return_sequences=True)
    model = keras.Sequential([keras.Input((None, 4)), gru, keras.layers.Rescaling(scale)])
    gru.set_weights([np.random.default_rng(5).normal(0, 0.5, weight.shape) for weight in gru.get_weights()])
    made = convert(model, name="m")

    right = verify_model(made, long_steps=100)[1].chunk
    monkeypatch.setattr(loops, "attributes", lambda node: {**attributes(node), "linear_before_reset": 0})
    wrong = verify_model(made, long_steps=100)[1].chunk

    assert right is not None
    assert wrong is not None
    assert (right.chunk, wrong.why) == ("dynamic", "all timesteps at once: does not equal the single steps")


def test_a_small_drift_of_small_answers_is_refused() -> None:
    """Each timestep adds a hundred-thousandth too much, of answers of a billionth."""

    def too_large(inputs: Any) -> dict[str, Array]:
        return {"y": (summed(inputs)["y"] + 1e-3 * np.arange(inputs["x"].shape[1])[:, None]) * np.float32(1e-9)}

    text = "s_next = Add (s, x) tiny = Constant <value = float[1] {1e-9}> () y = Mul (s_next, tiny)"
    model = StepModel(*graphs.of_nodes(text))

    with pytest.raises(ParityError):
        verify_parity(too_large, model, against="numpy")


def test_rows_that_mix_are_found_where_answers_are_small() -> None:
    text = (
        "zero = Constant <value = int64[1] {0}> () tiny = Constant <value = float[1] {1e-9}> () "
        "mean = ReduceMean <axes = [0]> (x) from_all = Sub (x, mean) s_next = Add (s, x) y = Mul (from_all, tiny)"
    )

    assert not StepModel(*graphs.of_nodes(text)).batched


def test_a_state_that_vanishes_in_the_store_is_refused() -> None:
    """In float16 a sum of billionths is zero."""
    text = (
        "tiny = Constant <value = float[1] {1e-9}> () small = Mul (x, tiny) s_next = Add (s, small) "
        "y = Identity (s_next)"
    )

    with pytest.raises(ParityError, match="With states stored as float16"):
        narrow_store(*graphs.of_nodes(text), "float16")
