"""Zoo: attention pooling, a sum over time of what a softmax over time weighs, as people write it."""

from __future__ import annotations

from typing import Any

import keras

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, of, ops, sequence

_HOW = "the weighed mean of the timesteps so far, the sum of the weights, the highest score unless all are small"


def by_permutation(x: Any) -> Any:
    """As it was written before Keras had attention layers."""
    h = L.LSTM(4, **RS)(x)
    weights = L.Activation("softmax")(L.Flatten()(L.Dense(1, "tanh")(h)))
    weights = L.Permute([2, 1])(L.RepeatVector(4)(weights))
    return ops.sum(L.multiply([h, weights]), axis=-2)


class Pooling(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Attention pooling; `way` is how it is written."""

    def __init__(self, way: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.way, self.score, self.supports_masking = way, L.Dense(3 if way == "heads" else 1), True

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return None

    def call(self, h: Any, mask: Any = None) -> Any:
        scores = self.score(h)
        if self.way == "einsum":
            return ops.einsum("bt,btd->bd", ops.softmax(scores[..., 0], axis=-1), h)
        if self.way == "heads":
            return ops.matmul(ops.transpose(ops.softmax(scores, axis=1), (0, 2, 1)), h)
        scores = scores if mask is None else ops.where(mask[..., None], scores, -1e9)
        return ops.sum(h * ops.softmax(scores, axis=1), axis=1)


ZOO: dict[str, ZooModel] = {
    "pooling_permutation": ZooModel(
        lambda: of(by_permutation), "the same with Flatten, Activation('softmax'), RepeatVector, Permute", _HOW
    ),
    "pooling_einsum": ZooModel(
        lambda: sequence(L.GRU(4, **RS), Pooling("einsum")), "the same with ops.softmax and ops.einsum", _HOW
    ),
    "pooling_heads": ZooModel(
        lambda: sequence(L.GRU(4, **RS), Pooling("heads")),
        "several heads of it, with ops.transpose and ops.matmul",
        _HOW,
    ),
    "pooling_masked": ZooModel(
        lambda: sequence(L.Masking(), L.GRU(4, **RS), Pooling("masked")),
        "a custom layer that takes a mask: attention pooling of what counts",
        _HOW,
    ),
}
