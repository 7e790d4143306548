"""Which outputs of a graph differ from run to run: those that its random operators reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_export.dataflow import spread

if TYPE_CHECKING:
    import onnx

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def random_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Return the outputs that a random operator reaches, each with that operator and its node's name.

    Dropout counts when it has a `training_mode` input: the graph may switch it on.

    Args:
        model: A model without local functions, as `read_model` gives it.
    """
    reached = spread(model.graph, {}, own=_chance)
    return {output.name: min(reached[output.name]) for output in model.graph.output if output.name in reached}


def _chance(node: Any) -> str | None:
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    return f"{node.op_type} {node.name!r}" if node.op_type in RANDOM or training else None
