"""A part of a pipeline under other names of tensors, so that it can be joined with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from stepwell_export.graph.nodes import renamed, replace_items
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.stages.binding import Node


@dataclass(frozen=True, slots=True)
class Placed:
    """A part as it is in the whole.

    Attributes:
        node: The part.
        names: The name that each of its tensors has in the whole.
        proto: Its step graph, with these names.
        manifest: What that takes, carries and gives.
    """

    node: Node
    names: Mapping[str, str]
    proto: onnx.ModelProto
    manifest: Manifest


def placed(node: Node, names: Mapping[str, str]) -> Placed:
    """Return a part with other names of tensors."""
    proto = onnx.ModelProto()
    proto.CopyFrom(node.step.proto)
    replace_items(proto.graph.node, [renamed(each, names) for each in proto.graph.node])
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = names.get(value.name, value.name)
    return Placed(node, names, proto, _renamed_manifest(node.step.manifest, names))


def _renamed_manifest(manifest: Manifest, names: Mapping[str, str]) -> Manifest:
    def new(specs: Sequence[Any], *fields: str) -> list[Any]:
        found = [{field: getattr(spec, field) for field in fields} for spec in specs]
        changed = [{field: names.get(name, name) for field, name in old.items()} for old in found]
        return [spec.model_copy(update=update) for spec, update in zip(specs, changed, strict=True)]

    return manifest.model_copy(update={
        "inputs": new(manifest.inputs, "name"),
        "outputs": new(manifest.outputs, "name"),
        "states": new(manifest.states, "input", "output"),
        "learn": None if manifest.learn is None else names.get(manifest.learn, manifest.learn),
    })  # fmt: skip
