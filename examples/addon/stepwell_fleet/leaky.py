"""The Keras layer `Leaky`, and how it is stepped."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from stepwell import extend


@keras.saving.register_keras_serializable("stepwell_fleet")
class Leaky(keras.Layer):
    """A leaky integrator: level = rate * level + x, over time."""

    def __init__(self, rate: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x: Any) -> Any:
        def step(level: Any, now: Any) -> Any:
            level = self.rate * level + now
            return level, level

        _, levels = ops.scan(step, ops.zeros_like(x[:, 0]), ops.swapaxes(x, 0, 1))
        return ops.swapaxes(levels, 0, 1)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate}


@extend.register_step_rule(Leaky)
def leaky(call: extend.Call) -> extend.Value:
    x = call.value
    level = call.state("level", x.row)  # before this timestep; zeros before the first one
    (new,) = call.run(lambda level, now: call.layer.rate * level + now, level, x)
    call.next_state(level, new)  # after it
    return new
