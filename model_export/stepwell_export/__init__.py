"""Stepwell's exporter: from a trained recurrent model to one verified ONNX graph of a single timestep.

Each name is imported when it is first used: a training script that returns a `StepSpec` needs no onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell_export import stages, torch
    from stepwell_export.adoption.adopt_file import Adopted
    from stepwell_export.adoption.adopt_file import adopt_file as adopt
    from stepwell_export.converted import verify_model
    from stepwell_export.exporter import Exported
    from stepwell_export.exporter import export_source as export
    from stepwell_export.keras import register_step_rule
    from stepwell_export.runtime.errors import StepwellError
    from stepwell_export.runtime.manifest import Manifest
    from stepwell_export.runtime.step_model import StepModel
    from stepwell_export.spec import StepSpec
    from stepwell_export.stages import Part, Pipeline
    from stepwell_export.streaming import convert as convert_onnx

# onnxruntime's own builds report their use to Microsoft unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Adopted",
    "Exported",
    "Manifest",
    "Part",
    "Pipeline",
    "StepModel",
    "StepSpec",
    "StepwellError",
    "adopt",
    "convert_onnx",
    "export",
    "register_step_rule",
    "stages",
    "torch",
    "verify_model",
]

_HOMES = {
    "Adopted": "adoption.adopt_file",
    "Exported": "exporter",
    "Manifest": "runtime.manifest",
    **dict.fromkeys(("Part", "Pipeline"), "stages"),
    "StepModel": "runtime.step_model",
    "StepSpec": "spec",
    "StepwellError": "runtime.errors",
    "adopt": "adoption.adopt_file",
    "convert_onnx": "streaming",
    "export": "exporter",
    "register_step_rule": "keras.own_layers",
    "verify_model": "converted",
}
"""The module of each name."""

_NAMES_THERE = {"adopt": "adopt_file", "convert_onnx": "convert", "export": "export_source"}
"""What a name is called in its module, where that is something else."""


if not TYPE_CHECKING:  # else a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """Import what is used when it is used."""
        if name in ("stages", "torch"):
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        exported = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), _NAMES_THERE.get(name, name))
        globals()[name] = exported
        return exported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
