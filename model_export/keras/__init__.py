"""The Keras front end: from a trained Keras model to one verified ONNX step graph.

The model is walked layer by layer and ONNX is emitted directly, so any Keras backend will do.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model_export.errors import MissingExtraError
from model_export.manifest import METADATA_KEY, Array, Manifest
from model_export.verify import ATOL, RTOL, STEPS, ParityReport, Progress, verify_parity

UserData = Mapping[str, Array] | Callable[[Manifest], Mapping[str, Array]]

__all__ = ["export_model", "load_keras"]


def load_keras(path: Path) -> Any:
    """Load a whole Keras model from a `.keras` or legacy `.h5` file.

    Raises:
        MissingExtraError: Keras, a backend, h5py or onnx is not installed.
        ModelLoadError: It is no such file, has weights only, or needs classes that are not registered.
    """
    _require()
    from model_export.keras.load import load_keras as load

    return load(path)


def export_model(
    model: Any,
    *,
    name: str,
    atol: float = ATOL,
    rtol: float = RTOL,
    user_data: UserData | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, ParityReport]:
    """Export a Keras model and prove the result; writes nothing.

    Args:
        model: A Sequential or functional Keras model with weights.
        name: The model's name in its manifest.
        atol: Absolute tolerance.
        rtol: Relative tolerance.
        user_data: Sequences of the user's own, `{input: (N, T, *shape)}`, or a function of the manifest that
            reads them.
        progress: Called as parts are done.

    Returns:
        The bytes of the ONNX file with its manifest inside, and the parity report.

    Raises:
        MissingExtraError: Keras or onnx is not installed.
        RefusedModelError: A layer cannot be stepped; names it and says why.
        ParityError: Step by step and whole sequence differ; names the first timestep and output.
    """
    _require()
    import keras

    from model_export.keras.original import KerasOriginal, samplers
    from model_export.keras.step import export_keras
    from model_export.step_model import StepModel

    if progress:
        progress("walking the model", 0, 1)
    exported = export_keras(model, name=name)
    data = user_data(exported.manifest) if callable(user_data) else user_data
    original = KerasOriginal(model, exported)
    report = verify_parity(
        original,
        StepModel(exported.proto.SerializeToString(), exported.manifest),
        against=f"keras {keras.__version__} {keras.backend.backend()}",
        samplers=samplers(exported),
        user_data=data,
        steps=original.only_length or STEPS,
        atol=atol,
        rtol=rtol,
        progress=progress,
    )
    exported.manifest.verified = report.parity
    entry = exported.proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, exported.manifest.to_json()
    return exported.proto.SerializeToString(), report


def _require() -> None:
    """Import what this front end stands on.

    Keras' own default is TensorFlow; where that is absent and nothing else was chosen, JAX is.

    Raises:
        MissingExtraError: A package is not installed.
    """
    chosen = "keras" in sys.modules or (Path.home() / ".keras" / "keras.json").is_file()
    if not chosen and importlib.util.find_spec("tensorflow") is None:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    for package in ("keras", "onnx", "h5py"):
        try:
            importlib.import_module(package)
        except ImportError as exc:
            raise MissingExtraError(
                f"Exporting Keras models needs {package}, which cannot be imported: {exc}.",
                fix="pip install 'stepwell[keras]'",
            ) from exc
