"""Layers that can never be stepped, each with its reason and what to do."""

from __future__ import annotations

from typing import NoReturn

from model_export.keras.deferred import handles_deferred
from model_export.keras.registry import Call, op_rule, rule

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


@op_rule("Scan", "AssociativeScan", "WhileLoop", "ForiLoop")
@handles_deferred
def loop(call: Call) -> NoReturn:
    """Loops of `keras.ops`: what they run is a function, and no layer that a timestep could be asked of."""
    raise call.refuse(
        "it runs a function of its own over a whole sequence, and nothing says what one timestep of that is",
        "Let a recurrent layer run it: keras.layers.RNN(cell), with the function as the cell's `call`. Or put it into "
        "a layer of your own and say what one timestep is: stepwell.register_step_rule.",
    )
