"""What the tensors of a sequence graph depend on, by their operators: for all inputs and sizes, not for those of runs.

Of each tensor: what its values and what its sizes depend on (the inputs that the caller sends, the number of timesteps,
the number of rows), and along which axes its elements may differ. An operator that is not known mixes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, constants, subgraphs
from stepwell_export.graph.operators import ELEMENTWISE as _ELEMENTWISE
from stepwell_export.graph.operators import REDUCTIONS, RESHAPING, RUNNING
from stepwell_export.runtime.outside_weights import to_array
from stepwell_export.streaming.axes.inputs import LENGTHS, SequenceInputs
from stepwell_export.structure.row_rules import mixed_axes

if TYPE_CHECKING:
    from stepwell_export.streaming.axes.measured_shapes import Dim

Marks = frozenset[str]

DATA, TIME, BATCH = "data", "time", "batch"
"""An input that the caller sends, the number of timesteps, the number of rows."""

SIZES = frozenset({TIME, BATCH})

ELEMENTWISE = _ELEMENTWISE | {
    "DequantizeLinear", "QuantizeLinear", "StringConcat", "ai.onnx.ml.Binarizer", "ai.onnx.ml.LabelEncoder",
    "com.microsoft.BiasGelu", "com.microsoft.FastGelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
}  # fmt: skip
"""Operators whose elements depend on those at the same place of their inputs alone."""

_ALIKE = ELEMENTWISE | RESHAPING | {
    *REDUCTIONS, "ConcatFromSequence", "ConstantOfShape", "Einsum", "Expand", "Flatten", "Gather", "Gemm",
    "LayerNormalization", "LogSoftmax", "MatMul", "OneHot", "Pad", "Shape", "Size", "Slice", "Softmax", "Split",
    "SplitToSequence", "Tile", "Concat",
}  # fmt: skip
"""Operators that give equal elements along an axis where those that they take are equal along it."""

_SIZED_BY = {
    **dict.fromkeys(REDUCTIONS, (1,)), "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,),
    "Col2Im": (1, 2), "Compress": (0, 1), "ConstantOfShape": (0,), "DFT": (1,), "Expand": (1,), "HammingWindow": (0,),
    "HannWindow": (0,), "If": (0,), "MaxUnpool": (1, 2), "NonMaxSuppression": (0, 1, 2, 3, 4), "NonZero": (0,),
    "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3),
    "SequenceAt": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,),
    "StringSplit": (0, 1), "Tile": (1,), "TopK": (1,), "Unique": (0,), "Unsqueeze": (1,), "Upsample": (1,),
}  # fmt: skip
"""By operator, the inputs whose values decide the sizes of its outputs."""

_EVEN = RESHAPING | {
    "Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Mul", "Neg", "Range", "ReduceProd", "ReduceSum",
    "Slice", "Split", "Sub", "Sum", "Tile",
}  # fmt: skip
"""Operators whose results grow evenly where what they take does."""

_FEW = 64
"""Elements of a list that are followed one by one."""

_NO_END = 10**9
"""From here on, the end of a Slice means the end of the sequence: exporters write the largest integer."""

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
        is_even: Whether its elements, as far as they depend on the numbers of timesteps and rows, grow evenly with
            these, without a limit.
        has_even_sizes: Whether its sizes do.
        parts: What each element of a list of sizes depends on; None: it is not known, or there are many.
    """

    value: Marks = frozenset()
    shape: Marks = frozenset()
    varies: Marks = frozenset()
    is_even: bool = True
    has_even_sizes: bool = True
    parts: tuple[Marks, ...] | None = None

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


