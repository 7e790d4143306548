"""Rules of `keras.ops` along axes."""

from __future__ import annotations

from typing import NoReturn

import keras
import numpy as np

from stepwell_export.keras.rule_registry import Call, op_rule
from stepwell_export.keras.scan import StepScan
from stepwell_export.keras.value import Value

_REDUCTIONS = {
    "Sum": "Sum", "Mean": "Mean", "Max": "Max", "Min": "Min", "Prod": "Prod", "Amax": "Max", "Amin": "Min",
    "Logsumexp": "LogSumExp",
}  # fmt: skip
_OF_FLOATS = {"Mean", "LogSumExp"}
_OF_ORDER = {"Max", "Min", "Amax", "Amin"}
_SORTED_FIX = (
    "Sort features, ops.sort(x, axis=-1), or the last n timesteps, ops.sort(y, axis=1) of "
    "y = ZeroPadding1D((n - 1, 0))(x)[:, -n:]. Over all timesteps, the largest, the smallest and the mean can be "
    "followed."
)


@op_rule(*_REDUCTIONS)
def reduction(call: Call) -> Value:
    """A sum, mean, maximum, minimum or product, or the logarithm of a sum of exponentials."""
    kind, given = _REDUCTIONS[call.kind(_REDUCTIONS)], call.value
    x = call.as_float(given) if kind in _OF_FLOATS else call.as_number(given)
    axes, keep = _axes(call, x), bool(call.layer.keepdims)
    if kind == "Sum" and x.dtype != "float32":  # ONNX Runtime's sum saturates, and Keras' wraps around
        wide = reduce(call, "ReduceSum", call.in_dtype(x, "int64"), axes, keep=keep)
        return call.in_dtype(wide, x.dtype)
    if kind == "Prod" and given.dtype == "bool":
        kind = "Min"
    if kind == "Prod" and x.dtype != "float32":
        raise call.refuse(
            f"it multiplies whole numbers of {x.dtype}, whose product may overflow",
            "Cast them to float32 first: ops.prod(ops.cast(x, 'float32'), axis=-1).",
        )
    y = reduce(call, f"Reduce{kind}", x, axes, keep=keep)
    return call.in_dtype(y, "bool") if given.dtype == "bool" and call.kind(_REDUCTIONS) in _OF_ORDER else y


def _axes(call: Call, x: Value) -> list[int]:
    axes = call.layer.axis
    return sorted(call.axis(x, axis) for axis in (range(x.rank) if axes is None else keras.tree.flatten(axes)))


def reduce(call: Call, kind: str, x: Value, axes: list[int], *, keep: bool) -> Value:
    """Reduce axes."""
    row = [1 if i in axes else dim for i, dim in enumerate(x.row, 1) if keep or i not in axes]
    return x.like(call.op(kind, x, call.graph.ints(axes), keepdims=int(keep)), row=tuple(row))


@op_rule("Var")
def variance(call: Call) -> Value:
    """The mean square of the difference from the mean."""
    x = call.as_float(call.value)
    axes = _axes(call, x)
    centred = call.op("Sub", x, call.op("ReduceMean", x, call.graph.ints(axes), keepdims=1))
    return reduce(call, "ReduceMean", x.like(call.op("Mul", centred, centred)), axes, keep=bool(call.layer.keepdims))


@op_rule("Norm")
def norm(call: Call) -> Value:
    """The length of a vector along one feature axis."""
    x, order = call.as_float(call.value), call.layer.ord
    axes = _axes(call, x)
    kind = {None: "ReduceL2", "fro": "ReduceL2", 2: "ReduceL2", 1: "ReduceL1"}.get(order)
    if kind is None or (len(axes) > 1 and order not in {None, "fro"}):
        raise call.refuse(
            f"its norm has order {order!r} over {len(axes)} axis or axes; expected order 1 or 2 over one axis"
        )
    return reduce(call, kind, x, axes, keep=bool(call.layer.keepdims))


