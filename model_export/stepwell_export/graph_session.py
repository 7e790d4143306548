"""`GraphSession`: a graph in memory on onnxruntime, which reads the weights where they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import onnx

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.outside_weights import to_array, with_weights_outside
from stepwell_export.runtime.session import open_session, trial_run


class GraphSession:
    """A graph on onnxruntime.

    Attributes:
        model: The graph.
        outputs: The tensors that a run returns.
        session: The loaded graph.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        outputs: Iterable[str] | None = None,
        *,
        as_written: bool = False,
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
        lean, self._shared = with_weights_outside(model)
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
        return {tensor.name: to_array(tensor) for tensor in small} | self._shared

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Run the graph and return every output by name, the inputs among them.

        Raises:
            ModelLoadError: onnxruntime failed on these inputs.
            RefusedModelError: It did not end in time.
        """
        with trial_run(feeds) as options:
            try:
                values = self.session.run(self.outputs, dict(feeds), options)
            except Exception as exc:
                given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
                raise ModelLoadError(f"onnxruntime failed on {given}: {str(exc).strip()}.") from exc
        return {**feeds, **dict(zip(self.outputs, values, strict=True))}
