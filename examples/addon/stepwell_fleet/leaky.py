"""The Keras layer `Leaky`, and how it is stepped."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from stepwell import extend


@keras.saving.register_keras_serializable("stepwell_fleet")
class Leaky(keras.Layer):
    """A leaky integrator, level = rate * level + x, over all timesteps at once."""

    def __init__(self, rate: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x: Any) -> Any:
        def joined(one: Any, other: Any) -> Any:
            return one[0] * other[0], one[1] * other[0] + other[1]

        return ops.associative_scan(joined, (ops.full_like(x, self.rate), x), axis=1)[1]

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@extend.register_step_rule(Leaky, start=lambda layer, x: ops.zeros_like(x))
def leaky(layer: Leaky, level: Any, x: Any) -> tuple[Any, Any]:
    level = layer.rate * level + x
    return level, level  # what it carries, and its answer
