"""The flavor `stepwell` of MLflow models: a step graph, exported and verified when the model is logged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import FileError, MissingExtraError, StepwellError
from stepwell_export.runtime.files import write_atomically
from stepwell_export.runtime.manifest import Manifest, TensorSpec
from stepwell_export.runtime.step_model import StepModel

FLAVOR: Final = "stepwell"
_FILE: Final = "model.onnx"


class MlflowModelError(StepwellError):
    """An MLflow model has no step graph, or a deployment cannot be made of it."""

    code = "mlflow_model"


def imported_mlflow() -> Any:
    """Return the module `mlflow`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import mlflow
        import mlflow.models
    except ImportError as exc:
        raise MissingExtraError(
            "MLflow is not installed.", fix="Install it: pip install 'stepwell[mlflow]', or mlflow itself."
        ) from exc
    return mlflow


def save_model(
    model: Any, path: str | Path, *, mlflow_model: Any = None, signature: Any = None, **export_options: Any
) -> Any:
    """Export a model and save it as an MLflow model of the flavor `stepwell`.

    Args:
        model: A trained model, or what else `stepwell.export` takes; a step graph's file is copied as it is.
        path: The folder to write.
        mlflow_model: The MLflow model's description, to which the flavor is added; None: a new one.
        signature: Its signature; None: made of the manifest: a row of each input and output.
        export_options: As for `stepwell.export`, for example `verify`, `labels` or `weights`.

    Returns:
        The MLflow model's description.

    Raises:
        FileError: The folder cannot be written.
        StepwellError: As for `stepwell.export`: the model cannot be stepped, or the verification failed.
    """
    mlflow = imported_mlflow()
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise FileError(f"{folder} cannot be written: {exc.strerror}.", fix="Give another path.") from exc
    manifest = _written(model, folder / _FILE, export_options)
    description = mlflow.models.Model() if mlflow_model is None else mlflow_model
    description.signature = signature or _signature_of(manifest)
    verified = {} if manifest.verified is None else manifest.verified.model_dump()
    description.add_flavor(
        FLAVOR, model=_FILE, model_name=manifest.name, stepwell_version=_stepwell_version(), verified=verified
    )
    description.save(str(folder / "MLmodel"))
    return description


def log_model(model: Any, name: str, *, registered_model_name: str | None = None, **options: Any) -> Any:
    """Export a model and log it in the current MLflow run.

    Args:
        model: As for `save_model`.
        name: The model's name in the run.
        registered_model_name: Also register a version of this model.
        options: As for `save_model`.

    Returns:
        MLflow's `ModelInfo`.

    Raises:
        StepwellError: As for `save_model`.
    """
    mlflow = imported_mlflow()
    return mlflow.models.Model.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        registered_model_name=registered_model_name,
        model=model,
        **options,
    )


def load_model(model_uri: str) -> StepModel:
    """Return the step graph of an MLflow model, loaded.

    Args:
        model_uri: MLflow's URI, for example `models:/pump@champion`.

    Raises:
        MlflowModelError: The model has no step graph.
    """
    return StepModel(model_file(model_uri))


def model_file(model_uri: str) -> Path:
    """Return the step graph's file of an MLflow model; it is downloaded if it is remote.

    Raises:
        MlflowModelError: The model has no step graph.
    """
    mlflow = imported_mlflow()
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri))
    flavors = mlflow.models.Model.load(str(folder / "MLmodel")).flavors if (folder / "MLmodel").is_file() else {}
    if FLAVOR not in flavors:
        raise MlflowModelError(
            f"{model_uri} has the flavors {', '.join(flavors) or 'of no MLflow model'}; expected {FLAVOR!r}.",
            fix="Log it by stepwell.mlflow.log_model(model, name), which exports it.",
        )
    return folder / str(flavors[FLAVOR]["model"])


def _written(model: Any, target: Path, options: dict[str, Any]) -> Manifest:
    """Write a step graph, and return its manifest."""
    if _is_step_graph(model) and not options:
        write_atomically(target, Path(model).read_bytes())
    else:
        export_source(model, target, **{"name": "model", **options})
    return StepModel(target).manifest


def _is_step_graph(model: Any) -> bool:
    if not isinstance(model, str | Path) or Path(model).suffix != ".onnx":
        return False
    try:
        StepModel(Path(model))
    except StepwellError:
        return False  # a graph over sequences, which is exported
    return True


def _signature_of(manifest: Manifest) -> Any:
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import Schema
    from mlflow.types.schema import TensorSpec as MlflowTensor

    def schema(specs: Sequence[TensorSpec]) -> Any:
        return Schema([MlflowTensor(np.dtype(each.dtype), (-1, *each.shape), each.name) for each in specs])

    return ModelSignature(schema(manifest.inputs), schema(manifest.answered))


def _stepwell_version() -> str:
    from importlib.metadata import version

    return version("stepwell")
