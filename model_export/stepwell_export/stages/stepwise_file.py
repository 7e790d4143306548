"""A file with a manifest as a part of a pipeline: its graph as it is, and itself as the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.inline_window import fold_context
from stepwell_export.graph.nodes import replace_items
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.runtime.manifest import METADATA_KEY, Array, Manifest, TimeSpec, sidecar_of
from stepwell_export.runtime.specs import shape_of_rows
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped


def has_manifest(path: Path) -> bool:
    """Whether an ONNX file has a manifest, inside or beside it, and so is stepwise already."""
    if path.suffix != ".onnx" or not path.is_file():
        return False
    if sidecar_of(path).is_file():
        return True
    return any(entry.key == METADATA_KEY for entry in onnx.load(path, load_external_data=False).metadata_props)


def read_stepwise(path: Path, manifest: Manifest | None = None) -> ConvertedModel:
    """Return a file with a manifest as a step graph whose original is the file itself.

    A window of past inputs, which the service keeps for the file, becomes states of the graph; inputs that never change
    become constants.

    Args:
        path: The file.
        manifest: Its manifest; None: the one inside it or beside it.

    Raises:
        RefusedModelError: It has a window, and its operators are too old for the nodes that keep it.
    """
    model = StepModel(path, manifest)
    fixed = {name: spec.array() for name, spec in model.manifest.constants.items()}
    manifest = model.manifest.model_copy(update={"verified": None, "reference": None, "constants": {}})
    if manifest.time.chunk == "dynamic":
        inputs = [spec.placed((1, *spec.row_shape), 0) for spec in manifest.inputs]
        outputs = [spec.placed((1, *spec.row_shape), 0) for spec in manifest.outputs]
        manifest = manifest.model_copy(update={"time": TimeSpec(), "inputs": inputs, "outputs": outputs})
    proto = read_model(path, weights=True)
    del proto.metadata_props[:]
    replace_items(proto.graph.input, [value for value in proto.graph.input if value.name not in fixed])
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in fixed.items())
    if manifest.windows:
        proto, manifest = fold_context(proto, manifest)
    _fix_time(proto, {spec.name: shape_of_rows(spec.graph_row_shape, spec.batch_axis, 0) for spec in manifest.inputs})

    def original(inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = stepped(model, inputs, stored=False)[0]
        return {spec.graph_name: found[spec.name] for spec in manifest.answered}

    return ConvertedModel(proto, manifest, original, against=f"onnxruntime {ort.__version__}")


def _fix_time(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the time axes of inputs their length of 1; 0 stands for the batch axis."""
    for value in proto.graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if length:
                dim.dim_value = length
