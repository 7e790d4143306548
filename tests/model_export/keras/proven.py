"""A Keras model exported and proven, without a file."""

from __future__ import annotations

from typing import Any

from stepwell_export.converted import verify_model
from stepwell_export.keras import convert
from stepwell_export.verify.parity import ParityReport, Progress


def export_model(model: Any, *, name: str, progress: Progress | None = None, **more: Any) -> tuple[bytes, ParityReport]:
    """Return the bytes of the ONNX file and the parity report; `more` is as `verify_model` takes it.

    Without the long run and other lengths, for each of which it is compiled: `tests/model_export/verify` has them.
    """
    return verify_model(convert(model, name=name, progress=progress), progress=progress, **{"long_steps": 0, **more})
