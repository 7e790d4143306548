"""Layers of one's own that call the operations of `keras.ops` that Keras' layers are made of."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from keras.src import backend

from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_parts import L, of, ops, randomise


class Own(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer with weights whose code is a function.

    Args:
        shapes: The shape of each weight.
        code: Takes the input and the weights.
    """

    def __init__(self, shapes: list[tuple[int, ...]], code: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(name="own", **kwargs)
        self.code = code
        for place, shape in enumerate(shapes):
            setattr(self, f"weight{place}", self.add_weight(shape=shape, name=f"variance{place}"))
        self.count = len(shapes)

    def call(self, x: Any) -> Any:
        return self.code(x, *(getattr(self, f"weight{place}") for place in range(self.count)))


def padded(x: Any, steps: int) -> Any:
    """Return a sequence with zeros in front."""
    return ops.pad(x, [(0, 0), (steps, 0), (0, 0)])


def residual(x: Any, kernel: Any, bias: Any) -> Any:
    convolved = ops.conv(padded(x, 4), kernel, padding="valid", dilation_rate=2)
    return x + keras.activations.relu(convolved + bias, negative_slope=0.1, max_value=1.0, threshold=0.2)


def bias_in_one_of_two(x: Any, kernel: Any, bias: Any) -> Any:
    product = ops.matmul(x, kernel)
    return ops.concatenate([product, product + bias], axis=-1)


def in_maps(x: Any) -> Any:
    """Two-dimensional maps inside each timestep: channels first, with a bias for each channel."""
    rng = np.random.default_rng(3)
    kernel, bias = rng.standard_normal((2, 2, 1, 3)).astype("float32"), np.array([0.5, -1.0, 2.0], "float32")
    maps = ops.reshape(x, (-1, 1, 2, 2))
    found = ops.conv(maps, kernel, padding="same", data_format="channels_first") + ops.reshape(bias, (1, 3, 1, 1))
    return ops.reshape(ops.max_pool(found, 2, strides=2, data_format="channels_first"), (-1, 3))


def standardised(x: Any) -> Any:
    mean, variance = ops.moments(x, axes=[-1], keepdims=True)
    return (x - mean) / ops.sqrt(variance + 1e-3)


LAYERS: dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]] = {
    "causal convolution": ([(3, 4, 4), (4,)], residual),
    "separable convolution": ([(2, 4, 2), (1, 8, 3)], lambda x, d, p: ops.separable_conv(padded(x, 1), d, p)),
    "transposed convolution": (
        [(2, 3, 4), (3,)], lambda x, k, b: ops.conv_transpose(x, k, padding="valid")[:, :-1] + b,
    ),
    "maximum of a window": ([], lambda x: ops.max_pool(ops.pad(x, [(0, 0), (2, 0), (0, 0)]), 3, strides=1)),
    "batch normalization": (
        [(4,)] * 4, lambda x, m, v, o, s: ops.batch_normalization(x, m, v, -1, offset=o, scale=s),
    ),
    "layer normalization": (
        [(4,), (4,)], lambda x, g, b: ops.layer_normalization(x, g, b) if hasattr(ops, "layer_normalization") else x,
    ),
    "moments": ([], standardised),
    "weights that are computed with": (
        [(4,), (2, 4), (4, 4)],
        lambda x, a, p, k: (ops.sigmoid(a) * x - p[0] * x / (2 + ops.exp(-a))) + (1 - ops.tanh(p[1])) * (x @ -k),
    ),
    "a computed weight on the left": (
        [(4,)],
        lambda x, w: ops.where(ops.abs(w) < x, ops.exp(w) / (3 + ops.tanh(x)), ops.exp(w) - x) + ops.exp(w) ** x,
    ),
    "arrays of NumPy on the left": (
        [], lambda x: np.linspace(-1, 1, 4, dtype="float32") * x - np.float32(0.5) / (2 + ops.tanh(x)),
    ),
    "a product with and without bias": ([(4, 3), (3,)], bias_in_one_of_two),
}  # fmt: skip


