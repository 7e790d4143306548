"""The Keras front end: from a trained Keras model to one verified ONNX step graph.

The model's `call` is traced by JAX, and its primitives become operators as those of any function of JAX do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepwell_export.keras.own_layers import register_step_rule
from stepwell_export.required import require
from stepwell_export.runtime.errors import RefusedModelError

if TYPE_CHECKING:
    from stepwell_export.converted import ConvertedModel
    from stepwell_export.keras.load import load_keras
    from stepwell_export.verify.parity import Progress

__all__ = ["convert", "load_keras", "register_step_rule"]


def __getattr__(name: str) -> Any:
    """Import what is used when it is used: a model's module needs no onnx.

    Raises:
        MissingExtraError: Keras, a backend, h5py or onnx is not installed.
    """
    if name != "load_keras":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _require()
    return importlib.import_module(f"{__name__}.load").load_keras


def convert(model: Any, *, name: str, progress: Progress | None = None) -> ConvertedModel:
    """Make a step graph of a Keras model, not yet proven.

    Args:
        model: A Keras model with weights.
        name: The model's name in its manifest.
        progress: Called as parts are done.

    Raises:
        MissingExtraError: Keras or onnx is not installed.
        RefusedModelError: A layer cannot be stepped; the message names it and has the reason. Or Keras runs on another
            backend than JAX.
        UnclearModelError: The name is none.
    """
    _require()
    import keras

    from stepwell_export.arguments import check_name
    from stepwell_export.converted import ConvertedModel
    from stepwell_export.keras.reference import KerasReference, rounding, samplers
    from stepwell_export.keras.sequence import export_keras
    from stepwell_export.keras.subclassed import walkable

    check_name(name)
    if (backend := keras.backend.backend()) != "jax":
        raise RefusedModelError(
            f"Keras runs on the {backend} backend; expected jax, by which the exporter traces a model.",
            fix='Save the model with `model.save("m.keras")`, and export that file in a process of its own: '
            "KERAS_BACKEND=jax stepwell export m.keras -o m.onnx.",
        )
    if progress:
        progress("tracing the model", 0, 1)
    model = walkable(model)
    exported = export_keras(model, name=name)
    original = KerasReference(model, exported)
    return ConvertedModel(
        exported.proto,
        exported.manifest,
        original,
        against=f"keras {keras.__version__} {keras.backend.backend()}",
        samplers=samplers(exported),
        only_length=original.only_length,
        longest=original.longest,
        probe=original.activations,
        rounding=rounding(model),
        windows=exported.step.windows,
        observer=original.observer,
        vocabularies={name: fact.vocabulary for name, fact in exported.facts.items() if fact.vocabulary is not None},
        compiles=True,
    )


def _require() -> None:
    """Import what this front end needs.

    Raises:
        MissingExtraError: A package is not installed.
    """
    from stepwell_export.export_sources import choose_keras_backend  # what it imports needs NumPy

    choose_keras_backend()
    require(("keras", "jax", "onnx", "h5py"), "Keras models", extra="keras")
