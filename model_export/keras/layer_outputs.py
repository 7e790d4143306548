"""What each layer of a Keras model gives, to find the one to blame where the step graph differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import onnx

from model_export.keras.reference import KerasReference
from model_export.keras.registry import to_array
from model_export.keras.step import ExportedStep
from model_export.keras.walk import functional
from model_export.manifest import Array
from model_export.verify.localize import Activation, LayerOutputs


def layer_outputs(model: Any, exported: ExportedStep, original: KerasReference) -> LayerOutputs:
    """Return a probe of a model's layers; those of a nested model are looked at as one.

    Args:
        model: The Keras model.
        exported: Its step graph; tensors there are named after the layers.
        original: The same model as the original of the comparison.
    """

    def probe(sequences: Mapping[str, Array]) -> list[Activation]:
        function = functional(model)
        length = next(iter(sequences.values())).shape[1]
        found = [
            (layer, tensor, keras.tree.flatten(layer.output)[0])
            for layer in function.layers
            if len(layer._inbound_nodes) == 1 and (tensor := _tensor_of(layer, exported.proto)) is not None
        ]
        found = [part for part in found if _has_time(part[2].shape, length)]
        looked_at = keras.Model(_flat(function.inputs), [output for _, _, output in found])
        with original.stateless():
            values = keras.tree.flatten(looked_at.call(_flat(original.feeds(sequences, length)), training=False))
        return [
            Activation(f"{layer.name!r} ({type(layer).__name__})", tensor, to_array(value))
            for (layer, tensor, _), value in zip(found, values, strict=True)
        ]

    return probe


def _tensor_of(layer: Any, proto: onnx.ModelProto) -> str | None:
    """Return the last tensor that a layer's rule made; None where it made none, as for dropout."""
    doors = {output.name for output in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name not in doors]
    own = [name for name in made if name.startswith((f"{layer.name}/", f"{layer.name}."))]
    return own[-1] if own else None


def _flat(inputs: Any) -> Any:
    """Return a model's inputs as a functional model of the same tensors takes them."""
    arrays = keras.tree.flatten(inputs)
    return arrays if len(arrays) > 1 else arrays[0]


def _has_time(shape: tuple[int | None, ...], length: int) -> bool:
    return len(shape) > 1 and shape[1] in ({None} if len(shape) == 2 else {None, length})
