r"""Walks a sequence graph node by node and emits the step graph: the same nodes on one timestep, plus states.

How the time of a tensor is kept: it is `extra` timesteps longer than the sequence, and at step t the step graph
holds its element t + `offset`. Padding in front raises the offset, a convolution lowers it by what it looks back on,
cutting off the front lowers it too; the end of a tensor plays no part until an answer is due: that for timestep t
is element t + extra, so a tensor whose extra is larger than its offset looks ahead.

Before and after:

    sequence graph, T timesteps            step graph, one of them
    x (B, T, 4)                            x (B, 4)     conv.past (B, 2, 4)
       | Pad in front by 2                       \      /
       | Conv of 3 timesteps          ->         Concat ------> conv.past of the next timestep
       | Relu                                      | Conv of 3 timesteps
    y (B, T, 5)                                    | Relu
                                           y (B, 5)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import captures, constants, described, mentioned, read_opset, rename_captures, uses
from stepwell_export.graph.operators import RESHAPING, STATEFUL
from stepwell_export.runtime.errors import InternalError, RefusedModelError, StepwellError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.dependence import BATCH, DATA
from stepwell_export.streaming.axes.measured_shapes import Dim, MeasuredShapes
from stepwell_export.streaming.known_values import emit_by_position, emit_known, history, is_by_position
from stepwell_export.streaming.step_graph import StreamingGraph, plain, window_order

# ---------------------------------------------------------------- tensors

Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
ONE = Dim(Fraction(1))


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """A factor of such a value, as it is at this timestep.

    Attributes:
        step: The tensor of the step graph.
        dims: Its axes, as many as the value has; of length 1 where it is the same for all elements of an axis.
    """

    step: str
    dims: tuple[Dim, ...]

    def varies(self, axis: int) -> bool:
        """Whether it may differ along an axis."""
        return self.dims[axis].at_one_step() != (1, 0)


@dataclass(frozen=True, slots=True)
class TimeWeights:
    """What a value of each timestep is made of: `values` times the softmax over time of `scores`.

    Attributes:
        scores: What the exponential is taken of.
        values: What the weights are multiplied with; None: ones.
        bounds: Between which numbers the scores lie, by the operators that make them.
    """

    scores: WeightedPart
    values: WeightedPart | None = None
    bounds: Range = ANY

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The axes of the product."""
        return joint_dims(self.scores.dims, *([] if self.values is None else [self.values.dims]))

    def mapped(self, change: Callable[[WeightedPart], WeightedPart]) -> TimeWeights:
        """Return the same of changed parts."""
        values = None if self.values is None else change(self.values)
        return replace(self, scores=change(self.scores), values=values)


@dataclass(frozen=True, slots=True)
class Total:
    """The sum over time of weights, as tensors of the step graph.

    Attributes:
        total: The sum so far, relative to the largest score if there is one.
        share: This timestep's part of the sum.
        largest: The largest score so far; empty: scores are small.
    """

    total: WeightedPart
    share: str
    largest: str = ""


