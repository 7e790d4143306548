"""`GraphSession`: a graph in memory on onnxruntime, which reads the weights where they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import onnx
from onnx import numpy_helper

from model_export.errors import ModelLoadError
from model_export.graph.onnx_file import without_initializers
from model_export.manifest import Array
from model_export.runtime.session import open_session, run_options

_LARGE = 2**18
"""Numbers from which on a weight is shared: the graph without it is what is written to bytes and read again."""

_SHARED = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}


class GraphSession:
    """A graph on onnxruntime.

    Attributes:
        model: The graph.
        outputs: The tensors that a run returns.
        session: The loaded graph.
    """

    def __init__(
        self, model: onnx.ModelProto, outputs: Iterable[str] | None = None, *, as_written: bool = False
    ) -> None:
        """Load a graph.

        Args:
            model: The graph; it is left alone.
            outputs: The tensors that a run returns; None: its own outputs.
            as_written: Whether every node is run as it is, so that every tensor can be an output.

        Raises:
            ModelLoadError: onnxruntime refuses it.
        """
        self.model = model
        lean, large = with_weights_outside(model)
        self._shared = {tensor.name: numpy_helper.to_array(tensor) for tensor in large}
        own = {value.name: value for value in model.graph.output}
        self.outputs = list(own if outputs is None else outputs)
        del lean.graph.output[:]
        lean.graph.output.extend(own.get(name, onnx.ValueInfoProto(name=name)) for name in self.outputs)
        self.session = open_session(
            lean.SerializeToString(), where="the graph", threads=1, as_written=as_written, weights=self._shared
        )

    @cached_property
    def weights(self) -> dict[str, Array]:
        """The initializers of the graph."""
        small = (tensor for tensor in self.model.graph.initializer if tensor.name not in self._shared)
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in small} | self._shared

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Run the graph and return every output by name, the inputs among them.

        Raises:
            ModelLoadError: onnxruntime failed on these inputs.
        """
        try:
            found = self.session.run(self.outputs, dict(feeds), run_options())
        except Exception as exc:
            given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise ModelLoadError(f"onnxruntime failed on {given}: {str(exc).strip()}.") from exc
        return {**feeds, **dict(zip(self.outputs, found, strict=True))}


def with_weights_outside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy of a model that declares its large weights as lying outside it, and these weights."""
    graph, lean = model.graph, without_initializers(model)
    inputs = {value.name for value in graph.input}
    weights = []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) < _LARGE or tensor.data_type not in _SHARED or tensor.name in inputs:
            lean.graph.initializer.add().CopyFrom(tensor)
            continue
        weights.append(tensor)
        outside = lean.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = onnx.TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="memory")
    return lean, weights
