"""The step graph of a `RowModel`: a graph over rows takes a timestep as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array, BatchSpec, InputSpec, Manifest, OutputSpec
from stepwell_export.runtime.step_model import ORT_TYPES
from stepwell_export.stages.pipeline import RowModel, Rows
from stepwell_export.verify.decisions.onnx import OnnxObserver
from stepwell_export.verify.decisions.record import Observed
from stepwell_export.verify.onnx_original import OnnxFile


def convert_rows(model: RowModel) -> ConvertedModel:
    """Return a model of rows as a step graph without states.

    Raises:
        UnclearModelError: An input or output is no tensor of rows of a fixed shape.
    """
    loaded = GraphSession(model.proto)
    inputs = [InputSpec.model_validate(_spec(value)) for value in loaded.session.get_inputs()]
    outputs = [OutputSpec.model_validate(_spec(value)) for value in loaded.session.get_outputs()]
    path = model.file
    file = loaded if path is None else OnnxFile(lambda: onnx.load(str(path)), path)
    is_single = any(isinstance(value.shape[0], int) for value in loaded.session.get_inputs())
    manifest = Manifest(inputs=inputs, outputs=outputs, batch=BatchSpec(mode="single" if is_single else "stack"))

    def run_graph(rows: Rows) -> Rows:
        count = len(next(iter(rows.values())))
        size = 1 if is_single else count
        parts = [file.run({name: array[i : i + size] for name, array in rows.items()}) for i in range(0, count, size)]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in outputs}

    def original(inputs: Mapping[str, Array]) -> dict[str, Array]:
        lead = next(iter(inputs.values())).shape[:2]
        rows = {name: array.reshape(-1, *array.shape[2:]) for name, array in inputs.items()}
        found = (model.reference or run_graph)(rows)
        return {spec.name: np.reshape(found[spec.name], (*lead, *spec.shape)) for spec in outputs}

    def observe(inputs: Mapping[str, Array]) -> Observed:
        return OnnxObserver(model.proto).observe({n: a.reshape(-1, *a.shape[2:]) for n, a in inputs.items()})

    return ConvertedModel(
        model.proto,
        manifest,
        original,
        against=model.against or f"onnxruntime {ort.__version__}",
        observer=None if is_single or model.reference else observe,
    )


def read_row_model(path: Path, *, ranks: Collection[int], ahead: bool) -> RowModel | None:
    """Return an ONNX file as a model of rows; None where its tensors have more axes, and so a time axis.

    Args:
        path: The file.
        ranks: Axes that rows have where the graph is joined.
        ahead: Whether it is joined with its outputs, else with its inputs.
    """
    proto = read_model(path, weights=True)
    loaded = GraphSession(proto).session
    joined = loaded.get_outputs() if ahead else loaded.get_inputs()
    if not any(len(value.shape) - 1 in ranks for value in joined):
        return None
    return RowModel(proto, file=path)


def _spec(value: Any) -> dict[str, Any]:
    row = value.shape[1:]
    if value.type not in ORT_TYPES or not value.shape or not all(isinstance(length, int) for length in row):
        raise UnclearModelError(
            f"Tensor {value.name!r} is {value.type} of shape {value.shape}; expected rows of a fixed shape.",
            fix="Export the graph with a fixed number of features, and without ZipMap.",
        )
    return {"name": value.name, "dtype": ORT_TYPES[value.type], "shape": row}
