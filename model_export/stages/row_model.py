"""`RowModel`: a model that uses one row alone, such as a graph of scikit-learn: every timestep is a row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from model_export.converted import ConvertedModel
from model_export.errors import UnclearModelError
from model_export.graph.onnx_file import read_model
from model_export.manifest import Array, BatchSpec, InputSpec, Manifest, OutputSpec
from model_export.runtime.graph_session import GraphSession
from model_export.runtime.signature import ORT_TYPES
from model_export.stages.pipeline import RowPart

Rows = Mapping[str, Array]
"""One array by name, shape `(n, *row)`."""


@dataclass(frozen=True, slots=True)
class RowModel(RowPart):
    """A model of rows.

    Attributes:
        proto: Its graph; axis 0 of every input and output has the rows.
        against: The original and its version.
        reference: The original; None: the graph itself on onnxruntime.
    """

    proto: onnx.ModelProto
    against: str = ""
    reference: Callable[[Rows], Rows] | None = None

    def convert(self) -> ConvertedModel:
        """Return it as a step graph without states."""
        loaded = GraphSession(self.proto)
        inputs = [InputSpec.model_validate(_spec(value)) for value in loaded.session.get_inputs()]
        outputs = [OutputSpec.model_validate(_spec(value)) for value in loaded.session.get_outputs()]
        is_single = any(isinstance(value.shape[0], int) for value in loaded.session.get_inputs())
        manifest = Manifest(
            inputs=inputs, outputs=outputs, batch=BatchSpec(mode="single" if is_single else "stack")
        )  # fmt: skip

        def read_rows(rows: Rows) -> Rows:
            if self.reference is not None:
                return self.reference(rows)
            count = len(next(iter(rows.values())))
            size = 1 if is_single else count
            parts = [
                loaded.run({name: array[i : i + size] for name, array in rows.items()}) for i in range(0, count, size)
            ]
            return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in outputs}

        def original(inputs: Mapping[str, Array]) -> dict[str, Array]:
            lead = next(iter(inputs.values())).shape[:2]
            found = read_rows({name: array.reshape(-1, *array.shape[2:]) for name, array in inputs.items()})
            return {spec.name: np.reshape(found[spec.name], (*lead, *spec.shape)) for spec in outputs}

        against = self.against or f"onnxruntime {ort.__version__}"
        return ConvertedModel(self.proto, manifest, original, against=against)


def row_model(path: Path, *, ranks: Collection[int], ahead: bool) -> ConvertedModel | None:
    """Return an ONNX file as a step graph of rows; None where its tensors have more axes, and so a time axis.

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
    return RowModel(proto).convert()


def _spec(value: Any) -> dict[str, Any]:
    row = value.shape[1:]
    if value.type not in ORT_TYPES or not value.shape or not all(isinstance(length, int) for length in row):
        raise UnclearModelError(
            f"Tensor {value.name!r} is {value.type} of shape {value.shape}; expected rows of a fixed shape.",
            fix="Export the graph with a fixed number of features, and without ZipMap.",
        )
    return {"name": value.name, "dtype": ORT_TYPES[value.type], "shape": row}
