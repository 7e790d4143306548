"""Rules of products: matrices, tensors and Einstein sums, inside a timestep or with constants."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from model_export.keras.activations import activate
from model_export.keras.emit import Value
from model_export.keras.registry import Call, op_rule, rule, to_array

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OVER_TIME = (
    "it multiplies over the time axis, so it needs timesteps that have not come yet",
    "Use a recurrent layer over time, or work along the feature axes.",
)


@op_rule("Matmul")
def matmul(call: Call) -> Value:
    """A matrix product of two values, or of one and a constant."""
    left, right = call.args[:2]
    if isinstance(left, Value) and not isinstance(right, Value) and to_array(right).ndim == 2 and left.row:
        x, weights = call.as_float(left), to_array(right)
        kind = "Gemm" if len(x.row) == 1 else "MatMul"
        return x.like(call.op(kind, x, call.constant(weights)), row=(*x.row[:-1], weights.shape[1]))
    ranks = [operand.rank if isinstance(operand, Value) else to_array(operand).ndim for operand in (left, right)]
    if min(ranks) < 2 or (max(ranks) > 2 and min(ranks) not in {2, max(ranks)}):
        raise call.refuse(f"it multiplies operands of {ranks[0]} and {ranks[1]} axes; expected matrices")
    rows = _LETTERS[: max(ranks) - 2]
    subscripts = [(rows if rank == max(ranks) else "") + kept for rank, kept in zip(ranks, ("xy", "yz"), strict=True)]
    return einstein(call, f"{subscripts[0]},{subscripts[1]}->{rows}xz", [left, right])


@op_rule("Dot", "Inner")
def dot(call: Call) -> Value:
    """A product with a constant over the last feature axis."""
    left, right = call.args[:2]
    if not isinstance(left, Value) or isinstance(right, Value) or to_array(right).ndim > 2:
        raise call.refuse("it is a product of two computed values over the batch; expected a value and a weight matrix")
    weights = to_array(right)
    if call.kind(["Dot", "Inner"]) == "Inner":
        weights = weights.T
    x = call.as_float(left)
    return x.like(call.op("MatMul", x, call.constant(weights)), row=(*x.row[:-1], *weights.shape[1:]))


@op_rule("Tensordot")
def tensordot(call: Call) -> Value:
    """A product with a constant over several feature axes."""
    left, right = call.args[:2]
    if not isinstance(left, Value) or isinstance(right, Value):
        raise call.refuse("it is a product of two computed values over the batch; expected a value and constants")
    axes, weights = call.layer.axes, to_array(right)
    if isinstance(axes, int):
        axes = (range(left.rank - axes, left.rank), range(axes))
    ours, theirs = (
        [a % n for a in keras.tree.flatten(list(side))] for side, n in zip(axes, (left.rank, weights.ndim), strict=True)
    )
    names = list(_LETTERS[: left.rank])
    other = list(_LETTERS[left.rank : left.rank + weights.ndim])
    for mine, its in zip(ours, theirs, strict=True):
        other[its] = names[mine]
    kept = [n for i, n in enumerate(names) if i not in ours] + [n for i, n in enumerate(other) if i not in theirs]
    return einstein(call, f"{''.join(names)},{''.join(other)}->{''.join(kept)}", [left, right])


@op_rule("Einsum")
def einsum(call: Call) -> Value:
    """`ops.einsum`: the batch and the time axis stay in front."""
    return einstein(call, call.layer.subscripts, list(call.args))


@rule("EinsumDense")
def einsum_dense(call: Call) -> Value:
    """An Einstein sum with a weight, a bias and an activation."""
    layer = call.layer
    y = einstein(call, layer.equation, [call.value, to_array(layer.kernel)])
    if layer.bias is not None:
        y = y.like(call.op("Add", y, call.constant_beside(y, to_array(layer.bias))))
    return activate(call, layer.activation, y)


@rule("Dot", masks=True)
def dot_layer(call: Call) -> Value:
    """The product of two values over one axis each, row by row."""
    layer = call.layer
    left, right = (call.as_float(value) for value in call.values)
    if left.time or right.time:
        raise call.refuse("it multiplies every timestep with every other one", _OVER_TIME[1])
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    if layer.normalize:
        left, right = (_unit(call, x, call.axis(x, axis)) for x, axis in zip((left, right), axes, strict=True))
    mine, its = (list(_LETTERS[1 : left.rank]), list(_LETTERS[left.rank : left.rank + right.rank - 1]))
    a, b = axes[0] % left.rank - 1, axes[1] % right.rank - 1
    its[b] = mine[a]
    kept = [n for i, n in enumerate(mine) if i != a] + [n for i, n in enumerate(its) if i != b]
    y = einstein(call, f"A{''.join(mine)},A{''.join(its)}->A{''.join(kept)}", [left, right])
    return y if y.row else y.like(call.graph.reshape(y.name, [1], at=call.path), row=(1,))


def _unit(call: Call, x: Value, axis: int) -> Value:
    square = call.op("ReduceSumSquare", x, call.graph.ints([axis]), keepdims=1)
    floor = call.constant(keras.config.epsilon())
    return x.like(call.op("Div", x, call.op("Sqrt", call.op("Max", square, floor))))


def einstein(call: Call, subscripts: str, operands: list[Any]) -> Value:
    """Emit an Einstein sum of values and constants.

    Args:
        call: The layer or operation.
        subscripts: As NumPy has them, of the original's axes.
        operands: Values and arrays.

    Raises:
        RefusedModelError: It sums over batch or time, or moves them.
    """
    terms, result = _spelled_out(call, subscripts, operands)
    values = [operand if isinstance(operand, Value) else None for operand in operands]
    batch = {term[0] for term, value in zip(terms, values, strict=True) if value}
    time = {term[1] for term, value in zip(terms, values, strict=True) if value and value.time}
    if len(batch) != 1 or not result.startswith(next(iter(batch))):
        raise call.refuse(f"{subscripts!r} does not keep the batch axis in front, which mixes streams")
    others = [term[1:] for term, v in zip(terms, values, strict=True) if v]
    others += [term for term, v in zip(terms, values, strict=True) if not v]
    if any(letter in term for letter in batch for term in others):
        raise call.refuse(f"{subscripts!r} uses the batch axis twice, which mixes streams")
    if time and (len(time) != 1 or result[1:2] not in time):
        raise call.refuse(*_OVER_TIME)
    step = next(iter(time), "")
    sizes: dict[str, int] = {}
    inputs, spelled = [], []
    for term, operand, value in zip(terms, operands, values, strict=True):
        if value:
            name, own, row = call.as_float(value).name, term[1 + value.time :], value.row
        else:
            array = to_array(operand)
            name, own, row = call.constant(array), term, array.shape
        if step and step in own:
            raise call.refuse(*_OVER_TIME)
        if value and step and not value.time and not call.graph.is_static(value.name):
            raise call.refuse("it joins each timestep with an answer for the whole sequence")
        sizes.update(zip(own, row, strict=True))
        inputs.append(name)
        spelled.append((term[0] if value else "") + own)
    kept = result[1 + bool(step) :]
    y = call.op("Einsum", *inputs, equation=f"{','.join(spelled)}->{result[0]}{kept}")
    return Value(y, tuple(sizes[letter] for letter in kept), "float32", bool(step))


def _spelled_out(call: Call, subscripts: str, operands: list[Any]) -> tuple[list[str], str]:
    """Return the subscripts of each operand and of the result, without an ellipsis."""
    ranks = [operand.rank if isinstance(operand, Value) else np.ndim(to_array(operand)) for operand in operands]
    left, arrow, result = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    unused = [letter for letter in _LETTERS if letter not in subscripts]
    hidden = max((rank - len(term) + 3 for rank, term in zip(ranks, terms, strict=True) if "..." in term), default=0)
    dots = "".join(unused[:hidden])
    if not arrow:
        raise call.refuse(f"{subscripts!r} does not name its result", "Write it with '->'.")

    def spell(term: str, rank: int) -> str:
        return term.replace("...", dots[hidden - (rank - len(term) + 3) :]) if "..." in term else term

    return [spell(term, rank) for term, rank in zip(terms, ranks, strict=True)], result.replace("...", dots)
