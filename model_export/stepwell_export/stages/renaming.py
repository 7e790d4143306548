"""Gives a step graph other names of tensors, so that it can be joined with another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import onnx

from stepwell_export.converted import Activation, ConvertedModel
from stepwell_export.graph.nodes import renamed, replace_items
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.verify.samplers import Sampler

_V = TypeVar("_V")


def with_names(part: ConvertedModel, names: Mapping[str, str]) -> ConvertedModel:
    """Return a step graph with other names of tensors: in its manifest, its reference and its samplers too."""
    if not names:
        return part
    probe, original, old = part.probe, part.original, {new: old for old, new in names.items()}
    proto = onnx.ModelProto()
    proto.CopyFrom(part.proto)
    replace_items(proto.graph.node, [renamed(node, names) for node in proto.graph.node])
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = names.get(value.name, value.name)
    return replace(
        part,
        proto=proto,
        manifest=_renamed_manifest(part.manifest, names),
        original=lambda inputs: _keys(original(_keys(inputs, old)), names),
        learned=None,
        samplers={kind: _renamed_sampler(draw, names) for kind, draw in (part.samplers or {}).items()} or None,
        probe=probe and (lambda inputs: [
            Activation(found.layer, names.get(found.tensor, found.tensor), found.values)
            for found in probe(_keys(inputs, old))
        ]),
    )  # fmt: skip


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


def _renamed_sampler(draw: Sampler, names: Mapping[str, str]) -> Sampler:
    return lambda rng, rows, steps: _keys(draw(rng, rows, steps), names)


def _keys(values: Mapping[str, _V], names: Mapping[str, str]) -> dict[str, _V]:
    return {names.get(key, key): value for key, value in values.items()}
