"""Zoo: how models are put together, their inputs and their outputs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, of, ops, sequence


def two_inputs_two_outputs() -> Any:
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 5), name="b")
    x = L.Concatenate()([L.LSTM(6, return_sequences=True)(a), L.GRU(4, return_sequences=True)(b)])
    return keras.Model([a, b], [L.Dense(2, name="label")(x), L.LSTM(3, name="summary")(x)])


def dict_of_outputs() -> Any:
    x = keras.Input((None, 3), name="x")
    h = L.GRU(4, return_sequences=True)(x)
    return keras.Model({"x": x}, {"speed": L.Dense(1)(h), "alarm": L.Dense(2, "sigmoid")(h)})


def static_input() -> Any:
    x, who = keras.Input((None, 3), name="x"), keras.Input((5,), name="who")
    return keras.Model([x, who], L.Dense(2)(L.Concatenate()([L.LSTM(4)(x), L.Dense(3, "relu")(who)])))


def static_image() -> Any:
    x, image = keras.Input((None, 3), name="x"), keras.Input((6, 6, 1), name="image")
    seen = L.Dense(4)(L.Flatten()(L.Conv2D(2, 3, padding="same")(image)))
    return keras.Model([x, image], L.LSTM(4, **RS)(x, initial_state=[seen, L.Dense(4)(seen)]))


def ids_besides_the_embedding() -> Any:
    """Ids of a declared number of timesteps, which the answers are multiplied with, too."""
    ids = keras.Input((12,), dtype="int32", name="ids")
    y = L.GRU(4, **RS)(L.Embedding(9, 3)(ids))
    return keras.Model(ids, y * keras.ops.cast(ids > 0, "float32")[..., None])


def ids_as_long_as_the_state_needs() -> Any:
    """As many ids as there are timesteps, and yet no sequence."""
    x, who = keras.Input((5, 3), name="x"), keras.Input((5,), dtype="int32", name="who")
    return keras.Model([x, who], L.GRU(4, **RS)(x, initial_state=L.Dense(4)(L.Flatten()(L.Embedding(7, 4)(who)))))


def shared_layer() -> Any:
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 3), name="b")
    lstm = L.LSTM(4, return_sequences=True, name="twin")
    return keras.Model([a, b], L.Subtract(name="difference")([lstm(a), lstm(b)]))


def nested() -> Any:
    block = sequence(L.LSTM(5, return_sequences=True, name="rnn"), L.Dense(4, "relu"))
    other = keras.Sequential([keras.Input((None, 4)), L.LSTM(3, return_sequences=True, name="rnn")])
    return of(lambda x: other(block(x)))


def sequence_of_positions() -> Any:
    of_one = keras.Sequential([keras.Input((3,)), L.Dense(4, "relu"), L.LayerNormalization()])
    of_all = keras.Sequential([keras.Input((5, 3)), L.TimeDistributed(of_one), L.GRU(3)])
    return keras.Sequential([keras.Input((None, 5, 3), name="x"), L.TimeDistributed(of_all), L.LSTM(3)])


class Beside(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer that puts what is static beside each timestep, however many there are."""

    def call(self, x: Any, who: Any) -> Any:
        return ops.concatenate([x, ops.repeat(who[:, None], ops.shape(x)[1], axis=1)], axis=-1)

    def compute_output_spec(self, x: Any, who: Any) -> Any:
        return keras.KerasTensor((*x.shape[:2], x.shape[2] + who.shape[1]))


def static_repeated_in_code() -> Any:
    x, who = keras.Input((None, 3), name="x"), keras.Input((2,), name="who")
    return keras.Model([x, who], L.LSTM(4, **RS)(Beside()(x, who)))


class IdsAndNumbers(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A subclassed model of a list: one id for each timestep, and features of each."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table, self.rnn = L.Embedding(9, 2), L.GRU(3, **RS)

    def call(self, inputs: Any) -> Any:
        return self.rnn(ops.concatenate([self.table(inputs[0]), inputs[1]], axis=-1))


class DictOfTensors(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A subclassed model from a dict to a dict, with a static input."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rnn, self.dense = L.LSTM(3, **RS), L.Dense(2)

    def call(self, inputs: Any) -> Any:
        h = self.dense(self.rnn(inputs["x"]))
        return {"speed": h * inputs["who"][:, None, :], "newest": h[:, -1]}


def built(model: Any, inputs: Any) -> Any:
    """Return a subclassed model that has been called once."""
    model(inputs)
    return model


def shared_nested() -> Any:
    """A nested model on two inputs: each call has its own states; the answers meet in a cosine."""
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 3), name="b")
    twin = keras.Sequential([keras.Input((None, 3)), L.GRU(4, **RS), L.LSTM(3)], name="twin")
    return keras.Model([a, b], L.Dot(axes=1, normalize=True, name="likeness")([twin(a), twin(b)]))


