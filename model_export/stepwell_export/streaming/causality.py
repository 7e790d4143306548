"""Refuses nodes that mix timesteps, with the reason where the operator gives one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx

from stepwell_export.graph.nodes import uses
from stepwell_export.graph.operators import STATEFUL
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.axes.dependence import DATA

if TYPE_CHECKING:
    from stepwell_export.streaming.walk import StreamingWalk

BACKWARDS_FIX = (
    "A stream has no last timestep to begin at. Train a causal model, whose output at a timestep depends on no later "
    "one: with recurrent layers of one direction, and without flipping the sequence. For outputs that may come n "
    "timesteps late, train it on targets that are shifted by n. A model over the last n timesteps may look at them in "
    "any order: let it pad n - 1 in front, and begin with x[:, -n:]."
)
"""For whatever goes from the last timestep to the first: no module of one timestep computes the same."""

SORTED_FIX = (
    "All timesteps would have to be kept. Let it take the last n of them, with zeros in front of the first ones: "
    "F.pad(x, (0, 0, n - 1, 0))[:, -n:] in PyTorch, ZeroPadding1D((n - 1, 0))(x)[:, -n:] in Keras. Over all timesteps, "
    "the largest, the smallest and the mean can be followed."
)
"""For whatever sorts the timesteps of a sequence."""

VALUES_FIX = "Keep the size, and choose by values: torch.where(condition, x, 0) instead of x[condition]."

LIMIT_FIX = (
    "A stream has no end: take out what counts timesteps up to a limit. If no sequence is longer, declare that: "
    "`--length N`, `StepSpec(length=N)`."
)

_NORMALISING = (
    "Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization",
    "LpNormalization", "MeanVarianceNormalization", "RMSNormalization",
)  # fmt: skip
_REASONS = {
    **dict.fromkeys(_NORMALISING, "it is normalised over the time axis"),
    **dict.fromkeys(("MatMul", "Einsum"), "it looks ahead, as attention without a causal mask does"),
    "ReverseSequence": "it reads the sequence backwards",
    "Attention": "it attends to timesteps to come",
    "Where": "its mask lets timesteps to come through",
}


def check_sizes(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Refuse a node whose outputs have sizes that depend on values, or on the length up to a limit only.

    Raises:
        RefusedModelError: They have.
    """
    for name in filter(None, node.output):
        depends = walk.facts.depends(name)
        if DATA in depends.shape and walk.timed(node):
            raise walk.refuse(node, "gives a tensor whose size depends on values", VALUES_FIX)
        if not depends.has_even_sizes and any(dim.has_time or dim.has_batch for dim in walk.facts.dims(name)):
            raise walk.refuse(node, "gives as many timesteps as it takes up to a limit only", LIMIT_FIX)


def check_outputs(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Refuse a node that looks ahead, or note it where what it takes may still be masked.

    Raises:
        RefusedModelError: The message has from which timestep to which.
    """
    refused_as_answer = next(
        (error for name in uses(node) if (error := walk.tensors[name].refused_as_answer) is not None), None
    )
    for name in filter(None, node.output):
        try:
            check_causal(walk, node, name)
        except RefusedModelError:
            if refused_as_answer is None:
                raise
            walk.tensors[name] = replace(walk.tensors[name], refused_as_answer=refused_as_answer)


def check_causal(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> None:
    """Refuse a node whose answers change before the timestep that was changed.

    Raises:
        RefusedModelError: They do; the message has from which timestep to which.
    """
    tensor = walk.tensors[name]
    if tensor.kind != "per_step" or tensor.offset is None:
        return
    first = walk.facts.earliest_change(name)
    if first is not None and first < walk.facts.perturbed + tensor.offset:
        raise walk.refuse(
            node,
            f"mixes timesteps: a change at timestep {walk.facts.perturbed + 1} changes its answer for "
            f"timestep {first - tensor.offset + 1}" + why(node),
        )


def how_ahead(node: onnx.NodeProto) -> str:
    """Return how a node whose inputs do not look ahead gives a tensor that does, for messages."""
    if node.op_type in STATEFUL or node.op_type in {"Loop", "Scan"}:
        return "begins in the padding in front of the sequence"
    return "pads or shifts it on the right of the time axis"


def why(node: onnx.NodeProto) -> str:
    """Return why an operator mixes timesteps, for messages; empty: there is no more to it."""
    return f" ({_REASONS[node.op_type]})" if node.op_type in _REASONS else ""
