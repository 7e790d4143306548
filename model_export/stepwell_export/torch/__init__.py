"""The PyTorch front end: from a trained `torch.nn.Module` to one ONNX step graph.

Torch is imported when something here is used, so that a training script which returns a `StepSpec` may import
Stepwell before it, and serving never needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepwell_export.required import require

if TYPE_CHECKING:
    from stepwell_export.converted import ConvertedModel
    from stepwell_export.spec import StepSpec
    from stepwell_export.torch.layers import CachedAttention, CausalConv1d, LinearRecurrentUnit, StepLayer
    from stepwell_export.torch.step import export_step
    from stepwell_export.verify.parity import Progress

__all__ = [
    "CachedAttention",
    "CausalConv1d",
    "LinearRecurrentUnit",
    "StepLayer",
    "convert",
    "export_step",
]

_PACKAGES = ("torch", "onnx", "onnxscript")

_HOMES = {
    "CachedAttention": "layers",
    "CausalConv1d": "layers",
    "LinearRecurrentUnit": "layers",
    "StepLayer": "layers",
    "export_step": "step",
}


def __getattr__(name: str) -> Any:
    """Import what is used when it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require(_PACKAGES, "PyTorch modules", extra="torch")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def convert(spec: StepSpec, *, name: str, progress: Progress | None = None) -> ConvertedModel:
    """Make a step graph of what a `StepSpec` describes, not yet proven.

    Args:
        spec: A module that takes and returns its states, or one over whole sequences.
        name: The model's name in its manifest.
        progress: Called as parts are done.

    Raises:
        MissingExtraError: PyTorch, onnx or onnxscript is not installed.
        RefusedModelError: The module cannot be stepped; the message names the part and has the reason.
    """
    require(_PACKAGES, "PyTorch modules", extra="torch")
    from stepwell_export.torch.sequence_module import convert_sequence_module
    from stepwell_export.torch.step import export_step
    from stepwell_export.torch.structures import with_named_tensors

    if progress:
        progress("running the module", 0, 1)
    if isinstance(spec.states, str):
        from stepwell_export.torch.buffers import convert_buffers

        return convert_buffers(spec.module, spec.inputs, name=name, output_names=spec.output_names)
    spec = with_named_tensors(spec)
    if spec.time_axis is None:
        assert not isinstance(spec.states, str)
        return export_step(spec.module, spec.inputs, spec.states, name=name, output_names=spec.output_names)
    return convert_sequence_module(spec, name=name)
