"""What the tensors of a sequence graph depend on, by their operators: for all inputs and sizes, not for those of runs.

Of each tensor: what its values and what its sizes depend on (the inputs that the caller sends, the number of timesteps,
the number of rows), and along which axes its elements may differ. An operator that is not known mixes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from model_export.graph.nodes import attributes, constants, subgraphs, uses
from model_export.graph.operators import RESHAPING
from model_export.streaming.axes.inputs import SequenceInputs

if TYPE_CHECKING:
    from model_export.streaming.axes.measured_shapes import Dim

Marks = frozenset[str]

DATA, TIME, BATCH = "data", "time", "batch"
"""An input that the caller sends, the number of timesteps, the number of rows."""

SIZES = frozenset({TIME, BATCH})

ELEMENTWISE = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "DequantizeLinear", "Div",
    "Dropout", "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean",
    "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan",
    "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
"""Operators whose elements depend on those at the same place of their inputs alone."""

_ALIKE = ELEMENTWISE | RESHAPING | {
    "ConcatFromSequence", "ConstantOfShape", "Einsum", "Expand", "Flatten", "Gather", "Gemm", "LayerNormalization",
    "LogSoftmax", "MatMul", "OneHot", "Pad", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Shape", "Size", "Slice", "Softmax",
    "Split", "SplitToSequence", "Tile", "Concat",
}  # fmt: skip
"""Operators that give equal elements along an axis where those that they take are equal along it."""

_SIZED_BY = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "Compress": (0, 1),
    "ConstantOfShape": (0,), "DFT": (1,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "If": (0,),
    "MaxUnpool": (1, 2), "NonMaxSuppression": (0, 1, 2, 3, 4), "NonZero": (0,), "OneHot": (1,), "Pad": (1, 3),
    "Range": (0, 1, 2), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,),
    "ReduceSumSquare": (1,), "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "SequenceAt": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,), "StringSplit": (0, 1), "Tile": (1,),
    "TopK": (1,), "Unique": (0,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""By operator, the inputs whose values decide the sizes of its outputs."""

