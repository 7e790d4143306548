"""Which outputs of a graph differ from run to run: a walk from its random operators to what they reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_export.errors import MissingExtraError, ModelLoadError

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def random_outputs(path: Path) -> dict[str, str]:
    """Return the outputs that a random operator reaches, each with that operator and its node's name.

    Dropout counts when it has a `training_mode` input: the graph may switch it on.

    Raises:
        MissingExtraError: The onnx package is not installed.
        ModelLoadError: The file is no ONNX model.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError as exc:
        raise MissingExtraError(
            "Looking for random operators needs the onnx package, which is not installed.",
            fix="Install it: pip install 'stepwell[onnx]'.",
        ) from exc
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as exc:
        raise ModelLoadError(f"{path} is not an ONNX model: {exc}.", fix="Give the path of an .onnx file.") from exc
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    reached = _spread(model.graph, {})
    return {output.name: reached[output.name] for output in model.graph.output if output.name in reached}


def _spread(graph: Any, outside: dict[str, str]) -> dict[str, str]:
    """Return every tensor of a graph that depends on chance, with the operator to blame.

    Nodes are in topological order, so one pass is enough. A node with a subgraph (If, Loop, Scan) depends on
    chance as a whole when anything in it does.
    """
    reached = dict(outside)
    for node in graph.node:
        why = _own_chance(node)
        for name in node.input:
            why = why or reached.get(name)
        for subgraph in _subgraphs(node):
            inner = _spread(subgraph, reached)
            made = {name for inside in subgraph.node for name in inside.output}
            used = made | {output.name for output in subgraph.output}
            why = why or next((inner[name] for name in inner if name in used), None)
        if why:
            reached.update(dict.fromkeys(filter(None, node.output), why))
    return reached


def _own_chance(node: Any) -> str | None:
    training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    return f"{node.op_type} {node.name!r}" if node.op_type in _RANDOM or training else None


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
