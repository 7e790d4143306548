"""Layers that can never be stepped, each with its reason and what to do."""

from __future__ import annotations

from typing import NoReturn

from model_export.keras.registry import Call, rule

_CAUSAL = "Use a causal layer: LSTM, GRU, SimpleRNN, or Conv1D with padding='causal'."

REFUSED: dict[tuple[str, ...], tuple[str, str]] = {
    ("Bidirectional",): (
        "it also reads the sequence from its end, and a live stream has none yet",
        "Train the forward layer alone, or serve the model on whole sequences.",
    ),
    ("AdaptiveAveragePooling1D", "AdaptiveMaxPooling1D", "UpSampling1D", "Cropping1D", "ZeroPadding1D"): (
        "it changes the number of timesteps",
        "A stream has one answer for each timestep. For a causal convolution use Conv1D with padding='causal'.",
    ),
    ("RepeatVector",): (
        "it makes a sequence of timesteps out of one vector",
        "Decode outside the model: feed the answer back as the next input (`rollout`).",
    ),
    ("Conv1DTranspose", "SeparableConv1D", "DepthwiseConv1D"): ("it convolves over the time axis", _CAUSAL),
    ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"): (
        "convolutional recurrent layers have no rule yet",
        "Flatten each timestep with TimeDistributed and use LSTM.",
    ),
    ("Lambda",): (
        "its Python code is not part of the model file and may do anything",
        "Write a layer class whose `call` uses keras.ops.",
    ),
}


def _register(layers: tuple[str, ...], why: str, fix: str) -> None:
    @rule(*layers)
    def refuse(call: Call) -> NoReturn:
        raise call.refuse(why, fix)


for _layers, (_why, _fix) in REFUSED.items():
    _register(_layers, _why, _fix)
