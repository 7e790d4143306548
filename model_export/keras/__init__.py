"""The Keras front end: from a trained Keras model to one verified ONNX step graph.

The model is walked layer by layer and ONNX is emitted directly, so any Keras backend will do.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_export.errors import MissingExtraError
from model_export.keras.step_rules import register_step_rule
from model_export.sources import choose_keras_backend

if TYPE_CHECKING:
    from model_export.converted import ConvertedModel
    from model_export.keras.registry import Call
    from model_export.keras.value import Value
    from model_export.verify.parity import ParityReport, Progress

__all__ = ["Call", "Value", "convert", "export_model", "load_keras", "register_step_rule", "to_step_model"]


def __getattr__(name: str) -> Any:
    """Import what a step rule is written with when it is used: a model's module needs no onnx."""
    homes = {"Call": "registry", "Value": "value"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _require()
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)


def load_keras(path: Path) -> Any:
    """Load a whole Keras model from a `.keras` or legacy `.h5` file.

    Raises:
        MissingExtraError: Keras, a backend, h5py or onnx is not installed.
        ModelLoadError: It is no such file, has weights only, or needs classes that are not registered.
    """
    _require()
    from model_export.keras.load import load_keras as load

    return load(path)


def convert(model: Any, *, name: str, progress: Progress | None = None) -> ConvertedModel:
    """Make a step graph of a Keras model, not yet proven.

    Args:
        model: A Keras model with weights.
        name: The model's name in its manifest.
        progress: Called as parts are done.

    Raises:
        MissingExtraError: Keras or onnx is not installed.
        RefusedModelError: A layer cannot be stepped; the message names it and has the reason.
    """
    _require()
    import keras

    from model_export.converted import ConvertedModel
    from model_export.keras.layer_outputs import layer_outputs
    from model_export.keras.reference import KerasReference, rounding, samplers
    from model_export.keras.step import export_keras
    from model_export.keras.subclassed import walkable

    if progress:
        progress("walking the model", 0, 1)
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
        probe=layer_outputs(model, exported, original),
        rounding=rounding(model),
    )


def export_model(model: Any, *, name: str, progress: Progress | None = None, **more: Any) -> tuple[bytes, ParityReport]:
    """Export a Keras model and prove the result; writes nothing.

    Args:
        model: A Keras model with weights.
        name: The model's name in its manifest.
        progress: Called as parts are done.
        more: As `model_export.converted.verify_model` takes it: `atol`, `rtol`, `user_data`, `long_steps`.

    Returns:
        The bytes of the ONNX file with its manifest inside, and the parity report.

    Raises:
        MissingExtraError: Keras or onnx is not installed.
        RefusedModelError: A layer cannot be stepped; the message names it and has the reason.
        ParityError: Step by step and whole sequence differ; names the first timestep and output.
    """
    made = convert(model, name=name, progress=progress)
    from model_export.converted import verify_model

    return verify_model(made, progress=progress, **more)


def to_step_model(model: Any) -> Any:
    """Return a Keras model that does one timestep, for people who want to look at it.

    Args:
        model: A Sequential or functional model with weights, of recurrent layers, causal convolutions and layers that
            look at one timestep.

    Returns:
        A functional `keras.Model` from a dict to a dict: from each input as one timestep `(batch, 1, *row)` and each
        state by its name, to each output and each next state `NAME_next`. It shares its weights with `model`.

    Raises:
        MissingExtraError: Keras or onnx is not installed.
        RefusedModelError: A layer cannot be stepped, or its state has no form in Keras.
    """
    _require()
    from model_export.keras.step_model_keras import to_step_model as make

    return make(model)


def _require() -> None:
    """Import what this front end needs.

    Raises:
        MissingExtraError: A package is not installed.
    """
    choose_keras_backend()
    for package in ("keras", "onnx", "h5py"):
        try:
            importlib.import_module(package)
        except ImportError as exc:
            raise MissingExtraError(
                f"Exporting Keras models needs {package}, which cannot be imported: {exc}.",
                fix="pip install 'stepwell[keras]'",
            ) from exc
