"""Zoo: dtypes other than float32; the step graph computes in float32 and takes and gives what the model declares."""

from __future__ import annotations

from typing import Any

import keras

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, sequence


def policy(name: str) -> Any:
    """Return a small model whose layers have this dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        return sequence(
            L.LSTM(6, **RS), L.LayerNormalization(), L.Conv1D(5, 3, padding="causal", activation="relu"), L.Dense(3)
        )
    finally:
        keras.config.set_dtype_policy(before)


ZOO: dict[str, ZooModel] = {
    "mixed_float16": ZooModel(
        lambda: policy("mixed_float16"),
        "the policy mixed_float16",
        "computed in float32, answered in float16",
        tolerance=5e-3,
    ),
    "mixed_bfloat16": ZooModel(
        lambda: policy("mixed_bfloat16"),
        "the policy mixed_bfloat16",
        "computed and answered in float32, which has more digits",
        tolerance=5e-2,
    ),
    "float64": ZooModel(
        lambda: policy("float64"),
        "the policy float64",
        "computed in float32, answered in float64",
    ),
    "float16_input": ZooModel(
        lambda: keras.Sequential([keras.Input((None, 4), name="x", dtype="float16"), L.GRU(3, **RS)]),
        "an input of float16",
        "sent as float16",
    ),
}
