"""The rules of Keras' layers and operations; importing this package registers them all."""

from __future__ import annotations

from model_export.keras.rules import (
    attention,
    basic,
    conv,
    lookup,
    matmul,
    merge,
    norm,
    ops,
    pad,
    pool,
    preprocessing,
    recurrent,
    reductions,
    resize,
    shapes,
)

__all__ = [
    "attention",
    "basic",
    "conv",
    "lookup",
    "matmul",
    "merge",
    "norm",
    "ops",
    "pad",
    "pool",
    "preprocessing",
    "recurrent",
    "reductions",
    "resize",
    "shapes",
]
