"""Layers that can never be stepped, each with its reason and what to do."""

from __future__ import annotations

from typing import NoReturn

from model_export.keras.registry import Call, rule

REFUSED: dict[tuple[str, ...], tuple[str, str]] = {
    ("AdaptiveAveragePooling1D", "AdaptiveMaxPooling1D"): (
        "it changes the number of timesteps",
        "A stream has one answer for each timestep. For a causal convolution use Conv1D with padding='causal'.",
    ),
}


def _register(layers: tuple[str, ...], why: str, fix: str) -> None:
    @rule(*layers)
    def refuse(call: Call) -> NoReturn:
        raise call.refuse(why, fix)


for _layers, (_why, _fix) in REFUSED.items():
    _register(_layers, _why, _fix)