@op_rule("Softmax")
def softmax(call: Call) -> Value:
    """Probabilities along one axis."""
    x = call.as_float(call.value)
    return x.like(call.op("Softmax", x, axis=call.axis(x, call.layer.axis)))


@op_rule("LogSoftmax")
def log_softmax(call: Call) -> Value:
    """Logarithms of probabilities along one axis.

    ONNX Runtime adds the largest number to a logarithm, which costs the digits of large ones: it is subtracted before.
    """
    x = call.as_float(call.value)
    axis = call.axis(x, call.layer.axis)
    if x.row[axis - 1] is not None:  # over time they are weights, which the streaming pass finds by the operator
        x = x.like(call.op("Sub", x, call.op("ReduceMax", x, call.graph.ints([axis]), keepdims=1)))
    return x.like(call.op("LogSoftmax", x, axis=axis))


@op_rule("Argmax", "Argmin")
def place(call: Call) -> Value:
    """Where the largest or smallest is along one feature axis."""
    x, layer = call.as_number(call.value), call.layer
    axis = call.axis(x, layer.axis)
    kind = "ArgMax" if call.kind(["Argmax", "Argmin"]) == "Argmax" else "ArgMin"
    found = call.op(kind, x, axis=axis, keepdims=int(layer.keepdims))
    row = tuple(1 if i == axis else dim for i, dim in enumerate(x.row, 1) if layer.keepdims or i != axis)
    return x.like(call.cast(found, "int32"), row=row, dtype="int32")


@op_rule("Cumsum", "Cumprod")
def cumulative(call: Call) -> Value:
    """A running sum or product along an axis."""
    x = call.as_number(call.value)
    axis = call.axis(x, call.layer.axis)
    if call.kind(["Cumsum", "Cumprod"]) == "Cumsum":
        return x.like(call.op("CumSum", x, call.constant(axis, "int32")))
    if axis != 1:
        raise call.refuse("a running product of features has no rule", "Use exp(cumsum(log(x))).")
    scan = StepScan(call.graph, call.path)
    with scan.body(call.walk):
        so_far = scan.state(f"{call.path}.so_far", x.row[1:], x.dtype, np.ones([size or 1 for size in x.row[1:]]))
        product = call.op("Mul", so_far, scan.place_of(x))
        scan.next_state(so_far, product)
    return x.like(scan.emit([product])[0][0])


@op_rule("Sort", "Argsort")
def sort(call: Call) -> Value:
    """Ascending along one feature axis."""
    x = call.value
    axis = call.axis(x, call.layer.axis)
    size = x.row[axis - 1]
    if size is None:
        raise call.refuse("it sorts the timesteps of the whole sequence", _SORTED_FIX)
    values, places = _top(call, call.as_number(x), size, axis, largest=0)
    values = call.in_dtype(values, x.dtype)
    return values if call.kind(["Sort", "Argsort"]) == "Sort" else places


@op_rule("Median", "Quantile")
def quantile(call: Call) -> NoReturn:
    """A number between sorted ones, which has no rule.

    Raises:
        RefusedModelError: In any case.
    """
    raise call.refuse("there is no rule for it", f"Take it from sorted values. {_SORTED_FIX}")


@op_rule("TopK")
def top_k(call: Call) -> list[Value]:
    """The largest features and their places."""
    x = call.value
    return list(_top(call, x, call.layer.k, call.axis(x, -1), largest=1))


def _top(call: Call, x: Value, count: int, axis: int, *, largest: int) -> tuple[Value, Value]:
    row = tuple(count if i == axis else dim for i, dim in enumerate(x.row, 1))
    values, places = call.graph.split_op(
        "TopK", x.name, call.graph.ints([count]), outputs=2, at=call.path, axis=axis, largest=largest, sorted=1
    )
    return x.like(values, row=row), x.like(call.cast(places, "int32"), row=row, dtype="int32")
