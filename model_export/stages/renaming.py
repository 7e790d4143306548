"""Gives a step graph other names of tensors, so that it can be joined with another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import onnx

from model_export.converted import ConvertedModel
from model_export.graph.nodes import mapped, renamed, replace_items
from model_export.manifest import Manifest
from model_export.verify.localize import Activation
from model_export.verify.samplers import Sampler

_V = TypeVar("_V")


def with_names(part: ConvertedModel, names: Mapping[str, str]) -> ConvertedModel:
    """Return a step graph with other names of tensors: in its manifest, its reference and its samplers too."""
    if not names:
        return part
    name, probe, original = mapped(names), part.probe, part.original
    proto = onnx.ModelProto()
    proto.CopyFrom(part.proto)
    replace_items(proto.graph.node, [renamed(node, name) for node in proto.graph.node])
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = name(value.name)
    return replace(
        part,
        proto=proto,
        manifest=_renamed_manifest(part.manifest, name),
        original=lambda inputs: _keys(original(_keys(inputs, _inverse(names))), name),
        samplers={kind: _renamed_sampler(draw, name) for kind, draw in (part.samplers or {}).items()} or None,
        probe=probe and (lambda inputs: [
            Activation(found.layer, name(found.tensor), found.values)
            for found in probe(_keys(inputs, _inverse(names)))
        ]),
    )  # fmt: skip


def _renamed_manifest(manifest: Manifest, name: Callable[[str], str]) -> Manifest:
    return manifest.model_copy(update={
        "inputs": [spec.model_copy(update={"name": name(spec.name)}) for spec in manifest.inputs],
        "outputs": [spec.model_copy(update={"name": name(spec.name)}) for spec in manifest.outputs],
        "states": [
            state.model_copy(update={"input": name(state.input), "output": name(state.output)})
            for state in manifest.states
        ],
    })  # fmt: skip


def _renamed_sampler(draw: Sampler, name: Callable[[str], str]) -> Sampler:
    return lambda rng, rows, steps: _keys(draw(rng, rows, steps), name)


def _keys(values: Mapping[str, _V], name: Callable[[str], str]) -> dict[str, _V]:
    return {name(key): value for key, value in values.items()}


def _inverse(names: Mapping[str, str]) -> Callable[[str], str]:
    return mapped({new: old for old, new in names.items()})
