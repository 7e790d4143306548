"""Rules of preprocessing layers: numbers into bins and codes, augmentation that rests; text and sound are refused."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import numpy as np

from model_export.keras.registry import Call, rule
from model_export.keras.value import Value

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


@rule(
    "AugMix", "CutMix", "Equalization", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration",
    "RandomColorJitter", "RandomContrast", "RandomElasticTransform", "RandomErasing", "RandomFlip",
    "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization",
    "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear", "RandomTranslation", "RandomZoom",
    "Solarization",
)  # fmt: skip
def augmentation(call: Call) -> Value:
    """Augmentation, which rests outside training."""
    return call.as_float(call.value)


@rule("Discretization")
def discretization(call: Call) -> Value:
    """The bin that each number falls into, as a number or as a code."""
    layer, x = call.layer, call.as_float(call.value)
    bounds = call.constant(np.asarray(layer.bin_boundaries))
    below = call.op("Less", call.op("Unsqueeze", x, call.graph.ints([-1])), bounds)
    passed = call.cast(call.op("Not", below), "int32")
    bins = x.like(call.op("ReduceSum", passed, call.graph.ints([-1]), keepdims=0), dtype="int32")
    return bins if layer.output_mode == "int" else _encoded(call, bins, len(layer.bin_boundaries) + 1)


@rule("CategoryEncoding")
def category_encoding(call: Call) -> Value:
    """A code for each number of a class."""
    if len(call.args) > 1 or "count_weights" in call.kwargs:
        raise call.refuse("it takes count_weights", "Multiply by the weights behind it.")
    call.graph.note_vocabulary(call.value, call.layer.num_tokens)
    return _encoded(call, call.value, call.layer.num_tokens)


def _encoded(call: Call, x: Value, depth: int) -> Value:
    """Return one place for each class: one of them set, or all that occur, or how often each does.

    A class outside the table sets none. Source: `keras.src.utils.numerical_utils.encode_categorical_inputs`.
    """
    mode = call.layer.output_mode
    if mode == "one_hot" and x.row and x.row[-1] == 1:
        x = call.reshaped(x, x.row[:-1])
    classes = call.constant(np.arange(depth), x.dtype)
    hits = call.op("Equal", call.op("Unsqueeze", x, call.graph.ints([-1])), classes)
    codes = x.like(call.cast(hits, "float32"), row=(*x.row, depth), dtype="float32")
    if mode == "one_hot" or x.rank == 1:
        return codes
    if x.is_sequence and len(x.row) == 1:
        raise call.refuse(
            f"output_mode={mode!r} joins along axis 1, which is time here",
            "Encode each timestep: TimeDistributed(...), or output_mode='one_hot'.",
        )
    kind = "ReduceMax" if mode == "multi_hot" else "ReduceSum"
    return codes.like(call.op(kind, codes, call.graph.ints([1]), keepdims=0), row=codes.row[1:])


def _refuse(reason: tuple[str, str], call: Call) -> NoReturn:
    raise call.refuse(*reason)


for _layers, _reason in REFUSED.items():
    rule(*_layers)(partial(_refuse, _reason))
