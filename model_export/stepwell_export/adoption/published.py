"""A published step graph as a part of a pipeline: many rows in one run, proven against the file as it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.nodes import replace_items
from stepwell_export.graph.onnx_file import read_model, without_functions
from stepwell_export.row_axis import batchify
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped


def published_part(path: Path, hints: Overrides, *, together: bool = True) -> ConvertedModel:
    """Return a step graph whose original is the file itself, its constants written into the graph.

    Args:
        path: The published file.
        hints: What it does not declare itself.
        together: Whether its rows are to run together, where the file is for one row.

    Raises:
        UnclearModelError: Something about the graph is open.
        RefusedModelError: It is not stepwise.
        ModelLoadError: onnxruntime cannot load or run it.
    """
    manifest = adopt(path, hints=hints, replace=True).manifest
    original = StepModel(path, manifest)
    proto = without_functions(read_model(path, weights=True))
    del proto.metadata_props[:]
    if together and not original.batched:
        with suppress(RefusedModelError):  # one row at a time
            proto, manifest = batchify(proto, manifest)

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return stepped(original, inputs, stored=False)[0]

    proto, manifest = _with_constants(proto, manifest)
    return ConvertedModel(proto, manifest, run, against=f"onnxruntime {ort.__version__}")


def _with_constants(proto: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
    fixed = {name: spec.array() for name, spec in manifest.constants.items()}
    replace_items(proto.graph.input, [value for value in proto.graph.input if value.name not in fixed])
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in fixed.items())
    return proto, manifest.model_copy(update={"constants": {}, "verified": None, "reference": None})
