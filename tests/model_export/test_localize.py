"""Where answers differ, the first layer that does is named; where that cannot be told, it is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export.converted import Activation, ConvertedModel, LayerOutputs, verify_model
from stepwell_export.runtime.errors import ParityError
from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.reference import ReferenceModel
from tests import graphs

Sequences = Mapping[str, Array]


def chain(slope: float = 2.0) -> ConvertedModel:
    """The sum so far, doubled, plus one: layers `sum`, `double` and `plus`; the step graph doubles by `slope`."""
    weights: dict[str, Array] = {"slope": np.array(slope, np.float32), "one": np.array(1, np.float32)}
    nodes = "sum = Add (s, x) s_next = Identity (sum) doubled = Mul (sum, slope) y = Add (doubled, one)"
    return candidate(nodes, weights, original)


def candidate(nodes: str, weights: Mapping[str, Array], original: ReferenceModel) -> ConvertedModel:
    graph, manifest = graphs.of_nodes(nodes, weights=weights)
    return ConvertedModel(onnx.load_from_string(graph), manifest, original, "numpy")


def zeros(inputs: Sequences) -> dict[str, Array]:
    return {"y": np.zeros_like(inputs["x"])}


def layers(inputs: Sequences) -> list[Activation]:
    total = np.cumsum(inputs["x"], axis=1, dtype=np.float32)
    return [Activation("'sum' (Sum)", "sum", total), Activation("'double' (Double)", "doubled", total * 2),
            Activation("'plus' (Plus)", "y", total * 2 + 1)]  # fmt: skip


def original(inputs: Sequences) -> dict[str, Array]:
    return {"y": layers(inputs)[-1].values}


def failing(probe: LayerOutputs | None, slope: float = 2.1) -> str:
    with pytest.raises(ParityError) as caught:
        verify_model(replace(chain(slope), probe=probe), long_steps=0)
    return caught.value.problem


def test_the_first_layer_that_differs_is_named() -> None:
    problem = failing(layers)

    assert problem.startswith("Output 'y' first differs at timestep 1 (random data, sequence 1")
    assert "The likeliest layer is 'double' (Double): its output differs first, by " in problem
    assert problem.endswith("at timestep 1; the 1 looked at before it agree.")


def test_what_is_behind_the_last_layer_is_told() -> None:
    def but_the_last(inputs: Sequences) -> Sequence[Activation]:
        return layers(inputs)[:1]

    assert "The 1 layers that can be looked at agree, so the difference comes in behind 'sum' (Sum)." in failing(
        but_the_last
    )


def test_without_a_probe_it_is_said() -> None:
    assert "The layer that differs first is unknown: the original's layers cannot be looked into here." in failing(None)


def test_a_probe_that_fails_hides_nothing() -> None:
    def broken(inputs: Sequences) -> list[Activation]:
        raise RuntimeError("out of memory")

    problem = failing(broken)

    assert "first differs at timestep 1" in problem
    assert "failed (RuntimeError: out of memory)" in problem


def test_the_node_that_computes_nan_is_named() -> None:
    """An infinity that a mask puts in front of it is no reason."""
    nodes = (
        "s_next = Add (s, x) much = Mul (x, large) few = Sub (s_next, s_next) [share] share = Div (few, few) "
        "y = Add (share, x)"
    )

    with pytest.raises(ParityError) as caught:
        verify_model(candidate(nodes, {"large": np.array(3e38, np.float32)}, zeros), long_steps=0)

    assert "the original gives 0, the step graph nan. It comes from node 'share' (Div), " in caught.value.problem
    assert "which divides by 0." in caught.value.problem


@pytest.mark.parametrize(
    "before",
    [
        "masked = Add (x, least)",
        "low = Log (zero) masked = Add (x, low)",
        ", h = GRU <hidden_size = 2> (sequence, weights, weights)",
    ],
    ids=["a constant mask", "a mask", "a recurrence without its sequence"],
)
def test_the_node_that_computes_infinity_is_named(before: str) -> None:
    """An infinity of the other sign is no reason, and a node need not have its first output."""
    weights: dict[str, Array] = {
        "least": np.array(-np.inf, np.float32), "zero": np.array(0, np.float32), "first": np.array([0]),
        "weights": np.ones((1, 6, 2), np.float32), "large": np.array(1e3, np.float32),
    }  # fmt: skip
    nodes = (
        f"s_next = Add (s, x) sequence = Unsqueeze (x, first) {before} [excess] excess = Exp (large) "
        "y = Add (s_next, excess)"
    )

    with pytest.raises(ParityError, match=r"the step graph inf. It comes from node 'excess' \(Exp\)\."):
        verify_model(candidate(nodes, weights, zeros), long_steps=0)


def test_the_layer_of_a_keras_model_is_named(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")

    from stepwell_export.keras import convert

    layers = keras.layers
    model = keras.Sequential([
        keras.Input((None, 3), name="x"), layers.LSTM(4, return_sequences=True, name="first"),
        layers.GRU(5, return_sequences=True, name="second"), layers.Dense(2, name="head"),
    ])  # fmt: skip
    made = convert(model, name="m")
    for weight in made.proto.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if array.shape == (1, 15, 4):  # the kernel of `second`
            weight.CopyFrom(onnx.numpy_helper.from_array(array + np.float32(0.1), weight.name))
    with pytest.raises(ParityError) as caught:
        verify_model(made)

    assert "The likeliest layer is 'second' (GRU)" in caught.value.problem
    assert caught.value.problem.endswith("the 1 looked at before it agree.")
