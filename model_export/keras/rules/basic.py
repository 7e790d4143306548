"""Rules of layers that look at one timestep at a time: dense, embedding, masking, activations, shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import keras
import numpy as np

from model_export.keras.registry import Call, rule, to_array
from model_export.keras.support.activations import activate
from model_export.keras.support.deferred import handles_deferred, reordered, softmax_over_time
from model_export.keras.value import Value

_OF_LAST_AXIS = (keras.layers.Dense, keras.layers.Activation, keras.layers.Dropout)
"""Layers that do the same at each position, however many axes are in front."""


@rule("Dense")
def dense(call: Call) -> Value:
    """A matrix product over the last feature axis."""
    layer, x = call.layer, call.as_float(call.value)
    if not x.row:
        raise call.refuse("its input has no feature axis, so it would mix timesteps")
    bias = [call.constant(layer.bias)] if layer.use_bias else []
    if len(x.row) == 1:
        y = call.op("Gemm", x.name, call.constant(layer.kernel), *bias)
    else:
        y = call.op("MatMul", x.name, call.constant(layer.kernel))
        y = call.op("Add", y, *bias) if bias else y
    return activate(call, layer.activation, x.like(y, row=(*x.row[:-1], layer.units)))


@rule("Embedding", masks=True)
def embedding(call: Call) -> Value:
    """A table look-up. An id outside the table gives NaN, so that a bad row fails alone and not its batch."""
    layer, x = call.layer, call.value
    table = to_array(layer.embeddings)
    ids = call.graph.cast(x.name, "int64", at=call.path)
    inside = call.op("Clip", ids, call.constant(0, "int64"), call.constant(len(table) - 1, "int64"))
    rows = call.op("Gather", call.constant(table), inside, axis=0)
    known = call.op("Unsqueeze", call.op("Equal", ids, inside), call.graph.ints([-1]))
    y = call.op("Where", known, rows, call.constant(np.nan))
    call.walk.note_vocabulary(x, len(table))
    mask = None
    if layer.mask_zero and x.time:
        if x.row:
            raise call.refuse(f"mask_zero=True on row shape {list(x.row)} masks parts of a timestep")
        mask = call.op("Not", call.op("Equal", ids, call.constant(0, "int64")))
        call.walk.note_mask(x, 0)
    return x.like(y, row=(*x.row, table.shape[1]), dtype="float32", mask=mask)


@rule("TimeDistributed")
def time_distributed(call: Call) -> list[Value]:
    """Runs its layer on each timestep; in the step graph that is the layer itself."""
    x = call.value
    if not x.time:
        return _at_each_position(call, x)
    results = call.walk.visit(call.layer.layer, f"{call.path}.", replace(x, time=False, mask=None))
    return [replace(value, time=True) for value in results]


def _at_each_position(call: Call, x: Value) -> list[Value]:
    """Run a layer on each position inside one timestep: as rows of a batch."""
    layer, count = call.layer.layer, x.row[0]
    if isinstance(layer, _OF_LAST_AXIS):
        return call.walk.visit(layer, f"{call.path}.", x)
    states = len(call.graph.states)
    flat = call.graph.reshape(x.name, x.row[1:], at=call.path)
    results = call.walk.visit(layer, f"{call.path}.", x.like(flat, row=x.row[1:]))
    if len(call.graph.states) > states:
        raise call.refuse("its layer carries something from timestep to timestep, which a position has not")
    rows = [(count, *value.row) for value in results]
    names = [call.graph.reshape(value.name, row, at=call.path) for value, row in zip(results, rows, strict=True)]
    return [value.like(name, row=row) for value, name, row in zip(results, names, rows, strict=True)]


# ---------------------------------------------------------------- activations


@rule("Activation")
def activation(call: Call) -> Value:
    """Any activation function."""
    return activate(call, call.layer.activation, call.as_float(call.value))


@rule("ReLU")
def relu(call: Call) -> Value:
    """max(x, 0), with slope below a threshold and a ceiling."""
    layer, x = call.layer, call.as_float(call.value)
    slope, threshold = float(layer.negative_slope or 0), float(layer.threshold or 0)
    if threshold == 0:
        y = call.op("LeakyRelu", x.name, alpha=slope) if slope else call.op("Relu", x.name)
    else:
        below = call.op("Mul", call.op("Sub", x.name, call.constant(threshold)), call.constant(slope))
        y = call.op("Where", call.op("GreaterOrEqual", x.name, call.constant(threshold)), x.name, below)
    if layer.max_value is not None:
        y = call.op("Min", y, call.constant(float(layer.max_value)))
    return x.like(y)


@rule("PReLU")
def prelu(call: Call) -> Value:
    """A line with a learned slope below zero."""
    x = call.as_float(call.value)
    slope = call.constant_beside(x, to_array(call.layer.alpha))
    return x.like(call.op("PRelu", x, slope))


@rule("Softmax")
def softmax(call: Call) -> Value:
    """Probabilities over one feature axis."""
    x, axes = call.as_float(call.value), keras.tree.flatten(call.layer.axis)
    if len(axes) != 1:
        raise call.refuse(f"it works over several axes at once ({axes}); expected one")
    if call.mask is not None or len(call.args) > 1:
        raise call.refuse("it takes a mask over its features")
    if x.time and axes[0] % x.rank == 1:
        return softmax_over_time(call, x)
    return x.like(call.op("Softmax", x.name, axis=call.axis(x, axes[0])))


# ---------------------------------------------------------------- shapes


def reshaped(call: Call, x: Value, target: list[int]) -> Value:
    """Give the original another shape behind the batch axis; the time axis must stay where and as it is."""
    size = math.prod(x.row)
    if not x.time:
        row = _resolved(target, size)
    elif len(target) == 1 and size == 1:  # one number for each timestep stays that
        row = []
    elif len(target) == 1:
        raise call.refuse(
            "it flattens the time axis into the features, so it needs the whole sequence",
            "Flatten each timestep: TimeDistributed(Flatten()), or end the recurrent part with return_sequences=False.",
        )
    else:
        row = _resolved(target[1:], size) if target else []
        # -1 in the time's place keeps time exactly where the rest is one row. A fixed number of timesteps is
        # taken as declared; the verification on whole sequences would find a fault.
        if not target or math.prod(row) != size or (target[0] == -1 and -1 in target[1:]):
            raise call.refuse(
                f"its target shape {target} mixes timesteps; one timestep has shape {list(x.row)}",
                f"Keep time in front: Reshape((-1, ...)) with {size} elements behind it.",
            )
    return x.like(call.graph.reshape(x.name, row, at=call.path), row=tuple(row))


def _resolved(target: list[int], size: int) -> list[int]:
    known = math.prod(dim for dim in target if dim != -1)
    return [size // known if dim == -1 else dim for dim in target]


@rule("Permute")
@handles_deferred
def permute(call: Call) -> Value:
    """Another order of the axes; the time axis has to come back in front."""
    dims = list(call.layer.dims)
    refusal = call.refuse(f"its order {dims} moves the time axis, which is axis 1")
    return reordered(call, call.value, [0, *dims], refusal)
