"""Which layer is likely to blame where step graph and original differ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepwell_export.graph.nodes import mentioned
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped
from stepwell_export.verify.tolerance import Tolerance, difference, largest

if TYPE_CHECKING:
    import onnx

    from stepwell_export.verify.parity import DifferentAnswerError


@dataclass(frozen=True, slots=True)
class Activation:
    """What one layer of the original gives, and where the step graph has it.

    Attributes:
        layer: The layer, for people: its name and class.
        tensor: The step graph's tensor.
        values: The original's, shape `(batch, T, *row)`.
    """

    layer: str
    tensor: str
    values: Array


_BY_ZERO = (
    "Let the divisor be a positive number where it is 0, as by torch.clamp(n, min=1) or ops.maximum(n, 1) of a number "
    "of timesteps."
)

LayerOutputs = Callable[[Mapping[str, Array]], Sequence[Activation]]
"""Whole sequences to what the original's layers give for them, in the order in which they are computed."""


def localize_layer(
    probe: LayerOutputs | None,
    proto: onnx.ModelProto,
    manifest: Manifest,
    failure: DifferentAnswerError,
    tolerance: Tolerance,
) -> str:
    """Return a sentence that names the first layer whose output differs at or before the failing timestep."""
    if probe is None:
        return "The layer that differs first is unknown: the original's layers cannot be looked into here."
    try:
        activations = [a for a in probe(failure.sequence) if a.values.ndim > 1]
        got = _run(proto, manifest, failure.sequence, activations)
    except Exception as exc:  # noqa: BLE001  # the probe is the framework's code; what failed first is what matters
        reason = exc.problem if isinstance(exc, StepwellError) else f"{type(exc).__name__}: {exc}"
        return f"The layer that differs first is unknown: looking into the original's layers failed ({reason[:200]})."
    if not got:
        return "The layer that differs first is unknown: no layer's output stands in the step graph under its name."
    agreed: list[str] = []
    for activation in activations:
        if activation.tensor not in got:
            continue
        want = activation.values[:, : failure.step]
        off = difference(got[activation.tensor][:, : failure.step].reshape(want.shape), want)
        bad = tolerance.on(want).beyond(off, want)
        if bad.any():
            step = int(np.argmax(bad.any(axis=tuple(i for i in range(bad.ndim) if i != 1)))) + 1
            before = f"the {len(agreed)} looked at before it agree" if agreed else "it is the first looked at"
            return (
                f"The likeliest layer is {activation.layer}: its output differs first, by "
                f"{largest(off[:, step - 1]):.3g} at timestep {step}; {before}."
            )
        agreed.append(activation.layer)
    return f"The {len(agreed)} layers that can be looked at agree, so the difference comes in behind {agreed[-1]}."


def locate_not_finite(proto: onnx.ModelProto, manifest: Manifest, failure: DifferentAnswerError) -> str:
    """Return a sentence that names the first node of the step graph whose values add up to what was found.

    Args:
        proto: The step graph.
        manifest: Its manifest.
        failure: What was found, NaN or infinity, and where.

    Returns:
        Empty where there is no such node, or the graph has tensors that are no numbers.
    """
    import onnx

    graph, nodes = copy.deepcopy(proto), {next(filter(None, node.output)): node for node in proto.graph.node}
    probes = {name: f"probe/{i}" for i, name in enumerate(nodes)}
    for name, probe in probes.items():
        cast = onnx.helper.make_node("Cast", [name], [f"{probe}.float"], to=onnx.TensorProto.FLOAT)
        total = onnx.helper.make_node("ReduceSum", [f"{probe}.float"], [probe], keepdims=0)
        graph.graph.node.extend([cast, total])
        graph.graph.output.append(onnx.helper.make_tensor_value_info(probe, onnx.TensorProto.FLOAT, None))
    outputs = [OutputSpec(name=probe, dtype="float32", shape=[]) for probe in probes.values()]
    looked_at = manifest.model_copy(update={"outputs": [*manifest.outputs, *outputs]})
    sequence = {name: values[:, : failure.step] for name, values in failure.sequence.items()}
    try:
        answers, _ = stepped(StepModel(graph.SerializeToString(), looked_at), sequence)
    except StepwellError:
        return ""
    sums = {name: answers[probe][0, -1] for name, probe in probes.items()}
    first = next((name for name, total in sums.items() if np.array_equal(total, failure.got, equal_nan=True)), None)
    if first is None:
        return ""
    inverse = next(
        (name for name in nodes[first].input if name in nodes and nodes[name].op_type == "Reciprocal"), first
    )
    node = nodes[first if np.isfinite(sums[inverse]) else inverse]
    if node.op_type not in {"Div", "Reciprocal"}:
        return f"It comes from {mentioned(node)}."
    return f"It comes from {mentioned(node)}, which divides by 0. {_BY_ZERO}"


def _run(
    proto: onnx.ModelProto, manifest: Manifest, sequence: Mapping[str, Array], activations: Sequence[Activation]
) -> dict[str, Array]:
    """Return the step graph's own values by tensor, shape `(1, T, ...)`; those that it does not have are left out."""
    import onnx

    graph = copy.deepcopy(proto)
    made = {name for node in graph.graph.node for name in node.output}
    kept = [a for a in activations if a.tensor in made]
    if not kept:
        return {}
    outputs = []
    for i, activation in enumerate(kept):
        dtype = "float32" if activation.values.dtype.kind == "f" else activation.values.dtype.name
        row = list(activation.values.shape[2:])
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph.graph.node.append(onnx.helper.make_node("Cast", [activation.tensor], [f"probe/{i}"], to=kind))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(f"probe/{i}", kind, None))
        outputs.append(OutputSpec(name=f"probe/{i}", dtype=dtype, shape=row))
    looked_at = manifest.model_copy(update={"outputs": [*manifest.outputs, *outputs]})
    values, _ = stepped(StepModel(graph.SerializeToString(), looked_at), sequence)
    return {activation.tensor: values[f"probe/{i}"] for i, activation in enumerate(kept)}
