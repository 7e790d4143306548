"""Phases among the answers are verified as what they turn: the phase of almost nothing may be any number.

While a step graph is verified, the output of phases is left out, and another one has magnitude times cosine and sine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx

from stepwell_export.converted import ConvertedModel
from stepwell_export.graph.builder import NodeBuilder, declared
from stepwell_export.graph.nodes import needed_nodes, replace_items, tensor_names, uses
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec
from stepwell_export.verify.reference import PrefixAnswers, ReferenceModel

_SUFFIX = ".turned"


def with_turned_phases(whole: ConvertedModel, magnitudes: Mapping[str, str]) -> ConvertedModel:
    """Return a step graph that is verified on what its phases turn.

    Args:
        whole: The step graph; its originals also return each magnitude, by the name of its tensor.
        magnitudes: The tensor of the magnitude by the output that is its phase.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(whole.proto)
    graph = NodeBuilder("turned", tensor_names(proto.graph))
    outputs = list[OutputSpec]()
    for spec in whole.manifest.outputs:
        if spec.name not in magnitudes:
            outputs.append(spec)
            continue
        both = OutputSpec(name=f"{spec.name}{_SUFFIX}", dtype="float32", shape=[*spec.shape, 2])
        last = graph.ints([len(both.shape)])
        sides = [graph.op("Mul", magnitudes[spec.name], graph.op(kind, spec.name)) for kind in ("Cos", "Sin")]
        parts = [graph.op("Unsqueeze", side, last) for side in sides]
        graph.add("Concat", parts, [both.name], axis=len(both.shape))
        proto.graph.output.append(declared(both.name, both.dtype, both.shape, 0))
        outputs += [spec.model_copy(update={"kind": "ignore"}), both]
    proto.graph.node.extend(graph.nodes)
    proto.graph.initializer.extend(graph.constants)

    def turned(original: ReferenceModel) -> ReferenceModel:
        def turned_original(inputs: Mapping[str, Array]) -> dict[str, Array | PrefixAnswers]:
            found = dict(original(inputs))
            for phase, magnitude in magnitudes.items():
                angle = found.pop(phase)
                found[f"{phase}{_SUFFIX}"] = _turned(found[magnitude], angle)
            return {name: found[name] for name in found if name not in magnitudes.values() or name in shown}

        return turned_original

    learned = whole.learned
    if learned is not None:
        twin = learned.twin
        learned = replace(learned, twin=lambda front: turned(twin(front)))
    shown = {spec.name for spec in whole.manifest.outputs}
    manifest = whole.manifest.model_copy(update={"outputs": outputs})
    original = turned(whole.original)
    return replace(whole, proto=proto, manifest=manifest, original=original, learned=learned, finish=_without_turned)


def _turned(magnitude: Array | PrefixAnswers, angle: Array | PrefixAnswers) -> Array | PrefixAnswers:
    if isinstance(magnitude, PrefixAnswers) or isinstance(angle, PrefixAnswers):
        assert isinstance(magnitude, PrefixAnswers)
        assert isinstance(angle, PrefixAnswers)
        values = _turned(magnitude.values, angle.values)
        assert isinstance(values, np.ndarray)
        return replace(magnitude, values=values)
    turned: Array = np.stack([magnitude * np.cos(angle), magnitude * np.sin(angle)], axis=-1)
    return turned


def _without_turned(content: bytes, manifest: Manifest) -> tuple[bytes, Manifest]:
    """Return a verified file without what was there for the verification."""
    proto = onnx.load_model_from_string(content)
    turned = {spec.name for spec in manifest.outputs if spec.name.endswith(_SUFFIX)}
    replace_items(proto.graph.output, [value for value in proto.graph.output if value.name not in turned])
    nodes = needed_nodes(proto.graph.node, [value.name for value in proto.graph.output])
    used = {tensor for node in nodes for tensor in uses(node)}
    replace_items(proto.graph.node, nodes)
    replace_items(proto.graph.initializer, [tensor for tensor in proto.graph.initializer if tensor.name in used])
    phases = {name.removesuffix(_SUFFIX) for name in turned}
    outputs = [
        spec.model_copy(update={"kind": "value"}) if spec.name in phases else spec
        for spec in manifest.outputs
        if spec.name not in turned
    ]
    return proto.SerializeToString(), manifest.model_copy(update={"outputs": outputs})