ZOO: dict[str, ZooModel] = {
    "two_inputs_two_outputs": ZooModel(
        two_inputs_two_outputs,
        "two inputs, two outputs, one per timestep and one per sequence",
        "both sent with each timestep",
    ),
    "dict_of_outputs": ZooModel(
        dict_of_outputs,
        "outputs in a dict",
        "named by their keys",
    ),
    "ids_besides_the_embedding": ZooModel(
        ids_besides_the_embedding,
        "ids in an embedding and in a mask of the answers",
        "one id for each timestep",
    ),
    "static_input": ZooModel(
        static_input,
        "an input without time axis beside a sequence",
        "sent with each timestep",
    ),
    "static_image": ZooModel(
        static_image,
        "an image, by Conv2D and Dense, as the initial state of a sequence",
        "sent with each timestep; used at the first",
        rows_alike=False,
    ),
    "static_ids_as_many": ZooModel(
        ids_as_long_as_the_state_needs,
        "as many static ids as there are timesteps, as the initial state",
        "sent with each timestep; used at the first",
    ),
    "shared_layer": ZooModel(
        shared_layer,
        "one LSTM called on two inputs",
        "each call has its own states",
    ),
    "nested": ZooModel(
        nested,
        "Sequential models inside a functional one",
        "layers are named by their path",
    ),
    "tokens": ZooModel(
        lambda: keras.Sequential([keras.Input((None,), name="ids"), L.Embedding(9, 4), L.LSTM(5, **RS)]),
        "Embedding of ids, LSTM",
        "an id is an int32",
    ),
    "window": ZooModel(
        lambda: of(lambda x: L.Dense(2)(L.Bidirectional(L.LSTM(3))(L.ZeroPadding1D((5, 0))(x)[:, -6:]))),
        "a window of the last six timesteps, Bidirectional LSTM, Dense",
        "the past five timesteps",
        rows_alike=False,
    ),
    "end_flattened": ZooModel(
        lambda: of(lambda x: L.Dense(2)(L.Reshape((15,))(L.GRU(5, **RS)(x)[:, -3:]))),
        "x[:, -3:] of any number of timesteps, Reshape, Dense",
        "the last three timesteps",
        rows_alike=False,
    ),
    "fixed_reshape": ZooModel(
        lambda: keras.Sequential(
            [keras.Input((12, 6), name="x"), L.Reshape((12, 2, 3)), L.TimeDistributed(L.Flatten()), L.GRU(4)]
        ),
        "Reshape of a fixed length, TimeDistributed(Flatten), GRU",
        "verified over that length",
    ),
    "subclassed_dict": ZooModel(
        lambda: built(
            DictOfTensors(name="own"), {"x": np.zeros((2, 5, 4), np.float32), "who": np.zeros((2, 2), np.float32)}
        ),
        "a subclassed keras.Model from a dict to a dict",
        "inputs and outputs are named by their keys",
    ),
    "subclassed_list": ZooModel(
        lambda: built(IdsAndNumbers(name="own"), [np.zeros((2, 5), np.int32), np.zeros((2, 5, 3), np.float32)]),
        "a subclassed keras.Model of a list: ids and features",
        "an input of two axes is as long as the other one: one id for each timestep",
    ),
    "autoencoder": ZooModel(
        lambda: keras.Sequential(
            [
                keras.Input((5, 3), name="x"),
                L.LSTM(4),
                L.RepeatVector(5),
                L.LSTM(4, **RS),
                L.TimeDistributed(L.Dense(3)),
            ]
        ),
        "LSTM, RepeatVector, LSTM, TimeDistributed(Dense)",
        "the second part runs over its positions in full at every timestep",
    ),
    "network_of_positions": ZooModel(
        sequence_of_positions,
        "TimeDistributed over an axis inside one timestep, in a TimeDistributed network",
        "run on each position",
    ),
    "static_repeated_in_code": ZooModel(
        static_repeated_in_code,
        "ops.repeat of a static input over the timesteps in a custom layer",
        "beside each timestep",
    ),
    "shared_nested": ZooModel(
        shared_nested,
        "a nested model called on two inputs, Dot of the answers",
        "each call has its own states",
    ),
    "python_function": ZooModel(
        lambda: sequence(L.Lambda(lambda x: ops.tanh(x) * 2.0 + x[..., ::-1]), L.GRU(3, **RS)),
        "Lambda",
        "its function is traced",
    ),
    "bytes": ZooModel(
        lambda: keras.Sequential(
            [keras.Input((None, 4), name="x", dtype="uint8"), L.Rescaling(1 / 255), L.GRU(3, **RS)]
        ),
        "an input of uint8, Rescaling, GRU",
        "sent as uint8",
    ),
}
