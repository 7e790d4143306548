"""Zoo: attention over time with a cache, attention inside a timestep, and positions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, ops

T = 12


class TokenAndPosition(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Learned positions as many guides write them: an embedding of `arange`."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = L.Embedding(9, 8), L.Embedding(T, 8)

    def call(self, ids: Any) -> Any:
        return self.tokens(ids) + self.positions(ops.arange(0, ops.shape(ids)[-1]))


class PositionTable(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Learned positions as KerasHub gives them: a table of its own, broadcast to the batch."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(T, shape[-1]), name="table")

    def call(self, x: Any) -> Any:
        rows, steps, width = ops.shape(x)
        return ops.broadcast_to(
            ops.slice(ops.convert_to_tensor(self.table), (0, 0), (steps, width)), (rows, steps, width)
        )


class Sines(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Positions as sines and cosines, computed from the shape alone."""

    def call(self, x: Any) -> Any:
        rows, steps, width = ops.shape(x)
        angles = ops.arange(steps, dtype="float32")[:, None] / 10.0 ** (ops.arange(width, dtype="float32") // 2)
        even = ops.cast(ops.arange(width) % 2, "float32")
        return ops.broadcast_to(ops.sin(angles) * (1 - even) + ops.cos(angles) * even, (rows, steps, width))


class MaskedBlock(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A decoder block as many guides write it: the causal mask is made by hand, one for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = L.MultiHeadAttention(2, 4)
        self.norm, self.norm_2 = L.LayerNormalization(), L.LayerNormalization()
        self.feed = keras.Sequential([L.Dense(16, "relu"), L.Dense(8)])

    def call(self, x: Any) -> Any:
        rows, steps = ops.shape(x)[:2]
        mask = ops.arange(steps)[:, None] >= ops.arange(steps)
        h = self.norm(x + self.attend(x, x, attention_mask=ops.broadcast_to(mask, (rows, steps, steps))))
        return self.norm_2(h + self.feed(h))


class WindowBlock(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Attention to the last 4 timesteps, whose mask is made for the sequence that comes."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = L.MultiHeadAttention(2, 4)

    def call(self, x: Any) -> Any:
        place = ops.arange(ops.shape(x)[1])
        lag = ops.expand_dims(place, 1) - place
        return x + self.attend(x, x, attention_mask=ops.logical_and(lag >= 0, lag < 4)[None])


class AttentionByHand(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Attention written with operations on the whole sequence, its heads in front of the timesteps."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts, self.out = [L.Dense(8) for _ in range(3)], L.Dense(8)

    def call(self, x: Any) -> Any:
        steps = ops.shape(x)[1]
        q, k, v = (ops.transpose(ops.reshape(part(x), (-1, steps, 2, 4)), (0, 2, 1, 3)) for part in self.parts)
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2.0
        scores = ops.where(ops.tril(ops.ones((steps, steps))) == 0, -1e9, scores)
        found = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        return self.out(ops.reshape(found, (-1, steps, 8)))


class LoopByHand(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A recurrence as a Python loop over the timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = L.Dense(5, "tanh")

    def call(self, x: Any) -> Any:
        h = ops.zeros_like(x[:, 0, :5])
        states = []
        for t in range(x.shape[1]):
            h = self.cell(ops.concatenate([h, x[:, t]], axis=-1))
            states.append(h)
        return ops.stack(states, axis=1)


def over(build: Any, steps: int | None = T, features: int = 8) -> Any:
    """Return a model of one input `x` of so many timesteps."""
    x = keras.Input((steps, features), name="x")
    return keras.Model(x, build(x))


def block(x: Any) -> Any:
    """Return a decoder block: attention in front of which and behind which is normalised."""
    y = L.LayerNormalization()(x)
    x = L.Add()([x, L.MultiHeadAttention(2, 4, dropout=0.1)(y, y, use_causal_mask=True)])
    y = L.Dense(16, "gelu")(L.LayerNormalization()(x))
    return L.Add()([x, L.Dense(8)(y)])


def decoder(x: Any) -> Any:
    return L.Dense(3)(L.LayerNormalization()(block(block(x))))


def small_gpt() -> Any:
    ids = keras.Input((T,), dtype="int32", name="ids")
    return keras.Model(ids, L.Dense(9)(MaskedBlock()(TokenAndPosition()(ids))))


def causal(layer: Any, **kwargs: Any) -> Any:
    return lambda x: layer(x, x, use_causal_mask=True, **kwargs)


def self_attention(layer: Any) -> Any:
    return lambda x: layer([L.Dense(6)(x), L.Dense(5)(x), L.Dense(6)(x)], use_causal_mask=True)


class CutMask(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Self-attention with a constant mask, cut to the number of timesteps."""

    def __init__(self, mask: Any, *, axes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attend, self.mask_table = L.MultiHeadAttention(2, 3, attention_axes=axes), mask

    def call(self, x: Any) -> Any:
        steps = ops.shape(x)[1]
        return self.attend(x, x, attention_mask=ops.convert_to_tensor(self.mask_table)[..., :steps, :steps])


def product(x: Any) -> Any:
    q, k, v = (L.Reshape((T, 2, 4))(L.Dense(8)(x)) for _ in range(3))
    return L.Reshape((T, 8))(ops.dot_product_attention(q, k, v, is_causal=True))


def pooled(x: Any) -> Any:
    """The last state is the query, the timesteps before it are the keys."""
    h, last = L.GRU(6, return_state=True, **RS)(x)
    found = L.AdditiveAttention()([L.Reshape((1, 6))(last), h])
    return L.Dense(2)(L.Concatenate()([last, L.Flatten()(found)]))


def masked(x: Any) -> Any:
    h = L.LSTM(6, **RS)(L.Masking()(x))
    return L.GRU(3, **RS)(L.Attention()([h, L.Dense(6)(h)], use_causal_mask=True))


def to_memory() -> Any:
    x, who = keras.Input((None, 8), name="x"), keras.Input((5,), name="who")
    memory = L.Reshape((3, 4))(L.Dense(12)(who))
    h = L.MultiHeadAttention(2, 3, output_shape=7)(L.LSTM(6, **RS)(x), memory)
    return keras.Model([x, who], L.Attention(use_scale=True)([L.Dense(4)(h), memory]))


def inside(x: Any) -> Any:
    """Attention over the parts of each timestep."""
    parts = L.Reshape((-1, 4, 2))(x)
    h = L.MultiHeadAttention(2, 3, attention_axes=2)(parts, parts, attention_mask=np.tril(np.ones((4, 4), bool)))
    h = L.Attention()([h, parts])
    return L.GRU(3, **RS)(L.Reshape((-1, 8))(h))


BANDED = np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -5)
BLOCKS = np.kron(np.eye(3, dtype=bool), np.ones((4, 4), bool)) & np.tril(np.ones((T, T), bool))

ZOO: dict[str, ZooModel] = {
    "attention_causal": ZooModel(
        lambda: over(causal(L.MultiHeadAttention(2, 3))),
        "MultiHeadAttention with use_causal_mask",
        "past keys and values, as many as the model has timesteps; the position in the stream",
    ),
    "attention_grouped": ZooModel(
        lambda: over(causal(L.GroupQueryAttention(3, 4, 2))),
        "GroupQueryAttention, two heads for each key",
        "past keys and values of the shared heads",
    ),
    "attention_concat": ZooModel(
        lambda: over(self_attention(L.Attention(score_mode="concat"))), "Attention by sum", "past keys and values"
    ),
    "attention_additive": ZooModel(
        lambda: over(self_attention(L.AdditiveAttention())), "AdditiveAttention", "past keys and values"
    ),
    "attention_window": ZooModel(
        lambda: over(WindowBlock(), None),
        "a custom layer that makes a banded mask for any number of timesteps",
        "the past 3 keys and values",
    ),
    "attention_blocks": ZooModel(
        lambda: over(CutMask(BLOCKS[None])),
        "a constant attention_mask that differs from timestep to timestep, cut to those of the input",
        "past keys and values; the mask's row is looked up by the position in the stream",
    ),
    "attention_pooled": ZooModel(
        lambda: over(pooled), "the last state attends to all timesteps so far", "past keys; the recurrent state"
    ),
    "attention_masked": ZooModel(
        lambda: over(masked), "Attention of masked timesteps", "past keys and values, and which of them count"
    ),
    "attention_to_memory": ZooModel(
        to_memory, "attention from timesteps to a static input", "no state: the memory is the same at every timestep"
    ),
    "attention_operation": ZooModel(
        lambda: over(product), "ops.dot_product_attention between layers", "past keys and values"
    ),
    "attention_by_hand": ZooModel(
        lambda: over(lambda x: L.LayerNormalization()(x + AttentionByHand()(x))),
        "a custom layer that is causal attention, written with operations on the whole sequence",
        "past keys and values; the position in the stream",
    ),
    "loop_by_hand": ZooModel(
        lambda: over(lambda x: L.Dense(3)(LoopByHand()(x))),
        "a custom layer with a Python loop over the timesteps",
        "the state that the loop hands on: its body is one step",
    ),
    "positions_of_tokens": ZooModel(
        small_gpt,
        "a small GPT: custom layers, learned positions, a causal mask made by hand",
        "past keys and values; the position in the stream, at which the table is looked up",
    ),
    "positions_table": ZooModel(
        lambda: over(lambda x: L.SimpleRNN(3, **RS)(L.Add()([x, PositionTable()(x)]))),
        "learned positions as KerasHub gives them",
        "the position in the stream",
    ),
    "positions_sines": ZooModel(
        lambda: over(lambda x: block(x + Sines()(x))),
        "positions as sines",
        "the position in the stream",
    ),
}  # fmt: skip
