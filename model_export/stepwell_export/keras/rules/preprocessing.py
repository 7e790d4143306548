"""Layers of preprocessing that are refused, with what to do instead."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from stepwell_export.keras.rule_registry import Call, rule

_LOOKUP = (
    "its table lives in TensorFlow, and so does its hash",
    "Look values up where they come from (`get_vocabulary()`), and let the model begin with numbers.",
)
_IMAGE = (
    "it prepares whole images",
    "Send images that are prepared: resize and crop where they come from.",
)
_POOLING = (
    "it changes the number of timesteps",
    "A stream has one answer for each timestep. For a causal convolution use Conv1D with padding='causal'.",
)
_SOUND = (
    "it cuts a waveform into windows of its own",
    "Send one window, or one spectrum, for each timestep.",
)

REFUSED: dict[tuple[str, ...], tuple[str, str]] = {
    ("Hashing", "HashedCrossing", "IntegerLookup", "StringLookup", "TextVectorization"): _LOOKUP,
    ("AutoContrast", "CenterCrop", "CLAHE", "MaxNumBoundingBoxes", "RandomCrop", "Resizing"): _IMAGE,
    ("MelSpectrogram", "STFTSpectrogram"): _SOUND,
    ("AdaptiveAveragePooling1D", "AdaptiveMaxPooling1D"): _POOLING,
}  # fmt: skip


def _refuse(reason: tuple[str, str], call: Call) -> NoReturn:
    raise call.refuse(*reason)


for _layers, _reason in REFUSED.items():
    rule(*_layers)(partial(_refuse, _reason))
