"""Rules of products: matrices, tensors and Einstein sums, inside a timestep or with constants."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support.deferred import read_order, summed_over_time
from model_export.keras.value import Value
from model_export.manifest import Array

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OVER_TIME = (
    "it multiplies over the time axis, so it needs timesteps that have not come yet",
    "Use a recurrent layer over time, or work along the feature axes.",
)


@op_rule("Matmul", handles="deferred")
def matmul(call: Call) -> Value:
    """A matrix product of two values, or of one and a constant."""
    left, right = call.args[:2]
    if (
        isinstance(left, Value)
        and not isinstance(right, Value)
        and to_array(right).ndim == 2
        and left.row
        and not left.deferred
    ):
        x, weights = call.as_float(left), to_array(right)
        matrix, row = call.constant(weights), (*x.row[:-1], weights.shape[1])
        if len(x.row) > 1:
            return x.like(call.op("MatMul", x, matrix), row=row)
        return x.like(call.graph.biasable(lambda *bias: call.op("Gemm", x, matrix, *bias), row), row=row)
    ranks = [operand.rank if isinstance(operand, Value) else to_array(operand).ndim for operand in (left, right)]
    if min(ranks) < 2 or (max(ranks) > 2 and min(ranks) not in {2, max(ranks)}):
        raise call.refuse(f"it multiplies operands of {ranks[0]} and {ranks[1]} axes; expected matrices")
    rows = _LETTERS[: max(ranks) - 2]
    subscripts = [(rows if rank == max(ranks) else "") + kept for rank, kept in zip(ranks, ("xy", "yz"), strict=True)]
    return einstein(call, f"{subscripts[0]},{subscripts[1]}->{rows}xz", [left, right])


@op_rule("Dot", "Inner")
def dot(call: Call) -> Value:
    """A product with a constant over the last feature axis."""
    x, weights = _value_and_weights(call)
    if weights.ndim > 2:
        raise call.refuse(f"its weights have {weights.ndim} axes; expected a matrix")
    weights = weights.T if call.kind(["Dot", "Inner"]) == "Inner" else weights
    return x.like(call.op("MatMul", x, call.constant(weights)), row=(*x.row[:-1], *weights.shape[1:]))


@op_rule("Tensordot")
def tensordot(call: Call) -> Value:
    """A product with a constant over several feature axes."""
    left, weights = _value_and_weights(call)
    axes = call.layer.axes
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
    return einstein(call, f"{''.join(names)},{''.join(other)}->{''.join(kept)}", [left, weights])


def _value_and_weights(call: Call) -> tuple[Value, Array]:
    left, right = call.args[:2]
    if not isinstance(left, Value) or isinstance(right, Value):
        raise call.refuse("it is a product of two computed values over the batch; expected a value and constants")
    return call.as_float(left), to_array(right)


@op_rule("Einsum", handles="deferred")
def einsum(call: Call) -> Value:
    """`ops.einsum`: the batch and the time axis stay in front."""
    return einstein(call, call.layer.subscripts, list(call.args))


@op_rule("RFFT")
def real_fourier(call: Call) -> list[Value]:
    """The spectrum of the last feature axis: real and imaginary part, as products with cosines and sines."""
    x = call.as_float(call.value)
    width = _width(call, x)
    length = call.layer.fft_length or width
    angle = 2 * np.pi / length * np.outer(np.arange(min(width, length)), np.arange(length // 2 + 1))
    return [_in_waves(call, x, wave) for wave in (np.cos(angle), -np.sin(angle))]


@op_rule("IRFFT")
def inverse_real_fourier(call: Call) -> Value:
    """The wave that has a spectrum, given as real and imaginary part."""
    parts = [call.as_float(value) for value in call.values]
    width = _width(call, parts[0])
    length = call.layer.fft_length or 2 * (width - 1)
    counted = np.arange(min(width, length // 2 + 1))
    angle = 2 * np.pi / length * np.outer(counted, np.arange(length))
    twice = np.where((counted == 0) | (2 * counted == length), 1, 2)[:, None] / length  # and its mirror image
    waves = [wave * twice for wave in (np.cos(angle), -np.sin(angle))]
    real, imaginary = (_in_waves(call, x, wave) for x, wave in zip(parts, waves, strict=True))
    return real.like(call.op("Add", real, imaginary))


def _width(call: Call, x: Value) -> int:
    if not x.row:
        raise call.refuse(*_OVER_TIME)
    return x.row[-1]


def _in_waves(call: Call, x: Value, waves: Array) -> Value:
    """Return a product as precise as a Fourier transform, which adds up in another order."""
    waves = np.pad(waves, ((0, x.row[-1] - len(waves)), (0, 0)))
    product = call.op("MatMul", call.cast(x, "float64"), call.constant(waves, "float64"))
    return x.like(call.cast(product, "float32"), row=(*x.row[:-1], waves.shape[1]))


@rule("Dot", masks=True, handles="deferred")
def dot_layer(call: Call) -> Value:
    """The product of two values over one axis each, row by row."""
    layer = call.layer
    left, right = (value if value.deferred else call.as_float(value) for value in call.values)
    axes = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    over_time = [value.time and axis % value.rank == 1 for value, axis in zip((left, right), axes, strict=True)]
    if (left.time or right.time) and (not all(over_time) or layer.normalize):
        raise call.refuse("it multiplies every timestep with every other one", _OVER_TIME[1])
    if layer.normalize:
        left, right = (_unit(call, x, call.axis(x, axis)) for x, axis in zip((left, right), axes, strict=True))
    mine, its = (list(_LETTERS[1 : left.rank]), list(_LETTERS[left.rank : left.rank + right.rank - 1]))
    a, b = axes[0] % left.rank - 1, axes[1] % right.rank - 1
    its[b] = mine[a]
    kept = [n for i, n in enumerate(mine) if i != a] + [n for i, n in enumerate(its) if i != b]
    y = einstein(call, f"A{''.join(mine)},A{''.join(its)}->A{''.join(kept)}", [left, right])
    return y if y.row else call.reshaped(y, [1])


def _unit(call: Call, x: Value, axis: int) -> Value:
    square = call.op("ReduceSumSquare", x, call.graph.ints([axis]), keepdims=1)
    floor = call.constant(keras.config.epsilon())
    return x.like(call.op("Div", x, call.op("Sqrt", call.op("Max", square, floor))))


def einstein(call: Call, subscripts: str, operands: list[Any]) -> Value:
    """Emit an Einstein sum of values and constants; a sum over time is that of the timesteps so far.

    Args:
        call: The layer or operation.
        subscripts: As NumPy has them, of the original's axes.
        operands: Values and arrays.

    Raises:
        RefusedModelError: It sums over the batch, moves batch or time, or meets one timestep with another.
    """
    terms, result = _spelled_out(call, subscripts, operands)
    values = [operand if isinstance(operand, Value) else None for operand in operands]
    terms = [_in_order(term, value) for term, value in zip(terms, values, strict=True)]
    batch = {term[0] for term, value in zip(terms, values, strict=True) if value}
    time = {term[1] for term, value in zip(terms, values, strict=True) if value and value.time}
    over_time = next((v.deferred.refusal for v in values if v and v.deferred), call.refuse(*_OVER_TIME))
    if len(batch) != 1 or not result.startswith(next(iter(batch))):
        raise call.refuse(f"{subscripts!r} does not keep the batch axis in front, which mixes streams")
    others = [term[1:] for term, v in zip(terms, values, strict=True) if v]
    others += [term for term, v in zip(terms, values, strict=True) if not v]
    if any(letter in term for letter in batch for term in others):
        raise call.refuse(f"{subscripts!r} uses the batch axis twice, which mixes streams")
    step = next(iter(time), "")
    if len(time) > 1 or (step and step in result and not result.startswith(step, 1)):
        raise over_time
    parts = []
    for term, operand, value in zip(terms, operands, values, strict=True):
        own = term[1 + value.time :] if value else term
        if step and step in own:
            raise over_time
        if value and step and not value.time and not call.graph.is_static(value.name):
            raise call.refuse("it joins each timestep with an answer for the whole sequence")
        parts.append((own, call.as_float(value) if value and not value.deferred else operand))
    kept = result[1 + (step != "" and step in result) :]
    if any(value and value.deferred and value.deferred.weight for value in values):
        if step in result:
            raise over_time
        return _weighed_product(call, parts, kept, over_time)
    y = _product(call, result[0], parts, kept, time=step != "")
    return summed_over_time(call, y) if step and step not in result else y


def _in_order(term: str, value: Value | None) -> str:
    """Return the subscripts of a value's axes as they are in the step graph, time in its place."""
    return "".join(term[read_order(value).index(axis)] for axis in range(value.rank)) if value else term


