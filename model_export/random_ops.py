"""Which outputs of a graph differ from run to run: those that its random operators reach."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from model_export.dataflow import spread

if TYPE_CHECKING:
    import onnx

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def random_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Return the outputs that a random operator reaches, each with that operator and its node's name.

    Dropout counts when it has a `training_mode` input that is not false once and for all.

    Args:
        model: A model without local functions, as `read_model` gives it.
    """
    off = _falsehoods(model.graph)
    reached = spread(model.graph, {}, own=lambda node: _chance(node, off))
    return {output.name: min(reached[output.name]) for output in model.graph.output if output.name in reached}


def _falsehoods(graph: Any) -> set[str]:
    """Return the boolean constants that are false."""
    from onnx import TensorProto, numpy_helper

    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        tensors += [(node.output[0], a.t) for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
    given = {value.name for value in graph.input}  # a caller may give these another value
    flags = [(name, tensor) for name, tensor in tensors if tensor.data_type == TensorProto.BOOL and name not in given]
    return {name for name, tensor in flags if not numpy_helper.to_array(tensor).any()}


def _chance(node: Any, off: Collection[str]) -> str | None:
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] and node.input[2] not in off
    return f"{node.op_type} {node.name!r}" if node.op_type in RANDOM or training else None
