"""Rules of products: matrices, tensors and Einstein sums."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from stepwell_export.keras.rule_registry import Call, op_rule, to_array
from stepwell_export.keras.support.broadcast import common_dtype
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@op_rule("Matmul")
def matmul(call: Call) -> Value:
    """A matrix product of two values, or of one and a constant."""
    operands = [_without_batch(operand, call.operands) for operand in call.args[:2]]
    ranks = [operand.rank if isinstance(operand, Value) else to_array(operand).ndim for operand in operands]
    rows = _LETTERS[: max(0, *(rank - 2 for rank in ranks))]
    fronts = [rows[len(rows) - max(0, rank - 2) :] for rank in ranks]
    left, right = fronts[0] + "xy"[ranks[0] == 1 :], fronts[1] + "yz"[: min(2, ranks[1])]
    kept = ("x" if ranks[0] > 1 else "") + ("z" if ranks[1] > 1 else "")
    return einstein(call, f"{left},{right}->{rows}{kept}", operands, kind="MatMul")


def _without_batch(operand: Any, values: list[Value]) -> Any:
    """Return a constant that is the same for every row of the batch without that axis, and a value as it is."""
    if isinstance(operand, Value):
        return operand
    array = to_array(operand)
    is_batched = array.ndim > 2 and array.ndim == max(value.rank for value in values) and len(array) == 1
    return array[0] if is_batched else array


@op_rule("Einsum")
def einsum(call: Call) -> Value:
    """`ops.einsum`: the batch axis stays in front."""
    return einstein(call, call.layer.subscripts, list(call.args))


@op_rule("RFFT")
def real_fourier(call: Call) -> list[Value]:
    """The spectrum of the last feature axis: real and imaginary part, as products with cosines and sines."""
    x = call.as_float(call.value)
    width = call.size(x, x.rank - 1)
    length = call.layer.fft_length or width
    angle = 2 * np.pi / length * np.outer(np.arange(min(width, length)), np.arange(length // 2 + 1))
    return [_in_waves(call, x, wave) for wave in (np.cos(angle), -np.sin(angle))]


@op_rule("IRFFT")
def inverse_real_fourier(call: Call) -> Value:
    """The wave that has a spectrum, given as real and imaginary part."""
    parts = [call.as_float(value) for value in call.values]
    width = call.size(parts[0], parts[0].rank - 1)
    length = call.layer.fft_length or 2 * (width - 1)
    counted = np.arange(min(width, length // 2 + 1))
    angle = 2 * np.pi / length * np.outer(counted, np.arange(length))
    twice = np.where((counted == 0) | (2 * counted == length), 1, 2)[:, None] / length  # and its mirror image
    waves = [wave * twice for wave in (np.cos(angle), -np.sin(angle))]
    real, imaginary = (_in_waves(call, x, wave) for x, wave in zip(parts, waves, strict=True))
    return real.like(call.op("Add", real, imaginary))


def _in_waves(call: Call, x: Value, waves: Array) -> Value:
    """Return a product as precise as a Fourier transform, which adds up in another order."""
    waves = np.pad(waves, ((0, call.size(x, x.rank - 1) - len(waves)), (0, 0)))
    product = call.op("MatMul", call.cast(x, "float64"), call.constant(waves, "float64"))
    return x.like(call.cast(product, "float32"), row=(*x.row[:-1], waves.shape[1]))


# ---------------------------------------------------------------- Einstein sums


def einstein(call: Call, subscripts: str, operands: list[Any], kind: str = "Einsum") -> Value:
    """Emit an Einstein sum of values and constants.

    Args:
        call: The layer or operation.
        subscripts: As NumPy has them, of the original's axes.
        operands: Values and arrays.
        kind: The ONNX operator for it, where it is no product with one matrix: `Einsum`, or `MatMul` if that is what
            the subscripts say.

    Raises:
        RefusedModelError: It sums over the batch, moves it, or multiplies timesteps with constants of their own.
    """
    if "float" not in common_dtype(operands):
        raise call.refuse(
            "it multiplies matrices of whole numbers, whose sums may overflow",
            "Cast one of them to float32 first: ops.cast(x, 'float32').",
        )
    terms, result = _spelled_out(call, subscripts, operands)
    parts = [call.as_float(operand) if isinstance(operand, Value) else to_array(operand) for operand in operands]
    _check_batch(call, subscripts, result, list(zip(terms, parts, strict=True)))
    sizes = _sizes(call, terms, parts)
    row = tuple(sizes[letter] for letter in result[1:])
    if len(parts) == 2:
        for (x, weights), (term, its) in ((parts, terms), (parts[::-1], terms[::-1])):
            if isinstance(x, Value) and not isinstance(weights, Value):
                y = _times_matrix(call, x, weights, f"{term},{its}->{result}", row)
                if y is not None:
                    return y
    inputs = [part if isinstance(part, Value) else call.constant(part, "float32") for part in parts]
    spelled = {"equation": f"{','.join(terms)}->{result}"} if kind == "Einsum" else {}
    return Value(call.op(kind, *inputs, **spelled), row)


def _check_batch(call: Call, subscripts: str, result: str, parts: list[tuple[str, Any]]) -> None:
    values = [term for term, part in parts if isinstance(part, Value)]
    batch = {term[0] for term in values}
    if len(batch) != 1 or not result.startswith(next(iter(batch))):
        raise call.refuse(f"{subscripts!r} does not keep the batch axis in front, which mixes streams")
    others = [term[1:] for term in values] + [term for term, part in parts if not isinstance(part, Value)]
    if any(letter in term for letter in batch for term in others):
        raise call.refuse(f"{subscripts!r} uses the batch axis twice, which mixes streams")


def _sizes(call: Call, terms: list[str], parts: list[Any]) -> dict[str, int | None]:
    """Return the size of each axis but that of the batch, by its letter."""
    found: dict[str, set[int | None]] = {}
    for term, part in zip(terms, parts, strict=True):
        is_value = isinstance(part, Value)
        for letter, size in zip(term[is_value:], part.row if is_value else part.shape, strict=True):
            found.setdefault(letter, set()).add(size)
    if any(None in sizes and sizes - {None, 1} for sizes in found.values()):
        raise call.refuse(
            "it multiplies over the time axis with a number of its own for each timestep, of a fixed number of them",
            "Use a recurrent layer over time, or work along the feature axes.",
        )
    return {letter: None if None in sizes else max(size or 1 for size in sizes) for letter, sizes in found.items()}


def _times_matrix(call: Call, x: Value, weights: Array, subscripts: str, row: tuple[int | None, ...]) -> Value | None:
    """Emit an Einstein sum as the product of a value's last axes, side by side, with one matrix; None: it is none."""
    term, its, result = re.split(",|->", subscripts)
    summed, new = [n for n in term if n in its], [n for n in result if n in its]
    kept = term[: len(term) - len(summed)]
    if not summed or term != kept + "".join(summed) or result != kept + "".join(new):
        return None
    if sorted(summed + new) != sorted(its):
        return None
    matrix = weights.transpose([its.index(n) for n in (*summed, *new)])
    matrix = matrix.reshape(math.prod(matrix.shape[: len(summed)]), -1)
    front = row[: len(kept) - 1]
    flat = x if len(summed) == 1 else call.reshaped(x, (*front, len(matrix)))

    def emit(*bias: str) -> str:
        y = call.op("MatMul", flat, call.constant(matrix, "float32"))
        y = call.op("Add", y, *bias) if bias else y
        return y if len(new) == 1 else call.reshape(x.like(y, row=(*front, matrix.shape[1])), row)

    added = tuple(size or 0 for size in row[len(front) :])
    return x.like(call.graph.biasable(emit, added), row=row)


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