def dependences(
    graph: onnx.GraphProto,
    inputs: SequenceInputs,
    dims: Dims,
    measured: Callable[[str], Any],
    settled: Mapping[str, Dependence],
) -> dict[str, Dependence]:
    """Return what each tensor of a graph depends on.

    Args:
        graph: The graph.
        inputs: Where the inputs have their axes.
        dims: What the axes of its tensors carry, in runs.
        measured: The value of a tensor in a run, which is that of every run where it depends on nothing.
        settled: What is proven of tensors in another way.
    """
    known = {name: _of_constant(tensor) for name, tensor in constants(graph).items()} | dict(settled)
    for layout in inputs.inputs:
        axes = ((TIME, layout.time), (BATCH, layout.batch))
        sizes = frozenset(mark for mark, axis in axes if axis is not None)
        if layout.role == "external":
            known[layout.name] = Dependence(frozenset({DATA}), sizes, sizes)
        else:
            known[layout.name] = Dependence(frozenset({TIME} if layout.role == "length" else ()), sizes)
    longest = inputs.length or _NO_END
    _Pass(known, dims, constants(graph), measured, longest).follow(graph.node)
    return known


def _of_constant(tensor: onnx.TensorProto) -> Dependence:
    count = int(np.prod(tensor.dims))
    return Dependence(parts=(frozenset(),) * count) if count <= _FEW and len(tensor.dims) < 2 else Dependence()


