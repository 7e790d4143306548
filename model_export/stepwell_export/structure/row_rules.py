"""Where each operator puts the rows of a batch, or that it makes something of several of them: one rule for each.

Source: the specifications of the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from stepwell_export.graph.nodes import attributes
from stepwell_export.graph.operators import BROADCASTING, REDUCTIONS, RNN, RUNNING, STATEFUL, UNARY
from stepwell_export.runtime.operator_scan import DOMAINS
from stepwell_export.structure.facts import (
    TRIALS,
    MixedError,
    RowFact,
    Rows,
    Shape,
    UndecidedError,
    common_axis,
    folded,
    slices,
)

if TYPE_CHECKING:
    import onnx

_ENDLESS = 2**31 - 1  # what exporters write for "to the end"


@dataclass(frozen=True, slots=True)
class RowCall:
    """A node that takes rows.

    Attributes:
        kind: Its operator.
        attrs: Its attributes.
        given: What it takes; None: an input that is left out.
        made: The shapes of its outputs for both trials; None: unknown.
        opset: The version of its operator's domain.
    """

    kind: str
    attrs: Mapping[str, Any]
    given: Sequence[RowFact | None]
    made: Sequence[tuple[Shape, Shape] | None]
    opset: int

    def fact(self, place: int) -> RowFact | None:
        """Return what it takes at a place; None: nothing."""
        return self.given[place] if place < len(self.given) else None

    def rows(self, place: int) -> Rows | None:
        """Return where the rows are of what it takes at a place."""
        fact = self.fact(place)
        return None if fact is None else fact.rows

    def rank(self, place: int) -> int:
        """Return how many axes an input has."""
        fact = self.fact(place)
        return 0 if fact is None else fact.rank

    def only(self, *places: int) -> None:
        """Check that no other input has rows.

        Raises:
            UndecidedError: One has.
        """
        for place, fact in enumerate(self.given):
            if place not in places and fact is not None and fact.rows is not None:
                raise UndecidedError(f"takes rows as its input {place + 1}")

    def axis(self, default: int, rank: int) -> int:
        """Return its attribute `axis`, counted from the front."""
        return int(self.attrs.get("axis", default)) % max(rank, 1)

    def values(self, place: int, trial: int = 0) -> list[int] | None:
        """Return the integers that it takes at a place; None: nothing is given.

        Raises:
            UndecidedError: They are not known.
        """
        fact = self.fact(place)
        if fact is None:
            return None
        if fact.values is None:
            raise UndecidedError("has axes or sizes that are computed from values")
        return [int(value) for value in fact.values[trial].reshape(-1)]

    def output(self, place: int = 0) -> tuple[Shape, Shape]:
        """Return the shapes of an output.

        Raises:
            UndecidedError: They are not known.
        """
        shapes = self.made[place]
        if shapes is None:
            raise UndecidedError("gives a tensor whose shape is not known")
        return shapes


Rule = Callable[[RowCall], Rows | list[Rows | None] | None]
"""Where the rows of the outputs are: of all, or of each."""


def _elementwise(call: RowCall, places: Iterable[int] | None = None) -> Rows:
    chosen = [fact for place, fact in enumerate(call.given) if fact is not None and (places is None or place in places)]
    rank = max(fact.rank for fact in chosen)
    return common_axis([
        replace(fact.rows, axis=fact.rows.axis + rank - fact.rank) for fact in chosen if fact.rows is not None
    ])  # fmt: skip


def _of_first(call: RowCall) -> Rows:
    """Element by element of the first input; the others are the same for all rows."""
    call.only(0)
    return _first(call)


def _first(call: RowCall) -> Rows:
    rows = call.rows(0)
    if rows is None:
        raise UndecidedError("takes rows, but not as its first input")
    return rows


Axes = Callable[[RowCall], Iterable[int]]


def _along(axes: Axes, verb: str, *, reduces: bool = False) -> Rule:
    """An operator that makes of all elements along some axes of its first input something for each.

    Args:
        axes: These axes.
        verb: What it does along them.
        reduces: Whether it leaves one element along them, or none, as `keepdims` has it.
    """

    def rule(call: RowCall) -> list[Rows | None]:
        call.only(0)
        rows, rank = _first(call), call.rank(0)
        along = {int(axis) % rank for axis in axes(call)}
        if rows.axis in along:
            raise MixedError(f"{verb} the rows of the batch")
        if reduces and not call.attrs.get("keepdims", 1):
            rows = replace(rows, axis=rows.axis - sum(axis < rows.axis for axis in along))
        return [rows] * len(call.made)

    return rule


def _axis(default: int, *, all_below: int = 0) -> Axes:
    """Its attribute `axis`; below that opset all axes from it on, 1 being the default there."""

    def axes(call: RowCall) -> Iterable[int]:
        if call.opset < all_below:
            return range(call.axis(1, call.rank(0)), call.rank(0))
        return [call.axis(default, call.rank(0))]

    return axes


def _from(first: int | None = None) -> Axes:
    """All axes from one on; None: from its attribute `axis`."""
    return lambda call: range(call.axis(-1, call.rank(0)) if first is None else first, call.rank(0))


def _reduced(call: RowCall) -> Iterable[int]:
    axes = call.values(1) if call.fact(1) is not None else call.attrs.get("axes")
    if axes or call.attrs.get("noop_with_empty_axes"):
        return axes or []
    return range(call.rank(0))


def _batch_norm(call: RowCall) -> list[Rows | None]:
    call.only(0)
    rows = _first(call)
    if call.attrs.get("training_mode") or (call.opset < 7 and not call.attrs.get("is_test")):
        raise MixedError("is in training mode, so it normalises over the rows of the batch")
    if call.opset < 14 and len(call.made) > 1:
        raise UndecidedError("gives statistics, as in training mode")
    if rows.axis == 1 and call.rank(0) > 1:
        raise UndecidedError("has the rows where its channels are")
    return [rows, *[None] * (len(call.made) - 1)]


def _convolution(call: RowCall) -> Rows:
    if call.rows(1) is not None:
        raise UndecidedError("has weights that differ from row to row")
    rows = _first(call)
    if rows.axis == 0:
        return rows
    if rows.axis == 1:
        if int(call.attrs.get("group", 1)) > 1:
            raise UndecidedError("has the rows where its channels are")
        raise MixedError("adds up the rows of the batch")
    return _windowed(call)


def _windowed(call: RowCall) -> Rows:
    """A kernel that moves over the axes behind the first two."""
    rows = _first(call)
    if call.kind == "MaxPool" and len(call.made) > 1:
        raise UndecidedError("gives places that are counted through the batch")
    if rows.axis < 2:
        return rows
    place, weights = rows.axis - 2, call.fact(1)
    kernel = call.attrs.get("kernel_shape") or (weights.known_shapes[0][2:] if weights is not None else ())
    pads, strides = call.attrs.get("pads"), call.attrs.get("strides")
    if kernel and kernel[place] == 1 and not (pads and any(pads)) and not (strides and strides[place] != 1):
        return rows
    raise MixedError("moves its kernel over the rows of the batch")


def _matmul(call: RowCall, places: tuple[int, int] = (0, 1)) -> Rows:
    call.only(*places)
    left, right = (call.fact(place) for place in places)
    assert left is not None
    assert right is not None
    rank = max(left.rank, right.rank, 2) - (left.rank == 1) - (right.rank == 1)
    outputs = []
    for fact, other, is_right in ((left, right, False), (right, left, True)):
        if fact.rows is None:
            continue
        from_end = fact.rank - 1 - fact.rows.axis
        if from_end == (1 if is_right and fact.rank > 1 else 0):
            raise MixedError("adds up the rows of the batch")
        if from_end == 0:  # columns of the right factor
            place = rank - 1
        elif from_end == 1:  # lines of the left factor
            place = rank - (1 if other.rank == 1 else 2)
        else:
            place = rank - (2 - (other.rank == 1)) - (from_end - 1)
        outputs.append(replace(fact.rows, axis=place))
    return common_axis(outputs)


def _gemm(call: RowCall) -> Rows:
    outputs: list[Rows] = []
    for place, contracted in ((0, 0 if call.attrs.get("transA") else 1), (1, 1 if call.attrs.get("transB") else 0)):
        rows = call.rows(place)
        if rows is not None and rows.axis == contracted:
            raise MixedError("adds up the rows of the batch")
        if rows is not None:
            outputs.append(replace(rows, axis=place))
    added = call.fact(2)
    if added is not None and added.rows is not None:
        outputs.append(replace(added.rows, axis=added.rows.axis + 2 - added.rank))
    return common_axis(outputs)


def _einsum(call: RowCall) -> Rows:
    terms, result = _equation(call)
    letters = {
        (term[fact.rows.axis], fact.rows)
        for term, fact in zip(terms, call.given, strict=True)
        if fact is not None and fact.rows is not None
    }
    if len({letter for letter, _ in letters}) > 1:
        raise MixedError("combines every row with every other")
    [(letter, _), *_] = letters
    if letter not in result:
        raise MixedError("adds up the rows of the batch")
    return common_axis([replace(rows, axis=result.index(letter)) for _, rows in letters])


def _equation(call: RowCall) -> tuple[list[str], str]:
    """Return the letters of an Einsum's inputs and of its output; those of an ellipsis are digits."""
    left, arrow, result = call.attrs["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    counts = [call.rank(place) - len(term) + 3 for place, term in enumerate(terms) if "..." in term]
    hidden = "0123456789"[: max(counts, default=0)]
    outputs = [
        term.replace("...", hidden[len(hidden) - (call.rank(place) - len(term) + 3) :] if "..." in term else "")
        for place, term in enumerate(terms)
    ]
    if not arrow:
        every = "".join(outputs)
        result = "..." + "".join(sorted(letter for letter in set(every) - set(hidden) if every.count(letter) == 1))
    return outputs, result.replace("...", hidden)


# ---------------------------------------------------------------- layout


def _transpose(call: RowCall) -> Rows:
    rows = _first(call)
    perm = list(call.attrs.get("perm") or range(call.rank(0))[::-1])
    return replace(rows, axis=perm.index(rows.axis))


def _reshape(call: RowCall) -> Rows:
    rows, fact = _first(call), call.fact(0)
    assert fact is not None
    return folded(fact.known_shapes, rows, call.output())


def _squeeze(call: RowCall) -> Rows:
    given = call.values(1) if call.fact(1) is not None else call.attrs.get("axes")
    if given is None:
        raise UndecidedError("takes all axes of length 1 away, that of the rows too where there is one")
    return _reshape(call)


def _concat(call: RowCall) -> Rows:
    axis = call.axis(0, call.rank(0))
    places = [fact.rows for fact in call.given if fact is not None and fact.rows is not None]
    if all(place.axis != axis for place in places):
        return common_axis(places)
    if len(places) < len(call.given) and not any(place.is_filled for place in places):
        raise MixedError("joins something to the rows of the batch")
    raise UndecidedError("joins something to the axis that has the rows")


def _part(rows: Rows, sizes: Sequence[int]) -> Rows:
    """Return where the rows are of a part of their axis that begins with the first of them."""
    times = {size // (trial * rows.behind) for size, trial in zip(sizes, TRIALS, strict=True)}
    whole = all(size % (trial * rows.behind) == 0 for size, trial in zip(sizes, TRIALS, strict=True))
    if len(times) > 1 or not whole:
        raise MixedError("separates the rows of the batch")
    return replace(rows, before=times.pop())


def _slice(call: RowCall) -> Rows:
    rows, rank = _first(call), call.rank(0)
    call.only(0)
    for place in range(1, len(call.given)):
        fact = call.fact(place)
        if fact is not None and fact.values is None:
            if call.fact(3) is not None and rows.axis not in {axis % rank for axis in call.values(3) or ()}:
                return rows  # cut along other axes, wherever that is
            raise UndecidedError("cuts at places that are computed from values")
    given = [[None if f is None or f.values is None else f.values[trial] for f in call.given] for trial in range(2)]
    parts = [slices(call.attrs, one, rank).get(rows.axis) for one in given]
    if parts[0] is None or parts[1] is None:
        return rows
    ends = call.fact(2)
    follows = ends is not None and ends.counts is not None and bool(ends.counts.any())
    bounds = []
    for trial, (start, end, step) in zip(TRIALS, (parts[0], parts[1]), strict=True):
        size = rows.size(trial)
        if step != 1:
            raise MixedError("takes some of the rows of the batch, or in another order")
        if end is not None and size <= end < _ENDLESS and not follows:
            raise UndecidedError(f"takes the first {end} rows of a batch")
        bounds.append(slice(start, end).indices(size)[:2])
    each = [trial * rows.behind for trial in TRIALS]
    if any(start % one or end % one or end <= start for (start, end), one in zip(bounds, each, strict=True)):
        raise MixedError("takes some of the rows of the batch")
    return _part(rows, [end - start for start, end in bounds])


def _gather(call: RowCall) -> Rows:
    data, indices = call.rows(0), call.rows(1)
    axis = call.axis(0, call.rank(0))
    if data is not None and indices is not None:
        raise UndecidedError("picks from rows by numbers that differ from row to row")
    if data is None:
        assert indices is not None
        return replace(indices, axis=axis + indices.axis)
    if data.axis == axis:
        fact = call.fact(1)
        if fact is not None and fact.values is not None and data.before == data.behind == 1:
            raise MixedError("picks rows of the batch by their number")
        raise UndecidedError("picks from the axis that has the rows")
    return data if data.axis < axis else replace(data, axis=data.axis - 1 + call.rank(1))


def _gather_nd(call: RowCall) -> Rows:
    data, indices, count = call.rows(0), call.rows(1), int(call.attrs.get("batch_dims", 0))
    fact = call.fact(1)
    assert fact is not None
    if indices is not None and indices.axis < fact.rank - 1:
        if data is None:
            return indices
        if data == indices and data.axis < count:
            return data
    if indices is None and data is not None and data.axis >= (end := count + fact.known_shapes[0][-1]):
        return replace(data, axis=fact.rank - 1 + data.axis - end)
    raise UndecidedError("picks from the axis that has the rows")


def _elements_by_places(call: RowCall) -> Rows:
    """Elements that are picked, or written, at places along an axis."""
    places = [call.rows(place) for place in range(len(call.given))]
    if places[0] is None or any(place != places[0] for place in places):
        raise UndecidedError("takes places whose rows are elsewhere")
    if places[0].axis == call.axis(0, call.rank(0)):
        raise MixedError("picks or writes elements along the rows of the batch")
    return places[0]


def _scatter_nd(call: RowCall) -> Rows:
    data, fact = call.rows(0), call.fact(1)
    assert fact is not None
    depth = fact.known_shapes[0][-1]
    updates = call.rows(2)
    if data is None or fact.rows is not None or data.axis < depth:
        raise UndecidedError("writes into the axis that has the rows")
    if updates != replace(data, axis=data.axis - depth + fact.rank - 1):
        raise UndecidedError("writes something whose rows are elsewhere")
    return data


def _pad(call: RowCall) -> Rows:
    rows, rank = _first(call), call.rank(0)
    call.only(0)
    pads = call.values(1) if call.fact(1) is not None else call.attrs.get("pads", call.attrs.get("paddings"))
    axes = call.values(3)
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    if pads is None:
        raise UndecidedError("has no pads")
    for place, axis in enumerate(axes):
        if axis == rows.axis and (pads[place] or pads[place + len(axes)]):
            raise MixedError("pads the rows of the batch")
    return rows


def _tile(call: RowCall) -> Rows:
    rows = _first(call)
    times = [call.output()[trial][rows.axis] / rows.size(rows_) for trial, rows_ in enumerate(TRIALS)]
    if len(set(times)) > 1 or times[0] != int(times[0]):
        raise UndecidedError("repeats the rows")
    return replace(rows, before=rows.before * int(times[0]))


def _expand(call: RowCall) -> Rows:
    rows = _first(call)
    return replace(rows, axis=rows.axis + len(call.output()[0]) - call.rank(0))


def _same_size(call: RowCall) -> Rows:
    rows = _first(call)
    if call.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise UndecidedError("crops")
    if any(shape[rows.axis] != rows.size(trial) for shape, trial in zip(call.output(), TRIALS, strict=True)):
        raise MixedError("resizes the rows of the batch")
    return rows


def _one_hot(call: RowCall) -> Rows:
    call.only(0)
    rows, axis = _first(call), call.axis(-1, call.rank(0) + 1)
    return replace(rows, axis=rows.axis + (axis <= rows.axis))


# ---------------------------------------------------------------- operators with states


def _recurrent(call: RowCall) -> list[Rows | None]:
    is_first = bool(call.attrs.get("layout", 0))
    states = [*STATEFUL[call.kind].states]
    axes = {0: 0 if is_first else 1, 4: 0} | dict.fromkeys(states, 0 if is_first else 1)
    call.only(*axes)
    outputs = []
    for place, axis in axes.items():
        rows = call.rows(place)
        if rows is not None:
            if rows.axis != axis:
                raise MixedError("runs over the rows of the batch, or adds them up")
            outputs.append(replace(rows, axis=0))
    rows = common_axis(outputs)
    whole, last = (0, 0) if is_first else (2, 1)
    return [replace(rows, axis=whole), *[replace(rows, axis=last)] * (len(call.made) - 1)]


def _all_in_front(call: RowCall) -> list[Rows | None]:
    """An operator whose tensors all have the rows in front, as attention and its caches."""
    for place, fact in enumerate(call.given):
        if fact is not None and fact.rows is not None and fact.rows.axis != 0:
            raise UndecidedError(f"has the rows of its input {place + 1} on axis {fact.rows.axis}")
    mask = call.fact(3) if call.kind == "Attention" else None
    if mask is not None and mask.rows is not None and mask.rank < 4:
        raise UndecidedError("has a mask whose rows are not those of its other inputs")
    rows = common_axis([fact.rows for fact in call.given if fact is not None and fact.rows is not None])
    return [rows] * len(call.made)


def _rotary(call: RowCall) -> list[Rows | None]:
    """Features are turned by the angles of each timestep: those that are given for it, or that its number is of."""
    rows, angles = _first(call), call.rows(3) or call.rows(1)
    if rows.axis == 0:
        return _all_in_front(call)
    if angles is None or angles.axis != 1 or rows.axis != call.rank(0) - 2:
        raise UndecidedError("turns rows by angles that are not theirs")
    return [rows]


def _of_all(call: RowCall) -> Rows:
    raise MixedError("takes one scale from all rows of the batch")


_UNARY = [*sorted(UNARY), "Bernoulli", "RandomNormalLike", "RandomUniformLike"]

RULES: Final[Mapping[str, Rule]] = {
    operator: rule
    for operators, rule in (
        ([*_UNARY, *BROADCASTING], _elementwise),
        (REDUCTIONS, _along(_reduced, "reduces over", reduces=True)),
        (RNN, _recurrent),
        ([*STATEFUL.keys() - RNN, "Multinomial"], _all_in_front),
        (["RotaryEmbedding"], _rotary),
        (["ArgMax", "ArgMin"], _along(_axis(0), "picks one of", reduces=True)),
        (["Softmax", "LogSoftmax"], _along(_axis(-1, all_below=13), "normalises over")),
        (["Hardmax"], _along(_axis(-1, all_below=13), "picks one of")),
        (["LpNormalization"], _along(_axis(-1), "normalises over")),
        (RUNNING, _along(lambda call: call.values(1) or range(call.rank(0)), "runs over")),
        (["TopK"], _along(_axis(-1), "sorts")),
        (
            ["LayerNormalization", "RMSNormalization"],
            _along(_from(), "normalises over"),
        ),
        (["MeanVarianceNormalization"], _along(lambda call: call.attrs.get("axes", (0, 2, 3)), "normalises over")),
        (["BatchNormalization"], _batch_norm),
        (["InstanceNormalization", "GroupNormalization"], _along(_from(1), "normalises over")),
        (["LRN"], _along(lambda call: [1], "normalises over")),
        (["GlobalAveragePool", "GlobalMaxPool"], _along(_from(2), "pools")),
        (["AveragePool", "LpPool", "MaxPool"], _windowed),
        (["Conv", "ConvTranspose", "ConvInteger"], _convolution),
        (["MatMul", "MatMulInteger"], _matmul),
        (["QLinearMatMul"], lambda call: _matmul(call, (0, 3))),
        (["Gemm"], _gemm),
        (["Einsum"], _einsum),
        (["DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"], _of_all),
        (["QuantizeLinear", "DequantizeLinear"], _of_first),
        (["Transpose"], _transpose),
        (["Reshape", "Flatten", "Unsqueeze"], _reshape),
        (["Squeeze"], _squeeze),
        (["Concat"], _concat),
        (["Split"], _along(_axis(0), "separates")),
        (["Slice"], _slice),
        (["Gather"], _gather),
        (["GatherND"], _gather_nd),
        (["GatherElements", "ScatterElements"], _elements_by_places),
        (["ScatterND"], _scatter_nd),
        (["Pad"], _pad),
        (["Tile"], _tile),
        (["Expand"], _expand),
        (["Resize"], _same_size),
        (["OneHot"], _one_hot),
        (["Trilu"], _along(lambda call: [-2, -1], "takes for a matrix")),
    )
    for operator in operators
}
"""By operator. One that is not here is not decided."""


def mixed_axes(
    node: onnx.NodeProto, name: str, shapes: Mapping[str, Shape], value: Callable[[str], Any]
) -> set[int] | None:
    """Return the axes of an input along which a node's rule does not show that rows would be independent.

    Args:
        node: The node; its opset is 13 or later.
        name: The input.
        shapes: Those of all inputs.
        value: Returns the value of a constant; None: it is none.

    Returns:
        None: there is no rule.
    """
    rule = RULES.get(node.op_type)
    if rule is None or node.domain not in DOMAINS:
        return None
    values = {given: value(given) for given in shapes}
    others = {
        given: RowFact(shapes=(shape, shape), values=None if values[given] is None else (values[given], values[given]))
        for given, shape in shapes.items()
    }
    mixed = set()
    for axis in range(len(shapes[name])):
        facts = {**others, name: replace(others[name], rows=Rows(axis))}
        given = [facts[taken] if taken else None for taken in node.input]
        try:
            rule(RowCall(node.op_type, attributes(node), given, [None] * len(node.output), 13))
        except (MixedError, UndecidedError):
            mixed.add(axis)
    return mixed


def filled(kind: str, shapes: tuple[Shape, Shape], before: tuple[Shape, Shape] | None) -> Rows | None:
    """Return where the rows are of a tensor that is repeated for them, of something that has none.

    Args:
        kind: The operator.
        shapes: The tensor's.
        before: Those of what is repeated; None: one number.

    Raises:
        UndecidedError: It is not one axis with one element for each row.
    """
    grown = [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if sizes[0] != sizes[1]]
    if not grown:
        return None
    place = grown[0] - len(shapes[0]) + (0 if before is None else len(before[0]))
    is_one = before is None or place < 0 or before[0][place] == 1
    times = {shape[grown[0]] / trial for shape, trial in zip(shapes, TRIALS, strict=True)}
    if kind not in {"Expand", "ConstantOfShape", "Tile"} or len(grown) > 1 or len(times) > 1 or not is_one:
        raise UndecidedError("makes something that follows from the number of rows")
    count = times.pop()
    if count != int(count):
        raise UndecidedError("makes something that follows from the number of rows")
    return Rows(grown[0], int(count), is_filled=count > 1)


SIZES: Final[Mapping[str, frozenset[int]]] = {
    "Reshape": frozenset({1}), "Expand": frozenset({1}), "Tile": frozenset({1}), "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1, 3}), "Resize": frozenset({1, 2, 3}), "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}), "Split": frozenset({1}), "ConstantOfShape": frozenset({0}),
    **dict.fromkeys(REDUCTIONS, frozenset({1})),
}  # fmt: skip
"""By operator, the inputs that are sizes, which may follow from the number of rows without harm."""