def _product(call: Call, batch: str, parts: list[tuple[str, Any]], kept: str, *, time: bool) -> Value:
    """Return the Einstein sum of one timestep."""
    sizes: dict[str, int] = {}
    inputs, spelled = [], []
    for own, operand in parts:
        is_value = isinstance(operand, Value)
        row = operand.row if is_value else to_array(operand).shape
        sizes.update(zip(own, row, strict=True))
        inputs.append(operand.name if is_value else call.constant(to_array(operand)))
        spelled.append((batch if is_value else "") + own)
    y = call.op("Einsum", *inputs, equation=f"{','.join(spelled)}->{batch}{kept}")
    return Value(y, tuple(sizes[letter] for letter in kept), "float32", time)


def _weighed_product(call: Call, parts: list[tuple[str, Any]], kept: str, refusal: Exception) -> Value:
    """Return the sum over time of a product of which one factor is weighed: all axes side by side, then summed."""
    pending = [(own, v.deferred) for own, v in parts if isinstance(v, Value) and v.deferred and v.deferred.weight]
    if len(pending) > 1:
        raise refusal
    ((own, its),) = pending
    letters = kept + "".join(dict.fromkeys(n for term, _ in parts for n in term if n not in kept))
    spread = [_spread(call, term, operand, letters) for term, operand in parts]
    y = reduce(lambda left, right: left.like(call.op("Mul", left, right), row=_joint(left, right)), spread)
    weight = _spread(call, own, its.weight, letters)
    total = summed_over_time(call, y.like(y.name, time=True, deferred=replace(its, weight=weight, order=())))
    gone = list(range(1 + len(kept), 1 + len(letters)))
    if not gone:
        return total
    return total.like(call.op("ReduceSum", total, call.graph.ints(gone), keepdims=0), row=total.row[: len(kept)])


def _joint(left: Value, right: Value) -> tuple[int, ...]:
    return tuple(int(n) for n in np.broadcast_shapes(left.row, right.row))


def _spread(call: Call, own: str, part: Any, letters: str) -> Value:
    """Return an operand with one axis for each letter, of length 1 where it has none."""
    operand: Value = (
        part if isinstance(part, Value) else Value(call.constant(to_array(part)[None]), to_array(part).shape)
    )
    present = [letter for letter in letters if letter in own]
    perm = [own.index(letter) for letter in present]
    sizes = dict(zip(own, operand.row, strict=True))
    name = operand.name if perm == sorted(perm) else call.op("Transpose", operand, perm=[0, *(p + 1 for p in perm)])
    row = tuple(sizes.get(letter, 1) for letter in letters)
    return operand.like(call.reshape(name, row), row=row)


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
