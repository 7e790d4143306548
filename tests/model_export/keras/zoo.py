"""Every Keras model that the tests step: small, of every kind, with weights that leave nothing at its default."""

from __future__ import annotations

from typing import Any

from tests.model_export.keras import (
    zoo_attention,
    zoo_conv,
    zoo_layers,
    zoo_masks,
    zoo_models,
    zoo_ops,
    zoo_pooling,
    zoo_precision,
    zoo_preprocessing,
    zoo_recurrent,
)
from tests.model_export.keras.zoo_parts import ZooModel, randomise
from tests.model_export.merging import merged

ZOO: dict[str, ZooModel] = merged(
    zoo_recurrent.ZOO,
    zoo_masks.ZOO,
    zoo_models.ZOO,
    zoo_layers.ZOO,
    zoo_conv.ZOO,
    zoo_ops.ZOO,
    zoo_precision.ZOO,
    zoo_attention.ZOO,
    zoo_pooling.ZOO,
    zoo_preprocessing.ZOO,
)


def build(name: str) -> Any:
    """Return a model of the zoo with random weights everywhere, biases and statistics included."""
    model = ZOO[name].build()
    randomise(model)
    return model
