"""Attention over time and positions: what holds after the last declared timestep, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import ParityError, RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras import zoo
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_attention import BANDED, CutMask, PositionTable, T, block, causal, over
from tests.model_export.keras.zoo_parts import RS, L, ops, randomise

HAS_SLIDING = "sliding_window" in L.MultiHeadAttention(1, 1).get_config()
sliding = pytest.mark.skipif(not HAS_SLIDING, reason="this Keras has no sliding_window")


def stepped(model: Any, x: Array) -> Array:
    """Export a model, verified over what the original takes, and step it through any number of timesteps."""
    graph, _ = export_model(model, name="m")
    step = StepModel(graph)
    answers, _ = step.chunk({step.manifest.inputs[0].name: x}, step.initial_states(len(x)))
    return next(iter(answers.values()))


def noise(steps: int, features: int = 8) -> Array:
    return np.random.default_rng(5).standard_normal((2, steps, features)).astype(np.float32)


@sliding
def test_a_model_of_one_length_has_chunks_that_equal_its_steps() -> None:
    """Beyond that length it answers nothing that could be compared."""
    _, report = export_model(zoo.build("positions_sines"), name="m")

    assert report.chunk is not None
    assert "does not equal" not in report.chunk.why


def test_after_its_last_declared_timestep_attention_slides() -> None:
    """It goes on as the same weights with `sliding_window=T`, which Keras can be asked for at any length."""
    bounded = over(causal(L.MultiHeadAttention(2, 3)))
    randomise(bounded)
    endless = over(causal(L.MultiHeadAttention(2, 3, sliding_window=T)), None)
    endless.set_weights(bounded.get_weights())
    x = noise(5 * T)

    np.testing.assert_allclose(stepped(bounded, x), endless(x), atol=1e-5)


@sliding
@pytest.mark.parametrize("layer", [lambda: L.MultiHeadAttention(2, 3, sliding_window=5), lambda: L.GroupQueryAttention(
    3, 2, 1, sliding_window=5)])  # fmt: skip
def test_a_sliding_window_needs_no_declared_length(layer: Callable[[], Any]) -> None:
    model = over(causal(layer()), None)
    randomise(model)

    graph, report = export_model(model, name="m")

    assert report.parity.steps == 64
    assert 4 in StepModel(graph).manifest.states[0].shape, "the timestep itself is not kept twice"


def test_attention_of_one_declared_timestep_is_refused() -> None:
    """It never shows what it does over time."""
    with pytest.raises(RefusedModelError, match=r"\(MultiHeadAttention\) attends to all timesteps before"):
        export_keras(over(causal(L.MultiHeadAttention(2, 3)), 1), name="m")


def test_all_layers_share_one_position() -> None:
    model = over(lambda x: block(block(L.Add()([x, PositionTable()(x)]))))

    states = [state.input for state in export_keras(model, name="m").manifest.states]

    assert len([name for name in states if ".past" not in name]) == 1


def masked(x: Any) -> Any:
    h = L.LSTM(4, **RS)(L.Masking()(x))
    return L.MultiHeadAttention(2, 2, name="odd")(h, h, use_causal_mask=True)


def half_masked(x: Any) -> Any:
    h = L.LSTM(8, **RS)(L.Masking()(x))
    return L.Attention(name="odd")([x, h], use_causal_mask=True)


def with_scores(x: Any) -> Any:
    return L.MultiHeadAttention(2, 2, name="odd")(x, x, use_causal_mask=True, return_attention_scores=True)


def two_axes(x: Any) -> Any:
    h = L.Reshape((-1, 4, 2))(x)
    return L.MultiHeadAttention(2, 2, name="odd")(h, h, use_causal_mask=True)


def parts_over_time(x: Any) -> Any:
    h = L.Reshape((-1, 4, 2))(x)
    return CutMask(BANDED, axes=1)(h)


def mha(x: Any, **kwargs: Any) -> Any:
    return L.MultiHeadAttention(2, 2, name="odd")(x, x, **kwargs)


NOTHING = np.tril(np.ones((T, T), bool), -1)
A_HEAD_EACH = np.stack([BANDED, np.tril(np.ones((T, T), bool))])[None]


def heads_over_time(x: Any) -> Any:
    return CutMask(A_HEAD_EACH)(x)


# name: (model of T timesteps, or of any number, words of the reason)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "not_causal": (lambda: over(mha), "attends to timesteps to come"),
    "endless": (lambda: over(causal(L.MultiHeadAttention(2, 2, name="odd")), None), "would grow without end"),
    "looks_at_nothing": (lambda: over(CutMask(NOTHING, name="odd")), "attends to timesteps to come"),
    "with_scores": (lambda: over(with_scores), "attends to all timesteps before"),
    "two_axes": (lambda: over(two_axes), "cannot be traced"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_cannot_be_stepped_is_refused_by_name(name: str) -> None:
    build, reason = REFUSED[name]
    model = build()

    with pytest.raises(RefusedModelError) as caught:
        export_keras(model, name="m")

    assert caught.value.problem.startswith("Layer 'odd")
    assert reason in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize(
    "build",
    [parts_over_time, heads_over_time],
    ids=["parts", "a mask of each head"],
)
def test_heads_and_parts_attend_over_time_each_by_its_own_mask(build: Callable[[Any], Any]) -> None:
    model = over(build)
    randomise(model)

    assert export_model(model, name="m")[1].parity.max_abs < 1e-5


def test_a_mask_that_is_not_cut_to_the_input_is_refused_with_what_to_do() -> None:
    with pytest.raises(RefusedModelError, match=r"'odd.*takes one number of timesteps alone") as caught:
        export_keras(over(lambda x: mha(x, attention_mask=BANDED)), name="m")

    assert "table[: ops.shape(x)[1]]" in caught.value.fix


@pytest.mark.parametrize("build", [masked, half_masked])
def test_masked_attention_whose_first_answers_are_means_of_all_timesteps_is_caught_by_the_proof(build: Any) -> None:
    """Where all timesteps so far are masked, Keras attends to those to come."""
    with pytest.raises(ParityError, match="masked data"):
        export_model(over(build), name="m")


@pytest.mark.many
@pytest.mark.parametrize("steps", [2, 7])
def test_causal_attention_of_few_declared_timesteps_equals_keras(steps: int) -> None:
    model = over(causal(L.MultiHeadAttention(2, 3)), steps)
    randomise(model)

    graph, report = export_model(model, name="m")

    assert report.parity.steps == steps
    assert report.parity.max_abs < 1e-5
    caches = [state for state in StepModel(graph).manifest.states if ".past" in state.input]
    assert [sorted(state.shape) for state in caches] == [sorted([steps - 1, 2, 3])] * 2


class PlaceTable(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A constant of each timestep, cut to their number."""

    def call(self, x: Any) -> Any:
        return ops.convert_to_tensor(np.arange(T, dtype=np.int32)[:, None])[: ops.shape(x)[1]]


def test_integers_of_each_timestep_stay_the_last_ones_behind_the_end() -> None:
    """A float is NaN behind the last timestep that is known; an integer cannot be."""
    ids = keras.Input((T, 2), dtype="int32", name="ids")
    model = keras.Model(ids, L.Embedding(99, 3)(ids + PlaceTable()(ids)))

    (found,) = stepped(model, np.ones((1, T + 2, 2), np.int32))

    assert (found[T:] == found[T - 1]).all()
    assert (found[T - 1] != found[T - 2]).any()