@dataclass(slots=True)
class _Pass:
    """One pass over the nodes of a graph or a body.

    Attributes:
        found: What its tensors depend on.
        dims: What the axes of its tensors carry; nothing for those of a body.
        tables: Its constants.
        measured: The value of a tensor in a run; None for those of a body.
        longest: From this number of timesteps on, no sequence is longer.
        repeated: Tensors with an axis along which one element is repeated.
        counts: Of lists of sizes that grow evenly, what each element is.
    """

    known: dict[str, Dependence]
    dims: Dims
    tables: Mapping[str, onnx.TensorProto]
    measured: Callable[[str], Any]
    longest: int = _NO_END
    repeated: set[str] = field(default_factory=set)
    counts: dict[str, tuple[Dim, ...]] = field(default_factory=dict)

    def follow(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Find what the outputs of nodes depend on."""
        for node in nodes:
            if all(name in self.known for name in node.output if name):
                continue
            has_bodies = any(subgraphs(node))
            made = self._of_bodies(node) if has_bodies else [self._of_node(node)] * len(node.output)
            # the last outputs may be left out
            self.known.update({name: dependence for name, dependence in zip(node.output, made, strict=False) if name})
            if node.op_type in {"Expand", "Tile"} and self._repeats_one(node):
                self.repeated |= set(node.output)

    def _given(self, name: str) -> Dependence:
        return self.known.get(name, NOTHING) if name else NOTHING

    def _value(self, name: str) -> Any:
        return to_array(self.tables[name]) if name in self.tables else None

    def _of_node(self, node: onnx.NodeProto) -> Dependence:
        kind = kind_of(node)
        given = [self._given(name) for name in node.input]
        if kind in {"Shape", "Size"}:
            return self._of_sizes(node, given[0])
        if (kind == "Equal" and self._is_never(node, given)) or (kind == "And" and self._is_false(node, given)):
            return NOTHING
        if (exact := self._exact(node, kind)) is not None:
            return exact
        if (parts := self._parts(node, kind, given)) is not None:
            is_even = (
                all(dependence.is_even for dependence in given)
                if kind in _EVEN
                else not frozenset().union(*parts) & SIZES
            )
            return Dependence(frozenset[str]().union(*parts), is_even=is_even, parts=parts)
        sizes_alone, sized_by = _SIZES_ALONE.get(kind, ()), _SIZED_BY.get(kind, ())
        value, shape, varies = _joined(dependence for place, dependence in enumerate(given) if place not in sizes_alone)
        if kind in {"ConstantOfShape", "Range"}:
            shape = frozenset()
        value |= self._counted(node, kind)
        deciding = [given[place] for place in sized_by if place < len(given)]
        shape |= frozenset[str]().union(*(dependence.value for dependence in deciding))
        even_sizes = all(dependence.has_even_sizes for dependence in given) and all(
            dependence.is_even for dependence in deciding
        )
        if kind == "Slice" and given[0].shape & SIZES:
            even_sizes &= self._cuts_evenly(node)
        if kind in {"Gather", "Slice", "Split"}:
            grown = (shape - given[0].shape) & SIZES
            varies |= frozenset() if not grown or self._is_flat(node.input[0]) else grown
        elif kind == "Concat" and any(dependence.value or dependence.varies for dependence in given):
            # of parts that are the same for all sizes, a run shows whether they are equal
            varies |= shape & _grows(self.dims(node.output[0]), attributes(node)["axis"])
        elif (kind == "Pad" and any(dependence.value for dependence in given)) or kind not in _ALIKE:
            varies |= shape & SIZES
        keeps_even = kind in _EVEN or (kind == "Where" and not given[0].value & SIZES)
        is_even = all(dependence.is_even for dependence in given) if keeps_even else not value & SIZES
        return Dependence(value, shape, varies, is_even, even_sizes)

    def _is_never(self, node: onnx.NodeProto, given: Sequence[Dependence]) -> bool:
        """Whether a node compares sizes with negative numbers, as PyTorch's exporter does where it expands a tensor."""
        for sizes, other in ((0, 1), (1, 0)):
            if given[sizes].parts is not None and given[other] in (NOTHING, replace(NOTHING, parts=given[other].parts)):
                value = self.measured(node.input[other])
                return value is not None and bool((np.asarray(value) < 0).all())
        return False

    def _is_false(self, node: onnx.NodeProto, given: Sequence[Dependence]) -> bool:
        """Whether one of two conditions is never met, for any sizes."""
        values = [self.measured(n) for n, of in zip(node.input, given, strict=True) if of.is_fixed and not of.shape]
        return any(value is not None and not np.any(value) for value in values)

    def _exact(self, node: onnx.NodeProto, kind: str) -> Dependence | None:
        """Return what the quotient or the rest depends on where sizes are divided by a factor of theirs."""
        of = self.counts.get(node.input[0]) if node.input else None
        if of is None:
            return None
        if kind in RESHAPING | {"Cast"}:
            self.counts[node.output[0]] = of
        factor = self._value(node.input[1]) if len(node.input) == 2 else None
        if kind == "Gather" and factor is not None:
            self.counts[node.output[0]] = tuple(of[int(place)] for place in factor.reshape(-1))
        if kind not in {"Div", "Mod"} or factor is None or factor.size != 1 or factor.dtype.kind != "i":
            return None
        if factor.flat[0] <= 0:
            return None
        quotients = tuple(dim.divided(int(factor.flat[0])) for dim in of)
        if not all(quotient.is_whole for quotient in quotients):
            return None
        if kind == "Mod":
            return NOTHING
        self.counts[node.output[0]] = quotients
        given = self._given(node.input[0])
        return Dependence(given.value, given.shape, is_even=given.is_even, parts=given.parts)

    def _of_sizes(self, node: onnx.NodeProto, of: Dependence) -> Dependence:
        """Return what the sizes of a tensor depend on; one that is the same in runs of even growth is always."""
        dims = self.dims(node.input[0])
        parts = [_grows((dim,), 0) if of.has_even_sizes else of.shape & SIZES for dim in dims]
        parts = [part | (of.shape & {DATA}) for part in parts]
        if not dims:
            return Dependence(of.shape, is_even=of.has_even_sizes)
        if node.op_type == "Size":
            parts = [frozenset[str]().union(*parts)]
        attrs = attributes(node)
        parts = parts[attrs.get("start", 0) : attrs.get("end")]
        if node.op_type == "Shape" and of.has_even_sizes:
            self.counts[node.output[0]] = tuple(dims[attrs.get("start", 0) : attrs.get("end")])
        return Dependence(frozenset[str]().union(*parts), is_even=of.has_even_sizes, parts=tuple(parts))

    def _parts(self, node: onnx.NodeProto, kind: str, given: Sequence[Dependence]) -> tuple[Marks, ...] | None:
        """Return what the elements of a list depend on that is made of lists of sizes; None: it is none."""
        lists = [dependence.parts for dependence in given]
        if not lists or lists[0] is None:
            return None
        if kind in RESHAPING | {"Cast"}:
            return lists[0]
        places = self._value(node.input[1]) if len(node.input) > 1 else None
        if kind == "Gather" and places is not None:
            return tuple(lists[0][int(place)] for place in places.reshape(-1))
        if kind == "Slice" and all(name in self.tables for name in node.input[1:]):
            numbers = [int(self._value(name).reshape(-1)[0]) for name in node.input[1:]]
            step = numbers[3] if len(numbers) > 3 else 1
            return lists[0][numbers[0] : numbers[1] : step] if step > 0 else None
        whole = [part for part in lists if part is not None]
        if len(whole) < len(lists):
            return None
        if kind == "Concat":
            return tuple(marks for part in whole for marks in part)
        longest = max(map(len, whole))
        if kind in ELEMENTWISE and all(len(part) in {1, longest} for part in whole):
            wide = [part * longest if len(part) == 1 else part for part in whole]
            return tuple(frozenset[str]().union(*marks) for marks in zip(*wide, strict=True))
        return None

    def _counted(self, node: onnx.NodeProto, kind: str) -> Marks:
        """Return what the sizes of the axes depend on that an operator sums over, or counts along."""
        if kind in EACH_BY_ITSELF | {"ConstantOfShape", "Range", "EyeLike", *RUNNING}:
            return frozenset()
        marks = frozenset[str]()
        names = [name for name in node.input if name]
        shapes = {name: np.shape(self.measured(name)) if self.dims(name) else () for name in names}
        for name in names:
            of, dims = self._given(name), self.dims(name)
            mixed = mixed_axes(node, name, shapes, self._value) if dims else None
            if mixed is None or not of.has_even_sizes:
                marks |= of.shape
            else:
                marks |= frozenset[str]().union(*(_grows(dims, axis) for axis in mixed), of.shape & {DATA})
        return marks

    def _cuts_evenly(self, node: onnx.NodeProto) -> bool:
        """Whether a Slice cuts sequences that are longer than those of the shortest run as it cuts these."""
        dims = self.dims(node.input[0])
        starts, ends, axes = map(self._value, [*node.input[1:4], ""][:3])
        shortest = np.shape(self.measured(node.input[0])) if dims else ()
        axes = range(len(dims)) if axes is None else [int(axis) for axis in axes]
        for numbers in (starts, ends):
            for axis, number in zip(axes, () if numbers is None else numbers, strict=False):
                size = shortest[axis] if shortest else LENGTHS[0]
                if _grows(dims, axis) and size < abs(int(number)) < self.longest:
                    return False
        return True

    def _is_flat(self, name: str) -> bool:
        """Whether all parts that can be cut off a tensor are equal: the whole of a table is compared."""
        value = self._value(name)
        return name in self.repeated or (value is not None and value.size > 0 and bool((value == value.flat[0]).all()))

    def _repeats_one(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes a longer axis of one element, and no other axis longer."""
        before, after = self.dims(node.input[0]), self.dims(node.output[0])
        longer = [at for at, dim in enumerate(after[len(after) - len(before) :]) if dim != before[at]]
        return bool(before) and len(longer) == 1 and before[longer[0]].at_one_step() == (1, 0)

    def _of_bodies(self, node: onnx.NodeProto) -> list[Dependence]:
        """Return what the outputs of an If, Loop or Scan depend on: what it carries is followed until it stays."""
        given = [self._given(name) for name in node.input]
        if node.op_type == "If":
            branches = zip(*(self._ends(body, []) for body in subgraphs(node)), strict=True)
            return [_decided(_union(pair), given[0].value) for pair in branches]
        body = next(subgraphs(node))
        given = given[max(len(given) - len(body.input), 0) :]  # the Scan of opset 8 takes lengths first
        is_loop = node.op_type == "Loop"
        turns = _union(given[:2]) if is_loop else NOTHING
        lead = [Dependence(turns.value), given[1]] if is_loop else []
        first = 2 if is_loop else 0
        count = len(given) - (first if is_loop else int(attributes(node)["num_scan_inputs"]))
        carried, scanned = given[first : first + count], given[first + count :]
        while True:
            ends = self._ends(body, [*lead, *carried, *scanned])
            wider = [_union(pair) for pair in zip(carried, ends[int(is_loop) :][:count], strict=True)]
            if wider == carried:
                break
            carried = wider
        goes_on = ends[0] if is_loop else NOTHING
        decides = turns.value | goes_on.value | frozenset[str]().union(*(dependence.shape for dependence in scanned))
        even = all(dependence.has_even_sizes for dependence in given) and (turns.is_even or not turns.value & SIZES)
        collected = [_decided(dependence, decides) for dependence in ends[int(is_loop) + count :]]
        made = [_decided(dependence, decides) for dependence in carried] + collected
        return [replace(dependence, is_even=not dependence.value & SIZES, has_even_sizes=even) for dependence in made]

    def _ends(self, body: onnx.GraphProto, given: Sequence[Dependence]) -> list[Dependence]:
        """Return what the outputs of a body depend on, by what its inputs do."""
        tables = constants(body)
        inner = {**self.known, **{name: _of_constant(tensor) for name, tensor in tables.items()}}
        inner |= {value.name: dependence for value, dependence in zip(body.input, given, strict=False)}
        for name in (name for node in body.node for name in node.output):
            inner.pop(name, None)
        _Pass(inner, lambda _: (), {**self.tables, **tables}, lambda _: None, self.longest).follow(body.node)
        return [inner.get(value.name, NOTHING) for value in body.output]


def _union(parts: Iterable[Dependence]) -> Dependence:
    parts = list(parts)
    value, shape, varies = _joined(parts)
    is_even, even_sizes = (
        all(dependence.is_even for dependence in parts),
        all(dependence.has_even_sizes for dependence in parts),
    )
    return Dependence(value, shape, varies, is_even, even_sizes)


def _decided(dependence: Dependence, decides: Marks) -> Dependence:
    """Return what a tensor depends on where something decides which it is, or how often it is computed."""
    shape = dependence.shape | decides
    return replace(
        dependence,
        value=dependence.value | decides,
        shape=shape,
        varies=dependence.varies | (shape & SIZES),
        is_even=False,
    )


def _joined(parts: Iterable[Dependence]) -> tuple[Marks, Marks, Marks]:
    value, shape, varies = frozenset[str](), frozenset[str](), frozenset[str]()
    for dependence in parts:
        value, shape, varies = value | dependence.value, shape | dependence.shape, varies | dependence.varies
    return value, shape, varies


def _grows(dims: Sequence[Dim], axis: int) -> Marks:
    """Return what an axis grows with; `TIME` and `BATCH` where that is not known."""
    if not dims:
        return SIZES
    dim = dims[axis % len(dims)]
    return frozenset({mark for mark, grows in ((TIME, dim.has_time), (BATCH, dim.has_batch)) if grows})


_MOVING = frozenset({"Concat", "Expand", "Gather", "OneHot", "Pad", "Shape", "Size", "Slice", "Split", "Tile"})

EACH_BY_ITSELF = ELEMENTWISE | RESHAPING | _MOVING
"""Operators whose elements are made of one element of each input, at its place or elsewhere."""


def kind_of(node: onnx.NodeProto) -> str:
    """Return a node's operator, with its domain where that is not ONNX' own."""
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
