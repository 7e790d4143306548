"""`model_loader`: what loads a model file, once add-ons have checked it."""

from __future__ import annotations

from pathlib import Path

from stepwell.models.artifacts import LoadModel
from stepwell.settings import Settings
from stepwell_export.runtime.step_model import StepModel


def model_loader(settings: Settings, folder: Path | None = None) -> LoadModel:
    """Return what checks and loads a model file; it raises what `StepModel` and the checks raise.

    Args:
        settings: Threads, providers, and the settings of add-ons.
        folder: Where the checks may store what they have accepted; None: nowhere.
    """
    checks = settings.model_file_checks(folder)

    def load(path: Path) -> StepModel:
        for check in checks:
            check(path)
        return StepModel(path, threads=settings.ort_threads, providers=settings.execution_providers)

    return load
