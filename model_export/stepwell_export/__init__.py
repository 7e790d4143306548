"""Stepwell's exporter: from a trained recurrent model to one verified ONNX step graph."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell_export.keras import register_step_rule, to_step_model
    from stepwell_export.runtime.manifest import Manifest
    from stepwell_export.spec import StepSpec
    from stepwell_export.stages import Pipeline
    from stepwell_export.runtime.step_model import StepModel

# onnxruntime's own builds report their use to Microsoft unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Manifest", "Pipeline", "StepModel", "StepSpec", "register_step_rule", "to_step_model"]

_HOMES = {
    "Manifest": "manifest",
    "Pipeline": "stages",
    "StepModel": "step_model",
    "StepSpec": "spec",
    "register_step_rule": "keras.step_rules",
    "to_step_model": "keras",
}


def __getattr__(name: str) -> Any:
    """Import what is used when it is used: a training script that returns a `StepSpec` needs no onnxruntime."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