_SIZES_ALONE = {
    "ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Range": (1,), "Reshape": (1,), "Slice": (2,),
    "Tile": (1,),
}  # fmt: skip
"""Those of them that decide no value: the end of a Range or a Slice makes it longer, and changes no element."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """What a tensor depends on.

    Attributes:
        value: What its elements depend on: `DATA`, `TIME`, `BATCH`.
        shape: What its sizes depend on.
        varies: `TIME`, `BATCH`: its elements may differ along an axis that grows with it.
    """

    value: Marks = frozenset()
    shape: Marks = frozenset()
    varies: Marks = frozenset()

    @property
    def is_sized(self) -> bool:
        """Whether it follows from weights and sizes alone."""
        return DATA not in self.value | self.shape

    @property
    def is_fixed(self) -> bool:
        """Whether its elements are the same for all inputs and sizes."""
        return not self.value


NOTHING = Dependence()


Dims = Callable[[str], Sequence["Dim"]]
"""What the axes of a tensor carry; nothing where that is not known."""


def _unknown(_: str) -> Sequence[Dim]:
    return ()


def dependences(graph: onnx.GraphProto, inputs: SequenceInputs, dims: Dims = _unknown) -> dict[str, Dependence]:
    """Return what each tensor of a graph depends on.

    Args:
        graph: The graph.
        inputs: Where the inputs have their axes.
        dims: What the axes of its tensors carry.
    """
    found = dict.fromkeys(constants(graph), NOTHING)
    for one in inputs.inputs:
        axes = ((TIME, one.time), (BATCH, one.batch))
        sizes = frozenset(mark for mark, axis in axes if axis is not None)
        if one.role == "external":
            found[one.name] = Dependence(frozenset({DATA}), sizes, sizes)
        else:
            found[one.name] = Dependence(frozenset({TIME} if one.role == "length" else ()), sizes)
    _follow(graph.node, found, constants(graph), dims)
    return found


def _follow(
    nodes: Iterable[onnx.NodeProto],
    found: dict[str, Dependence],
    tables: Mapping[str, onnx.TensorProto],
    dims: Dims = _unknown,
) -> None:
    flat = {name for name, tensor in tables.items() if _is_flat(tensor)}
    for node in nodes:
        if not any(node.output) or all(name in found for name in node.output if name):
            continue
        made = _of_bodies(node, found) if any(subgraphs(node)) else _of_node(node, found, flat, dims)
        if node.op_type in {"Expand", "Tile"} and _repeats_one(node, dims):
            flat |= set(node.output)
        found.update(dict.fromkeys(filter(None, node.output), made))


def _of_node(node: onnx.NodeProto, found: Mapping[str, Dependence], flat: Collection[str], dims: Dims) -> Dependence:
    kind = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
    given = [found.get(name, NOTHING) for name in node.input]
    sizes_alone, sized_by = _SIZES_ALONE.get(kind, ()), _SIZED_BY.get(kind, ())
    value, shape, varies = _joined(one for place, one in enumerate(given) if place not in sizes_alone)
    if kind in {"Shape", "Size"}:
        return Dependence(shape)
    if kind in {"ConstantOfShape", "Range"}:
        shape = frozenset()
    if kind not in ELEMENTWISE | RESHAPING | {"Concat", "Expand", "Gather", "Pad", "Range", "Slice", "Split", "Tile"}:
        value |= shape  # a sum over an axis depends on how long it is
    shape |= frozenset[str]().union(*(given[place].value for place in sized_by if place < len(given)))
    if kind == "Gather" and len(given) > 1:
        shape |= given[1].shape
    if kind in {"Gather", "Slice", "Split"} and given:
        cut = shape - given[0].shape
        varies |= cut & SIZES if node.input[0] not in flat else frozenset()
    elif kind == "Concat" and any(one.value or one.varies for one in given):
        # of parts that are the same for all sizes, a run shows whether they are equal
        varies |= shape & _grows(dims(node.output[0]), attributes(node)["axis"])
    elif (kind == "Pad" and any(one.value for one in given)) or kind not in _ALIKE:
        varies |= shape & SIZES
    return Dependence(value, shape, varies)


def _of_bodies(node: onnx.NodeProto, found: Mapping[str, Dependence]) -> Dependence:
    """Return what an If, Loop or Scan depends on: all that it takes, and all that its bodies make of that."""
    value, shape, varies = _joined(found.get(name, NOTHING) for name in uses(node))
    decides = frozenset[str]()
    if node.op_type in {"If", "Loop"}:
        decides = decides.union(
            *(found.get(name, NOTHING).value for name in node.input[: 1 + (node.op_type == "Loop")])
        )
    everything = Dependence(value | shape, shape | decides, varies)
    while True:
        ends = []
        for body in subgraphs(node):
            inner = {**found, **dict.fromkeys(constants(body), NOTHING)}
            inner |= dict.fromkeys((given.name for given in body.input), everything)
            _follow(body.node, inner, constants(body))
            ends += [inner.get(given.name, NOTHING) for given in body.output]
            if node.op_type == "Loop":  # how often it turns
                ends.append(Dependence(shape=ends[-len(body.output)].value))
        made, sizes, _ = _joined([everything, *ends])
        wider = Dependence(made | sizes, sizes, everything.varies | (sizes & SIZES))
        if wider == everything:
            break
        everything = wider
    if node.op_type == "If":
        made, sizes, apart = _joined(ends)
        return Dependence(made | decides, sizes | decides, apart | (decides & SIZES))
    return everything


def _joined(parts: Iterable[Dependence]) -> tuple[Marks, Marks, Marks]:
    value, shape, varies = frozenset[str](), frozenset[str](), frozenset[str]()
    for one in parts:
        value, shape, varies = value | one.value, shape | one.shape, varies | one.varies
    return value, shape, varies


def _is_flat(tensor: onnx.TensorProto) -> bool:
    """Whether all elements of a table are equal."""
    value = onnx.numpy_helper.to_array(tensor)
    return value.size > 0 and bool((value == value.reshape(-1)[0]).all())


def _repeats_one(node: onnx.NodeProto, dims: Dims) -> bool:
    """Whether a node makes of axes of one element longer ones alone, and only such can be cut further on."""
    before, after = dims(node.input[0]), dims(node.output[0])
    longer = [at for at, dim in enumerate(after[len(after) - len(before) :]) if dim != before[at]]
    return bool(before) and len(longer) == 1 and before[longer[0]].at_one_step() == (1, 0)


def _grows(dims: Sequence[Dim], axis: int) -> Marks:
    """Return what an axis grows with; `TIME` and `BATCH` where that is not known."""
    if not dims:
        return SIZES
    dim = dims[axis % len(dims)]
    return frozenset({mark for mark, grows in ((TIME, dim.has_time), (BATCH, dim.has_batch)) if grows})


def size_marks(
    graph: onnx.GraphProto, name: str, found: Mapping[str, Dependence], sizes: Callable[[str], Sequence[Marks] | None]
) -> Marks:
    """Return what a tensor of sizes depends on, element by element: a width does not depend on the length beside it.

    Args:
        graph: The graph.
        name: The tensor.
        found: What `dependences` returns.
        sizes: What each size of a tensor depends on; None: it is not known.
    """
    makers = {made: node for node in graph.node for made in node.output if made}
    fixed = constants(graph)

    def elements(name: str) -> list[Marks] | None:
        if name in fixed:
            return [frozenset()] * int(np.prod(fixed[name].dims))
        node = makers.get(name)
        if node is None:
            return None
        if node.op_type in {"Shape", "Size"}:
            of = sizes(node.input[0])
            if of is None:
                of = None if node.op_type == "Shape" else [found[node.input[0]].shape]
            if of is None or node.op_type == "Size":
                return None if of is None else [frozenset[str]().union(*of)]
            attrs = attributes(node)
            return list(of)[attrs.get("start", 0) : attrs.get("end")]
        if node.op_type in RESHAPING | {"Cast"}:
            return elements(node.input[0])
        parts = [elements(given) for given in node.input]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        if node.op_type == "Gather" and node.input[1] in fixed:
            places = onnx.numpy_helper.to_array(fixed[node.input[1]]).reshape(-1)
            return [known[0][int(place)] for place in places]
        if node.op_type == "Slice" and all(given in fixed for given in node.input[1:]):
            first, last, *_ = (int(onnx.numpy_helper.to_array(fixed[at]).reshape(-1)[0]) for at in node.input[1:])
            return known[0][first:last] if len(node.input) < 5 else None
        if node.op_type == "Concat":
            return [marks for part in known for marks in part]
        return [frozenset[str]().union(*(marks for part in known for marks in part))]

    marks = elements(name)
    return found[name].value if marks is None else frozenset[str]().union(*marks)


# ---------------------------------------------------------------- which axes an operator mixes

_LAST_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1, "LpNormalization": -1, "Hardmax": -1, "Softmax": -1,
              "LogSoftmax": -1}  # fmt: skip
_PER_FEATURE = ("BatchNormalization", "GroupNormalization", "InstanceNormalization")


def mixed_axes(
    node: onnx.NodeProto, place: int, ranks: Mapping[str, int], opset: int, value: Callable[[str], Any]
) -> set[int] | None:
    """Return the axes of an input of which an operator's elements take more than those at their own place.

    Args:
        node: The node, of an operator that has no rule of its own over time.
        place: Which input.
        ranks: How many axes each of its inputs has.
        opset: The version of the operators.
        value: Returns the value of a constant.

    Returns:
        None: it is not known.
    """
    kind = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
    attrs, rank = attributes(node), ranks[node.input[place]]
    if kind in ELEMENTWISE | RESHAPING | _MOVING:
        return set()
    if kind in _LAST_AXIS:
        is_old = opset < 13 and kind in {"Hardmax", "Softmax", "LogSoftmax"}
        axis = int(attrs.get("axis", 1 if is_old else -1)) % rank
        return set(range(axis, rank)) if is_old or kind in {"LayerNormalization", "RMSNormalization"} else {axis}
    if kind in {"MatMul", "MatMulInteger", "QLinearMatMul"}:
        return {rank - 1} if place == 0 or rank == 1 else {rank - 2}
    if kind in {"Gemm"}:
        return set() if place > 1 else {int(place == 0) ^ int(attrs.get("transA" if place == 0 else "transB", 0))}
    if kind == "Einsum":
        return _summed(str(attrs["equation"]), place, rank)
    if kind == "BatchNormalization":
        return set()
    if kind == "InstanceNormalization":
        return set(range(2, rank))
    if kind == "GroupNormalization":
        return set(range(1, rank))
    if kind == "MeanVarianceNormalization":
        return {int(axis) % rank for axis in attrs.get("axes", [0, 2, 3])}
    if kind == "LRN":
        return {1}
    if kind in {"ArgMax", "ArgMin", "TopK", "CumSum", "CumProd"}:
        axis = value(node.input[1]) if kind in {"CumSum", "CumProd"} else attrs.get("axis", -1 if kind == "TopK" else 0)
        return {int(np.reshape(axis, -1)[0]) % rank}
    if kind.startswith("Reduce"):
        given = attrs.get("axes") or (value(node.input[1]) if len(node.input) > 1 and node.input[1] else None)
        if given is None and attrs.get("noop_with_empty_axes"):
            return set()
        return set(range(rank)) if given is None else {int(axis) % rank for axis in given}
    return set(range(2, rank)) if kind.startswith("Global") else None


_MOVING = frozenset({"Concat", "Expand", "Gather", "OneHot", "Pad", "Shape", "Size", "Slice", "Split", "Tile"})


def _summed(equation: str, place: int, rank: int) -> set[int]:
    """Return the axes of an operand that an equation sums over, or leaves out of the result's own."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not right and "->" not in equation:
        letters = "".join(terms).replace("...", "")
        right = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    before, dots, after = terms[place].partition("...")
    axes = dict(enumerate(before))
    if dots:
        axes |= {rank - len(after) + at: letter for at, letter in enumerate(after)}
    return {axis for axis, letter in axes.items() if letter not in right}