def joint_dims(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the axes of a product of tensors, which broadcast."""
    turned = zip_longest(*(shape[::-1] for shape in shapes), fillvalue=ONE)
    return tuple(next((dim for dim in dims if dim.at_one_step() != (1, 0)), dims[0]) for dims in turned)[::-1]


@dataclass(frozen=True, slots=True)
class StepTensor:
    """What is known of a tensor of the sequence graph; each kind is a class.

    Attributes:
        step: The tensor in the step graph; empty for one that is emitted when it is used, or that there is none of.
        position: Whether it counts the timesteps, so that it grows without end.
        refused_as_answer: Why it is refused if it becomes an answer: some timesteps depend on later ones, unless they
            are masked on the way.
    """

    step: str = ""
    position: bool = False
    refused_as_answer: RefusedModelError | None = None


class Known(StepTensor):
    """One value, from the weights and the sizes alone."""


class ByPosition(StepTensor):
    """One value for each timestep of the declared length, from the sizes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Static(StepTensor):
    """One value, from inputs without time axis.

    Attributes:
        is_first: Whether it is the first timestep of a sequence.
    """

    is_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PerStep(StepTensor):
    """One value for each timestep.

    Attributes:
        offset: At step t the step graph holds element t + offset; None: all elements are equal.
        looks_ahead_by: The node that made it look ahead, and how, for messages.
        repeats_first: Whether its elements before the first timestep equal that of the first timestep.
        begins_with_data: Whether its elements before the first timestep may differ from input to input otherwise.
    """

    offset: int | None
    looks_ahead_by: str = ""
    repeats_first: bool = False
    begins_with_data: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AtEnd(StepTensor):
    """One value, known after the last timestep; in a step, it is that of the timesteps so far.

    Attributes:
        window: How many of the last timesteps it has, the present one included; at the beginning of a stream some of
            them are before its first timestep. 0: it has none.
        offset: How many of them may be before the first timestep of the sequence, where it is padded.
        keys: Their axis.
    """

    window: int = 0
    offset: int = 0
    keys: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(StepTensor):
    """A number for every timestep against every other, of which a step has its window.

    Attributes:
        window: How many timesteps are looked at, the present one included.
        front: How many of them stand before the first timestep of the sequence.
        keys: Their axis.
    """

    window: int
    front: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(StepTensor):
    """A step cannot have it, which matters only if something needs it.

    Attributes:
        error: Why.
    """

    error: StepwellError


class Beginning(Refused):
    """The first timesteps of a sequence, which may be joined to the rest of it again; `step` is this timestep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedSamples(Refused):
    """Padded with zeros in front by no whole number of timesteps; a convolution can have it.

    Attributes:
        padded: The tensor that is padded.
        count: By how many samples.
    """

    padded: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted(Refused):
    """What changes with every later timestep, as a softmax over time does, until it is summed over time.

    Attributes:
        weights: What the sum is made of.
    """

    weights: TimeWeights


# ---------------------------------------------------------------- what mixes timesteps

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
    if not isinstance(tensor, PerStep) or tensor.offset is None:
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


def _values_of(node: onnx.NodeProto) -> list[str]:
    """Return the tensors that a node's elements are made of, without shapes and the ends of a cut."""
    if node.op_type == "Slice":
        return [name for name in node.input[:2] if name]
    return [node.input[0]] if node.op_type in RESHAPING | {"Expand"} else uses(node)


def why(node: onnx.NodeProto) -> str:
    """Return why an operator mixes timesteps, for messages; empty: there is no more to it."""
    return f" ({_REASONS[node.op_type]})" if node.op_type in _REASONS else ""


Rule = Callable[["StreamingWalk", onnx.NodeProto], None]
SquareRule = Callable[["StreamingWalk", onnx.NodeProto], bool]
WeightRule = Callable[["StreamingWalk", onnx.NodeProto, str], bool]


class StreamingWalk:
    """The pass over one sequence graph.

    Attributes:
        model: The sequence graph.
        facts: What running it shows of its tensors.
        length: The declared number of timesteps; None: there is none.
        opset: The version of its operators.
        weights: Its initializers by name.
        makers: The node that makes each tensor.
        used: Tensors that a node or the caller takes.
        graph: The step graph.
        tensors: What is known of the tensors so far.
        from_sizes: Tensors that follow from weights and sizes alone.
        totals: Sums over time of what a softmax weighs, so that several uses share them.
        resampled: Why outputs of several samples for each timestep are refused; None: they are not.
    """

    def __init__(self, model: onnx.ModelProto, facts: MeasuredShapes, length: int | None = None) -> None:
        self.model = model
        self.facts = facts
        self.length = length
        self.opset = read_opset(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.graph = StreamingGraph([*self.makers, *self.weights, *(value.name for value in model.graph.input)])
        known = constants(model.graph)  # rules look ahead of the walk
        self.tensors: dict[str, StepTensor] = dict.fromkeys(known, Known())
        self.from_sizes = set(self.tensors)
        self._emitted: dict[str, str] = {}
        self._windows: dict[tuple[str, int, bool, bool, bytes | None], str] = {}
        self._outputs = {value.name for value in model.graph.output}
        self.used = self._outputs.union(*map(uses, model.graph.node))
        self.totals: dict[str, Total] = {}
        self.ranges: dict[str, Range] = {}
        self.resampled: RefusedModelError | None = None

    def run(
        self, rules: Mapping[str, Rule], default: Rule, on_square: SquareRule, on_weights: Mapping[str, WeightRule]
    ) -> None:
        """Walk all nodes; what cannot be stepped is refused when it is needed.

        Args:
            rules: By operator.
            default: The rule of other operators.
            on_square: The rule that comes before them, for what is measured between every two timesteps.
            on_weights: By operator, the rule for a weight over time among its inputs, which is refused for others;
                False: nothing that a step can have.
        """
        for node in self.model.graph.node:
            if self._is_known(node) or self._is_by_position(node):
                continue
            outputs = [name for name in node.output if name]
            try:
                if not self._may_be_square(node) or not on_square(self, node):
                    on_weight = on_weights.get(node.op_type)
                    used = dict.fromkeys(uses(node))
                    weights = [name for name in used if on_weight and isinstance(self.tensors[name], Weighted)]
                    self.need(*(n for n in used if n not in weights and not self._may_be_refused(node, n)))
                    if on_weight is None or not weights:
                        rules.get(node.op_type, default)(self, node)
                    elif len(weights) > 1 or not on_weight(self, node, weights[0]):
                        self.need(*weights)
                check_sizes(self, node)
                check_outputs(self, node)
            except (RefusedModelError, InternalError) as exc:  # the latter of a node before
                error: StepwellError = exc
            except Exception as exc:  # noqa: BLE001  # onnxruntime has run the graph, so that the rule is at fault
                error = InternalError(f"the rule of {described(node)}", exc)
                error.__cause__ = exc
            else:
                continue
            self.tensors.update(dict.fromkeys(outputs, Refused(error=error)))

    def need(self, *names: str) -> None:
        """Raise the error of the first of these tensors that is refused.

        Raises:
            RefusedModelError: The message names the node and has the reason.
            InternalError: The rule of a node failed.
        """
        for name in sorted(names, key=self.from_sizes.__contains__):  # a mask is refused for what it masks
            if isinstance(tensor := self.tensors[name], Refused):
                raise tensor.error

    # ---------------------------------------------------------------- tensors of the sequence graph

    def timed(self, node: onnx.NodeProto, names: Iterable[str] | None = None) -> list[str]:
        """Return a node's inputs, or those of `names`, with one value per timestep that differ over time."""
        given = uses(node) if names is None else [name for name in names if name]
        return [name for name in given if self.offset(name) is not None]

    def offset(self, name: str) -> int | None:
        """Return the offset of a timed tensor; None: it is none, or the same at all timesteps."""
        tensor = self.tensors[name]
        return tensor.offset if isinstance(tensor, PerStep) else None

    def timed_offset(self, name: str) -> int:
        """Return the offset of a tensor that is timed."""
        offset = self.offset(name)
        assert offset is not None
        return offset

    def known(self, name: str) -> Any:
        """Return the value of a known tensor in every run; None for another."""
        return self.facts.values(name) if name and isinstance(self.tensors[name], Known) else None

    def refuse(self, node: onnx.NodeProto, reason: str, fix: str = "") -> RefusedModelError:
        """Return the error for a node that cannot be stepped."""
        return RefusedModelError(
            f"{described(node)} {reason}.",
            fix=fix or "A step has the timesteps so far, not the ones to come: train or export a causal model.",
            layer=described(node),
        )

    # ---------------------------------------------------------------- tensors of the step graph

    def operand(self, name: str, offset: int | None = None, node: onnx.NodeProto | None = None) -> str:
        """Return the tensor of the step graph for one of the sequence graph.

        Args:
            name: The tensor of the sequence graph; empty for an input that is left out.
            offset: The offset at which a timed tensor is wanted; it is delayed where it is ahead.
            node: The node that needs it, for the message.
        """
        if not name:
            return ""
        tensor = self.tensors[name]
        if isinstance(tensor, Known):
            if name not in self._emitted:
                user = f"{described(node)} uses" if node is not None else "An answer is"
                kept = self.graph.keep(self.weights[name]) if name in self.weights else ""
                self._emitted[name] = kept or emit_known(self.graph, self.facts, name, user)
            return self._emitted[name]
        if isinstance(tensor, ByPosition):
            return emit_by_position(self, name, offset or 0, node)
        if not isinstance(tensor, PerStep) or offset is None or tensor.offset is None:
            return tensor.step
        return self.delayed(name, tensor.offset - offset)

    def delayed(self, name: str, steps: int) -> str:
        """Return a tensor as it was so many timesteps before."""
        if not steps:
            return self.tensors[name].step
        window, each = self.window(name, steps), self.facts.samples(name)
        return self.graph.op("Gather", window, self.graph.ints(range(each)), axis=self.facts.time_axis(name))

    def window(self, name: str, past: int) -> str:
        """Return a tensor's last `past` timesteps and this one, joined on its time axis."""
        step = self.tensors[name].step
        if not past:
            return step
        window, order = self.ordered_window(step, name, past, is_moved=len(self.facts.dims(name)) == 3)
        if order == sorted(order):
            return window
        return self.graph.op("Transpose", window, perm=[order.index(axis) for axis in range(len(order))])

    def ordered_window(
        self, step: str, name: str, past: int, fill: float = 0.0, label: str = "", *, is_moved: bool = True
    ) -> tuple[str, list[int]]:
        """Return the last timesteps of a tensor of the step graph, and which of its axes each axis is.

        Args:
            step: The tensor of the step graph.
            name: That of the sequence graph which it has the axes and the past of.
            past: How many timesteps before this one; at least one.
            fill: The value before the tensor's first element.
            label: What the state is named after; the tensor by default.
            is_moved: Whether the timesteps come right behind the batch; see `window_order`.
        """
        axis, tensor = self.facts.time_axis(name), self.tensors[name]
        assert axis is not None
        assert isinstance(tensor, PerStep)
        assert tensor.offset is not None
        dims = list(self.facts.dims(name))
        each = self.facts.samples(name)
        if dims[axis].both or (each > 1 and tensor.repeats_first):
            raise RefusedModelError(
                f"Tensor {name!r} holds its timesteps folded into another axis, and {past} of them are needed.",
                fix="Export the model with time on an axis of its own.",
            )
        dims[axis] = Dim(Fraction(past * each))
        init = None if tensor.repeats_first else history(self, name, tensor.offset, past, fill)
        key = step, past, tensor.repeats_first, is_moved, None if init is None else init.tobytes()
        order = window_order(len(dims), self.facts.batch_axis(name), axis, is_moved=is_moved)
        if key not in self._windows:
            dims, at = [dims[place] for place in order], order.index(axis)
            if order != sorted(order):
                step = self.graph.op("Transpose", step, perm=order)
                init = None if init is None else init.transpose(order)
            state, spec = self.graph.state_like(f"{plain(label or name)}.past", dims, self.dtype(name), init)
            if tensor.repeats_first:
                state = self.graph.op("Where", self.has_seen(1, dims), state, step)
            joined = self.graph.op("Concat", state, step, axis=at)
            self.graph.next_state_like(spec, self._last(joined, each, (past + 1) * each, dims, at), dims)
            self._windows[key] = joined
        return self._windows[key], order

    def _last(self, joined: str, start: int, end: int, dims: Sequence[Dim], axis: int) -> str:
        """Return a window without its first timesteps: parts of many axes are quickest copied by a Slice."""
        if sum(dim.at_one_step() != (1, 0) for dim in dims[:axis]) < 2:
            return self.graph.op("Gather", joined, self.graph.ints(range(start, end)), axis=axis)
        return self.graph.op("Slice", joined, *(self.graph.ints([place]) for place in (start, end, axis)))

    def has_seen(self, steps: int, dims: Sequence[Dim]) -> str:
        """Return whether `steps` timesteps came before this one, in a shape that broadcasts to a tensor's rows."""
        return self.graph.op("Greater", self.graph.count_like(dims), self.graph.ints([steps - 1]))

    def started(self, tensor: str, name: str, offset: int, fill: Any) -> str:
        """Return a tensor with `fill` instead of its elements below 0, which the sequence graph does not have."""
        if offset >= 0:
            return tensor
        value = self.graph.constant(np.asarray(fill, self.dtype(name)))
        return self.graph.op("Where", self.has_seen(-offset, self.facts.dims(name)), tensor, value)

    def dtype(self, name: str) -> str:
        """Return a tensor's NumPy type."""
        return str(np.asarray(self.facts.value(name)).dtype.name)

    # ---------------------------------------------------------------- what rules use

    def emit_like(self, node: onnx.NodeProto, offset: int | None, **changed: str) -> onnx.NodeProto:
        """Emit a node as it is, on the tensors of the step graph.

        Args:
            node: The node of the sequence graph.
            offset: The offset at which it takes its timed inputs.
            changed: Other inputs by place: `i0`, `i1` and so on.
        """
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for place, name in enumerate(node.input):
            made.input[place] = changed.get(f"i{place}") or self.operand(name, offset, node)
        rename_captures(made, {name: self.operand(name, offset, node) for name in captures(node)})
        made.output[:] = [self.fresh(name) if name else "" for name in node.output]
        self.graph.nodes.append(made)
        return made

    def fresh(self, name: str) -> str:
        """Return the name of a tensor of the step graph: its own, unless an output will have that."""
        return self.graph.unique(f"step/{name}") if name in self._outputs else name

    def set_per_step(
        self, node: onnx.NodeProto, name: str, step: str, offset: int | None, *, repeats_first: bool = False
    ) -> None:
        """Set what an output of a node is in the step graph, with one value for each timestep."""
        tensor = PerStep(step, offset=offset, repeats_first=repeats_first)
        if offset is not None and self.facts.dims(name):
            if self.facts.length_delta(name) > offset:
                before = (one.looks_ahead_by for n in uses(node) if isinstance(one := self.tensors[n], PerStep))
                looks_ahead_by = next(filter(None, before), "") or f"{mentioned(node)} {how_ahead(node)}"
                tensor = replace(tensor, looks_ahead_by=looks_ahead_by)
            if offset > 0 and not repeats_first:
                begins_with_data = any(map(self._begins_with_data, _values_of(node)))
                tensor = replace(tensor, begins_with_data=begins_with_data)
        self.tensors[name] = tensor

    def set_at_end(self, node: onnx.NodeProto, name: str, step: str) -> None:
        """Set what an output of a node is in the step graph, with one value that is known after the last timestep."""
        is_moved = node.op_type in {"Reshape", "Transpose"}
        ends = (self.tensors[given] for given in uses(node) if not is_moved and self._has_end_of(given, name))
        self.tensors[name] = next((replace(end, step=step) for end in ends), AtEnd(step))

    def before_start(self, name: str, first: int, count: int, *, made_of: Sequence[str]) -> Array | None:
        """Return elements of a tensor on its time axis that stand before the first timestep, as the runs have them.

        At step t, the step graph holds element t + `offset` of a tensor, made of the timesteps up to t: those before it
        are made of none. They are the same for all inputs where nothing else that the caller sends reaches them. That
        they are equal in some runs is no reason: what rarely counts, as a value above a limit, is equal in most.

        Args:
            name: The tensor.
            first: The first element; what is below 0 is zeros.
            count: How many.
            made_of: The tensors that these elements are made of; the tensor itself, if the walk has come to it.

        Returns:
            With the batch axis, if any, reduced to one row; None where they may differ from input to input.
        """
        if any(map(self._begins_with_data, filter(None, made_of))):
            return None
        return self.facts.before_start(name, first, count)

    def _begins_with_data(self, name: str) -> bool:
        """Whether what a tensor gives to elements before the first timestep may differ from input to input."""
        tensor, depends = self.tensors[name], self.facts.depends(name)
        if isinstance(tensor, PerStep) and tensor.offset is not None:
            return tensor.begins_with_data or tensor.repeats_first
        return not depends.is_fixed or BATCH in depends.varies

    def _has_end_of(self, given: str, name: str) -> bool:
        """Whether a tensor has the last timesteps of a sequence where one that is made of it may still have them."""
        tensor, dims, before = self.tensors[given], self.facts.dims(name), self.facts.dims(given)
        if not isinstance(tensor, AtEnd) or tensor.keys is None:
            return False
        return len(dims) == len(before) and dims[tensor.keys] == before[tensor.keys]

    def mark_position(self, name: str) -> None:
        """Note that a tensor counts the timesteps."""
        self.tensors[name] = replace(self.tensors[name], position=True)

    def aligned(self, name: str, back: int = 0) -> tuple[str, int]:
        """Return a timed tensor's answer for this timestep, or that of `back` timesteps before, and its delay.

        Raises:
            RefusedModelError: That answer needs timesteps to come.
        """
        tensor = self.tensors[name]
        if tensor.refused_as_answer is not None:
            raise tensor.refused_as_answer
        if not isinstance(tensor, PerStep) or tensor.offset is None:
            return tensor.step, 0
        ahead = self.facts.length_delta(name) - back - tensor.offset
        if ahead > 0:
            raise RefusedModelError(
                f"Tensor {name!r} looks {ahead} timestep(s) ahead; {tensor.looks_ahead_by or 'a node shifts it'}.",
                fix="Pad on the left alone (causal), no more than a convolution or a cut takes off again, and train "
                "the model that way.",
            )
        return self.delayed(name, -ahead), -ahead

    # ---------------------------------------------------------------- private

    def _may_be_square(self, node: onnx.NodeProto) -> bool:
        """Whether a node takes, or may give, what is measured between every two timesteps, or the last and every."""
        kinds = {type(self.tensors[name]) for name in uses(node)}
        if PerStep not in kinds or len(node.output) != 1:
            return Scores in kinds
        times = sum(dim.has_time for dim in self.facts.dims(node.output[0]))
        return times > 1 or not kinds.isdisjoint({Scores, AtEnd})

    def _may_be_refused(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether a rule decides itself what becomes of a tensor that cannot be stepped.

        It is the beginning of the sequence, which may be joined to the rest of it again, the mask of an attention, or
        samples padded by less than a timestep.
        """
        tensor = self.tensors[name]
        if node.op_type == "Attention":
            return name in node.input[3:4]
        if isinstance(tensor, PaddedSamples):
            return node.op_type == "Conv" and name == node.input[0]
        return node.op_type == "Concat" and isinstance(tensor, Beginning)

    def _is_known(self, node: onnx.NodeProto) -> bool:
        """Take over what follows from weights and sizes alone; nothing is emitted for it before it is used."""
        used = uses(node)
        sizes = node.op_type in {"Shape", "Size"} and self.facts.depends(node.output[0]).is_sized
        if sizes or self.from_sizes.issuperset(used):
            self.from_sizes |= set(node.output)
        outputs = [name for name in node.output if name]
        is_known = sizes or all(isinstance(self.tensors[name], Known) for name in used)
        if not is_known or not all(self.facts.same_over_time(name) for name in outputs):
            return False
        self.tensors.update(dict.fromkeys(outputs, Known()))
        return True

    def _is_by_position(self, node: onnx.NodeProto) -> bool:
        """Keep what has one value for each timestep of the declared length, whatever the inputs are.

        Nothing is emitted for it before it is used.
        """
        outputs = [name for name in node.output if name]
        kinds = {type(self.tensors[name]) for name in uses(node)}
        if self.length is None or not kinds <= {Known, ByPosition} or not self.from_sizes.issuperset(outputs):
            return False
        constant = {name for name in outputs if self.facts.same_over_time(name)}
        if not all(name in constant or is_by_position(self.facts, name) for name in outputs):
            return False
        self.tensors |= {name: Known() if name in constant else ByPosition() for name in outputs}
        return True