@pytest.mark.many
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_ones_own_equals_keras(name: str) -> None:
    """Compared are whole sequences, and rows in a batch with rows alone."""
    shapes, code = LAYERS[name]
    model = of(Own(shapes, code))
    randomise(model)

    _, report = export_model(model, name="m")

    assert report.parity.max_abs < 1e-5
    assert report.max_abs_alone == 0


class Leaky(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A cell that computes with its weight before it meets a state."""

    state_size = output_size = 4

    def build(self, shape: Any) -> None:
        self.rate = self.add_weight(shape=(4,), name="rate")

    def call(self, x: Any, states: Any) -> Any:
        keep = ops.sigmoid(self.rate)
        after = keep * states[0] + (1 - keep) * x
        return after, [after]


def test_a_cell_of_ones_own_computes_with_its_weights_first() -> None:
    model = of(L.RNN(Leaky(), return_sequences=True))
    randomise(model)

    assert export_model(model, name="m")[1].parity.max_abs < 1e-5


class Activated(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer with activations of Keras as attributes, which its code calls as it likes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.relu, self.softmax, self.glu = keras.activations.relu, keras.activations.softmax, keras.activations.glu

    def call(self, x: Any) -> Any:
        bounded = self.relu(x, negative_slope=0.2, max_value=0.5)
        weights = self.softmax(ops.reshape(x, (-1, ops.shape(x)[1], 2, 2)), axis=-2)[:, :, 0]
        sign = 1 if self.relu is keras.activations.relu else -1
        return sign * (bounded @ ops.ones((4, 2))) + weights + self.glu(x) @ ops.ones((2, 2))


def test_code_of_ones_own_calls_an_activation_with_more_arguments() -> None:
    assert export_model(of(Activated()), name="m")[1].parity.max_abs < 1e-5


def test_maps_with_their_channels_in_front_equal_keras() -> None:
    model = of(L.TimeDistributed(L.Lambda(in_maps, output_shape=(3,))))

    assert export_model(model, name="m")[1].parity.max_abs < 1e-5


def test_a_state_is_named_after_the_layer() -> None:
    def names(layer: Any) -> list[str]:
        return [state.input for state in export_keras(of(layer), name="m").manifest.states]

    assert names(L.Conv1D(5, 3, padding="causal", name="tap")) == ["tap.past"]
    assert names(Own([(3, 4, 5)], lambda x, kernel: ops.conv(padded(x, 2), kernel))) == ["own.past"]


def test_a_refusal_names_the_layer() -> None:
    with pytest.raises(RefusedModelError) as caught:
        export_keras(of(Own([(3, 4, 5)], lambda x, kernel: ops.conv(x, kernel, padding="same"))), name="m")

    assert "layer 'own' (Own) pads or shifts it on the right of the time axis" in caught.value.problem


def test_timesteps_that_a_convolution_drops_may_be_put_in_front_again() -> None:
    model = of(lambda x: L.ZeroPadding1D((2, 0))(L.Conv1D(4, 3, activation="tanh")(x)) + x)
    randomise(model)

    assert export_model(model, name="m")[1].parity.max_abs < 1e-5


def test_a_padded_sequence_may_pass_a_transposed_convolution_before_another() -> None:
    model = keras.Sequential([
        keras.Input((None, 4, 2)), L.ZeroPadding2D(((2, 0), (0, 0))), L.Conv2DTranspose(3, (1, 2)), L.Conv2D(2, (3, 1)),
    ])  # fmt: skip
    randomise(model)

    assert export_model(model, name="m")[1].parity.max_abs < 1e-5


def test_a_causal_convolution_takes_whole_numbers() -> None:
    x = keras.Input((None, 4), dtype="int32")
    model = keras.Model(x, L.Conv1D(3, 2, padding="causal")(x))
    randomise(model)

    assert export_model(model, name="m")[1].parity.max_abs < 1e-4


@pytest.mark.parametrize("options", [{"threshold": 1.0, "negative_slope": 0.1}, {"threshold": -1.0, "max_value": 0.5}])
def test_a_relu_with_a_threshold_equals_keras_at_the_threshold_and_below_zero(options: dict[str, float]) -> None:
    model = of(L.Lambda(lambda v: keras.activations.relu(ops.round(2 * v) / 2, **options)))

    assert export_model(model, name="m")[1].parity.max_abs < 1e-5


def test_weights_that_the_model_computes_are_refused_by_name() -> None:
    def computed(x: Any) -> Any:
        return ops.conv(x, ops.reshape(x[:, -1], (1, 4, -1)))

    with pytest.raises(RefusedModelError, match="'own'"):
        export_keras(of(Own([], computed)), name="m")


def test_an_id_outside_a_table_gives_nan_in_its_own_row_alone() -> None:
    ids = keras.Input((None,), dtype="int32", name="ids")
    model = keras.Model(ids, Own([(5, 3)], lambda x, table: ops.take(table, x, axis=0))(ids))
    exported = export_keras(model, name="m")
    step = StepModel(exported.proto.SerializeToString(), exported.manifest)

    outputs, _ = step.step({"ids": np.array([2, 7, -1], np.int32)}, step.initial_states(3))

    rows = next(iter(outputs.values()))
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, False]


def test_features_may_be_pooled_over_time_alone() -> None:
    """With the channels in front the layer takes the largest feature of each timestep."""
    model = of(L.GlobalMaxPooling1D(data_format="channels_first"))

    assert export_model(model, name="m")[1].parity.max_abs == 0
    onnx.checker.check_model(export_keras(model, name="m").proto)


class OfTheBackend(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer whose code goes past keras.ops, as that of many layers of Keras does."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), name="gain")

    def call(self, x: Any) -> Any:
        return self.gain * backend.nn.relu(x) + backend.numpy.where(backend.numpy.greater(x, 0.5), x, 0.0)


def test_code_that_calls_the_backend_is_traced_and_the_backend_stays_as_it_is() -> None:
    functions = {name: getattr(backend.nn, name) for name in ("relu", "softmax")}

    _, report = export_model(of(lambda x: L.GRU(3)(OfTheBackend()(x))), name="m")

    assert report.parity.max_abs < 1e-5
    assert all(getattr(backend.nn, name) is function for name, function in functions.items())


@pytest.mark.parametrize("features", [67])
def test_code_for_a_batch_of_known_size_may_have_weights_as_long_as_the_sequences_that_it_is_tried_on(
    features: int,
) -> None:
    class Gained(keras.Layer):  # type: ignore[misc]  # Keras has no types
        def build(self, shape: Any) -> None:
            self.gain = self.add_weight(shape=(shape[-1],), name="gain")

        def call(self, x: Any) -> Any:
            return self.gain * x + ops.zeros((ops.shape(x)[0], 1, 1))

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape)

    _, report = export_model(of(lambda x: L.Dense(2)(Gained()(x)), features), name="m")

    assert report.parity.max_abs < 1e-4


def test_models_that_are_exported_in_two_threads_leave_keras_as_it_was() -> None:
    """The second export begins while the first one traces, and ends after it."""
    before = keras.random.SeedGenerator.next
    is_traced, may_go_on = Event(), Event()

    def wait(x: Any) -> Any:
        is_traced.set()
        may_go_on.wait(0.5)  # for as long as both can be in their trace at once
        return x * 2

    def end_the_first(x: Any) -> Any:
        may_go_on.set()
        first.join(0.5)  # it may wait for the lock
        return x * 2

    models = [of(Own([], lambda x: x)) for _ in range(2)]
    models[0].layers[1].code, models[1].layers[1].code = wait, end_the_first
    first, second = (Thread(target=export_keras, args=[model], kwargs={"name": "one"}) for model in models)
    first.start()
    is_traced.wait()
    second.start()
    second.join()

    assert keras.random.SeedGenerator.next is before
