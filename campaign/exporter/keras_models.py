"""Generated models in Keras: layers, and custom layers and cells in `keras.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from campaign.exporter.built import VOCABULARY, Array, Built, exported
from campaign.exporter.cases import Case
from campaign.exporter.ops import Setting, Tensor
from campaign.exporter.rare import CELLS, SEQUENCE, STEPWISE, is_beyond


class KerasOps:
    """`SequenceOps` in `keras.ops`."""

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.maximum(a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.minimum(a, b)

    def mod(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.mod(a, b)

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.cast(a > b, "float32")

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return ops.where(condition > 0.5, a, b)

    def abs(self, a: Tensor) -> Tensor:
        return ops.abs(a)

    def exp(self, a: Tensor) -> Tensor:
        return ops.exp(a)

    def log(self, a: Tensor) -> Tensor:
        return ops.log(a)

    def sqrt(self, a: Tensor) -> Tensor:
        return ops.sqrt(a)

    def tanh(self, a: Tensor) -> Tensor:
        return ops.tanh(a)

    def floor(self, a: Tensor) -> Tensor:
        return ops.floor(a)

    def round(self, a: Tensor) -> Tensor:
        return ops.round(a)

    def sign(self, a: Tensor) -> Tensor:
        return ops.sign(a)

    def relu(self, a: Tensor) -> Tensor:
        return ops.relu(a)

    def clip(self, a: Tensor, low: float, high: float) -> Tensor:
        return ops.clip(a, low, high)

    def log1p(self, a: Tensor) -> Tensor:
        return ops.log1p(a)

    def expm1(self, a: Tensor) -> Tensor:
        return ops.expm1(a)

    def tail(self, a: Tensor) -> Tensor:
        return 1.0 - ops.erf(a)

    def floor_quotient(self, a: Tensor, b: float) -> Tensor:
        return a // b

    def first(self, a: Tensor) -> Tensor:
        return a[:, :1]

    def how_many(self, a: Tensor, limit: float) -> Tensor:
        return ops.cast(ops.count_nonzero(a > limit), "float32")

    def feature_max(self, a: Tensor) -> Tensor:
        return ops.max(a, axis=-1, keepdims=True)

    def largest_place(self, a: Tensor) -> Tensor:
        return ops.one_hot(ops.argmax(a, axis=-1), a.shape[-1])

    def running_max(self, a: Tensor) -> Tensor:
        return ops.associative_scan(ops.maximum, a, axis=1)

    def running_sum(self, a: Tensor) -> Tensor:
        return ops.cumsum(a, axis=1)

    def late(self, a: Tensor, steps: int) -> Tensor:
        return ops.pad(a, [[0, 0], [steps, 0], [0, 0]])[:, :-steps]

    def early(self, a: Tensor, steps: int) -> Tensor:
        return ops.pad(a, [[0, 0], [0, steps], [0, 0]])[:, steps:]

    def count(self, a: Tensor) -> Tensor:
        return ops.cumsum(ops.ones_like(a[..., :1]), axis=1)

    def time_max(self, a: Tensor) -> Tensor:
        return ops.max(a, axis=1, keepdims=True)

    def time_mean(self, a: Tensor) -> Tensor:
        return ops.mean(a, axis=1, keepdims=True)

    def row_max(self, a: Tensor) -> Tensor:
        return ops.max(a, axis=0, keepdims=True)

    def decaying_attention(self, a: Tensor, decay: float) -> Tensor:
        place = ops.cumsum(ops.ones_like(a[..., :1]), axis=1)
        distance = place - ops.transpose(place, (0, 2, 1))
        scores = ops.matmul(a, ops.transpose(a, (0, 2, 1))) / math.sqrt(a.shape[2]) - decay * distance
        return ops.matmul(ops.softmax(ops.where(distance < 0, -1e9, scores)), a)

    def if_longer(self, a: Tensor, at: Setting, then: Callable[[Tensor], Tensor]) -> Tensor:
        length = a.shape[1]
        return then(a) if length is not None and is_beyond(length, at) else a

    def if_above(self, a: Tensor, limit: float, how: int, then: Callable[[Tensor], Tensor]) -> Tensor:
        if how % 3 == 0:
            return ops.cond(ops.max(a) > limit, lambda: then(a), lambda: a)
        is_above = ops.any(a > limit) if how % 3 == 1 else ops.max(a) > limit
        return ops.where(is_above, then(a), a)


class Part(layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A rare condition as a layer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def call(self, x: Tensor) -> Tensor:
        if self.case.rare == "ids modulo":
            return ops.mod(x, VOCABULARY)
        if self.case.rare == "ids divided":
            return ops.mod(x // 1000, VOCABULARY)
        part = SEQUENCE.get(self.case.rare) or STEPWISE[self.case.rare]
        return part(KerasOps(), x, self.case.setting)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class Cell(layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A cell for `keras.layers.RNN`."""

    def __init__(self, case: Case, name: str, units: int) -> None:
        super().__init__()
        self.case, self.step_name, self.units = case, name, units
        self.state_size, self.output_size = [units], units

    def call(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        answer, after = CELLS[self.step_name].step(KerasOps(), x, states[0], self.case.setting)
        return answer, [after]


def build(case: Case) -> Built:
    """Return a Keras model."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(case.seed * 1000 + case.index)
    units = case.units
    x = given = keras.Input((None,) if case.takes_ids else (None, case.features), name="x",
                            dtype="int32" if case.takes_ids else "float32")  # fmt: skip
    if case.rare.startswith("ids"):
        x = Part(case)(x)
    if case.takes_ids:
        x = layers.Embedding(VOCABULARY, units)(x)
    is_part = case.rare in SEQUENCE or case.rare in STEPWISE
    if is_part and case.place == "before":
        x = Part(case)(x)
    start = x
    for name in [*([case.rare] if case.place == "inside" else []), *case.blocks]:
        if name in CELLS:
            x = layers.RNN(Cell(case, name, x.shape[-1]), return_sequences=True)(x)
        elif name != "embedding":
            x = {
                "lstm": lambda: layers.LSTM(units, return_sequences=True),
                "gru": lambda: layers.GRU(units, return_sequences=True),
                "rnn": lambda: layers.SimpleRNN(units, return_sequences=True),
                "dense": lambda: layers.Dense(units),
                "conv": lambda: layers.Conv1D(units, 3, padding="causal"),
                "relu": layers.ReLU,
                "norm": layers.LayerNormalization,
            }[name]()(x)
    y = layers.Dense(2)(x)
    if is_part and case.place == "behind":
        y = Part(case)(y + layers.Dense(2)(start))
    if case.head == "mean":
        y = layers.GlobalAveragePooling1D()(y)
    elif case.head == "last":
        y = layers.Lambda(lambda value: value[:, -1])(y)
    elif case.head == "recent":
        y = layers.Lambda(lambda value: ops.mean(value[:, -case.setting.period :], axis=1))(y)
    model = keras.Model(given, y)

    def run(values: Array) -> Array:
        answer: Array = ops.convert_to_numpy(model(values, training=False))
        return answer

    return Built(run, lambda path: exported(model, path))
