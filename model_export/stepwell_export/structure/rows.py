"""Whether the rows of a batch depend on each other, read from a graph's operators; nothing is run.

Rows are streams of different users. One that reaches another's answer is a leak, and a run on some data shows it only
if the data happen to: a gain by the largest value of all rows shows once one row has an outlier. So every tensor is
followed from the inputs: its shape for two numbers of rows, the axis where it has its rows, folded with others or not,
and the numbers that follow from sizes. Each operator has a rule (`stepwell_export.structure.row_rules`), and each
tensor's shape has to grow with the number of rows as its rule has it. What comes out is one of three:

* `independent`: row r of every answer and state follows from row r of the inputs and states alone, by one function for
  all rows and all numbers of rows. NaN and infinity of another row cannot reach it either: nothing is multiplied by
  zero or added up across rows.
* `mixed`: a node makes something of several rows that reaches an answer or a state.
* `undecided`: a node on the way has no rule, or needs what only values show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import numpy_helper

from stepwell_export.graph.nodes import attributes, described, in_order, needed_nodes, read_opset
from stepwell_export.graph.onnx_file import without_functions
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.operator_scan import DOMAINS
from stepwell_export.runtime.random_ops import RANDOM
from stepwell_export.runtime.specs import shape_of_rows
from stepwell_export.structure.facts import (
    MOST_NUMBERS,
    TRIALS,
    Array,
    MixedError,
    RowFact,
    Rows,
    RowsVerdict,
    Shape,
    UndecidedError,
    computed,
    constant_fact,
)
from stepwell_export.structure.row_rules import RULES, SIZES, RowCall, filled

if TYPE_CHECKING:
    import onnx

_ROUNDS = 4  # of a loop's body, until the facts of what it carries stay as they are
_TIMESTEPS = 11  # of a chunk: any number that is not 1


@dataclass(frozen=True, slots=True)
class RowAnalysis:
    """What a graph's operators show of its rows.

    Attributes:
        verdict: Whether they depend on each other.
        facts: What is known of each of its tensors by name, those inside bodies not included.
    """

    verdict: RowsVerdict
    facts: Mapping[str, RowFact]


def rows_of_step(model: onnx.ModelProto, manifest: Manifest) -> RowAnalysis:
    """Return what a step graph, or a graph with a time axis for chunks, shows of its rows.

    Args:
        model: The graph; weights may lie beside the file.
        manifest: What it takes, carries and gives. What has no batch axis there makes the graph undecided.
    """
    past = {window.input: window for window in manifest.windows}
    given: dict[str, tuple[Shape, int | None]] = {}
    for spec in manifest.fed:
        row = list(spec.graph_row_shape)
        if spec.name in past:
            row[past[spec.name].axis] += past[spec.name].context
        if manifest.time.chunk == "dynamic":
            row.insert(spec.batch_axis or 0, _TIMESTEPS)
        given[spec.name] = tuple(row), spec.batch_axis
    given |= {state.input: (state.row_shape, state.batch_axis) for state in manifest.states}
    random = {output.name for output in manifest.outputs if output.kind == "random"}
    answers = {output.name: output.batch_axis for output in manifest.answered if output.name not in random}
    answers |= {state.output: state.batch_axis for state in manifest.states}
    constant = {name: spec.array() for name, spec in manifest.constants.items()}
    if none := [name for name, axis in {**{n: a for n, (_, a) in given.items()}, **answers}.items() if axis is None]:
        fault = RowsVerdict("undecided", f"Tensor {none[0]!r}", "has no axis for rows")
        return RowAnalysis(fault, {})
    return read_rows(model, given, answers, constant)


def read_rows(
    model: onnx.ModelProto,
    given: Mapping[str, tuple[Shape, int | None]],
    answers: Mapping[str, int | None],
    constant: Mapping[str, Any] | None = None,
) -> RowAnalysis:
    """Return what any graph shows of its rows.

    Args:
        model: The graph.
        given: The shape of one row without its batch axis, and the batch axis, of each input; None: it has no rows.
        answers: Outputs that count, with the axis where each has its rows; None: wherever it has them.
        constant: The values of inputs that never change.
    """
    model = without_functions(model)
    walk = _Walk(model)
    types = {value.name: value.type.tensor_type for value in model.graph.input}
    facts: dict[str, RowFact] = {}
    for name, (row, axis) in given.items():
        shapes = tuple(shape_of_rows(row, axis, rows) for rows in TRIALS)
        kind = types[name].elem_type if name in types else 0
        facts[name] = RowFact(kind, (shapes[0], shapes[1]), None if axis is None else Rows(axis))
    for name, value in (constant or {}).items():
        facts[name] = constant_fact(types[name].elem_type if name in types else 0, np.asarray(value))
    facts = walk.graph(model.graph, facts, needed=list(answers))
    return RowAnalysis(_verdict(facts, answers), facts)


def rows_of_node(
    node: onnx.NodeProto,
    values: Mapping[str, Any],
    axes: Mapping[str, int | None],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> RowsVerdict:
    """Return whether the rows of what one node gives depend on each other.

    Args:
        node: The node.
        values: What it takes, by tensor.
        axes: The axis of the rows of each; None: it has none.
        opsets: The versions of the operators.
    """
    given: dict[str, tuple[Shape, int | None]] = {
        name: (value.shape[:axis] + value.shape[axis + 1 :], axis)
        for name, value in values.items()
        if (axis := axes[name]) is not None
    }
    constant = {name: value for name, value in values.items() if axes[name] is None}
    takes = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in values.items()
    ]
    gives = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "node", takes, gives)
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    return read_rows(model, given, {value.name: None for value in gives}, constant).verdict


def _verdict(facts: Mapping[str, RowFact], answers: Mapping[str, int | None]) -> RowsVerdict:
    """Return the verdict over all answers; one that is mixed comes before one that is not decided."""
    faults: list[RowsVerdict] = []
    for name, axis in answers.items():
        fact = facts.get(name, RowFact())
        if fact.fault is not None:
            faults.append(fact.fault)
        elif axis is None:
            continue
        elif fact.rows is None or fact.is_count:
            faults.append(RowsVerdict("undecided", f"Tensor {name!r}", "is the same for all rows, or follows from how "
                                      "many there are"))  # fmt: skip
        elif fact.rows.axis != axis or fact.rows.before != 1:
            faults.append(RowsVerdict("undecided", f"Tensor {name!r}", f"does not have its rows on axis {axis}"))
    faults.sort(key=lambda verdict: verdict.outcome != "mixed")
    return faults[0] if faults else RowsVerdict("independent")


@dataclass(slots=True)
class _Walk:
    """One pass over a graph and its bodies."""

    model: onnx.ModelProto

    def graph(
        self, graph: onnx.GraphProto, outer: Mapping[str, RowFact], needed: Sequence[str] | None = None
    ) -> dict[str, RowFact]:
        """Return the facts of a graph's tensors, with those of the graphs around it."""
        facts = dict(outer)
        for tensor in graph.initializer:
            if tensor.name not in facts:
                facts[tensor.name] = _of_tensor(tensor)
        nodes = in_order(graph.node)
        for node in nodes if needed is None else needed_nodes(nodes, needed):
            facts.update(zip(node.output, self.node(node, facts), strict=True))
        return facts

    def node(self, node: onnx.NodeProto, facts: Mapping[str, RowFact]) -> list[RowFact]:
        """Return the facts of what a node gives."""
        try:
            if node.op_type in _SPECIAL:
                return _SPECIAL[node.op_type](self, node, facts)
            if missing := [name for name in node.input if name and name not in facts]:
                raise UndecidedError(f"takes {missing[0]!r}, which nothing describes")
            return self._operator(node, [facts[name] if name else None for name in node.input])
        except (MixedError, UndecidedError) as exc:
            return [RowFact(fault=_fault(node, exc))] * len(node.output)

    def _operator(self, node: onnx.NodeProto, given: Sequence[RowFact | None]) -> list[RowFact]:
        attrs = _attributes(node)
        if node.op_type == "Constant":
            return [_of_constant(node, attrs)]
        if any(fact is not None and fact.parts is not None for fact in given):
            raise UndecidedError("takes a sequence of tensors")
        if node.domain not in DOMAINS and any(fact is not None and fact.rows is not None for fact in given):
            raise UndecidedError(f"is an operator of {node.domain}, whose rows are not known")
        is_known = self._has_schema(node) and all(fact is None or fact.shapes is not None for fact in given)
        types = self._inferred(node, given) if is_known else {}
        made = [types.get(name, (0, None)) for name in node.output]
        if node.op_type in {"Shape", "Size"} and given[0] is not None and given[0].shapes is not None:
            part = slice(attrs.get("start", 0), attrs.get("end"))
            pair = [np.asarray(shape, np.int64)[part] for shape in given[0].shapes]
            first, other = pair if node.op_type == "Shape" else [np.asarray(sizes.prod()) for sizes in pair]
            return [_valued(onnx.TensorProto.INT64, first, other, np.asarray(first != other))]
        if (fault := next((fact.fault for fact in _faulted(given)), None)) is not None:
            return [RowFact(kind, shapes, fault=fault) for kind, shapes in made]
        call = RowCall(node.op_type, attrs, given, [shapes for _, shapes in made], self._opset(node.domain))
        try:
            if any(fact is not None and fact.rows is not None for fact in given):
                return self._with_rows(call, made)
            return self._without_rows(node, call, made)
        except (MixedError, UndecidedError) as exc:  # its shape may be asked for all the same
            fault = _fault(node, exc)
            return [RowFact(kind, shapes, fault=fault) for kind, shapes in made]

    def _with_rows(self, call: RowCall, made: Sequence[tuple[int, Any]]) -> list[RowFact]:
        sizes = SIZES.get(call.kind, frozenset())
        for place, fact in enumerate(call.given):
            if fact is not None and fact.rows is None and fact.is_count and place not in sizes:
                raise UndecidedError("computes with the number of rows")
        rule = RULES.get(call.kind)
        if rule is None:
            raise UndecidedError("is an operator whose rows are not known")
        outputs = rule(call)
        places = outputs if isinstance(outputs, list) else [outputs] * len(made)
        facts = []
        for rows, (kind, shapes) in zip(places, made, strict=True):
            if shapes is not None and not _grows_by(shapes, rows):
                raise UndecidedError(f"gives a tensor of shape {list(shapes[0])} for {TRIALS[0]} rows")
            facts.append(RowFact(kind, shapes, rows))
        return facts

    def _without_rows(self, node: onnx.NodeProto, call: RowCall, made: Sequence[tuple[int, Any]]) -> list[RowFact]:
        given = call.given
        valued = [None if fact is None else fact.values for fact in given]
        is_small = all(shapes is None or max(map(math.prod, shapes)) <= MOST_NUMBERS for _, shapes in made)
        if is_small and all(fact is None or fact.values is not None for fact in given) and any(valued):
            marks = [None if fact is None else fact.counts for fact in given]
            values = computed(node, call.opset, valued, marks)
            if values is not None and len(values) == len(made):
                return [
                    _valued(kind, first, other, mark)
                    for (kind, _), ((first, other), mark) in zip(made, values, strict=True)
                ]
        facts = []
        sizes = SIZES.get(call.kind, frozenset())
        data = [fact for place, fact in enumerate(given) if fact is not None and place not in sizes]
        count = any(fact.is_count for fact in data)
        for kind, shapes in made:
            if shapes is None and any(fact is not None and fact.is_count for fact in given):
                raise UndecidedError("makes something that follows from the number of rows")
            if shapes is not None and shapes[0] != shapes[1] and (node.op_type in RANDOM or count):
                raise UndecidedError("makes something that follows from the number of rows")
            before = given[0].shapes if given and given[0] is not None and call.kind != "ConstantOfShape" else None
            rows = None if shapes is None else filled(call.kind, shapes, before)
            facts.append(RowFact(kind, shapes, rows, is_count=count and rows is None))
        return facts

    # ---------------------------------------------------------------- types

    def _inferred(
        self, node: onnx.NodeProto, given: Sequence[RowFact | None]
    ) -> dict[str, tuple[int, tuple[Shape, Shape] | None]]:
        """Return the element type and the shapes of what a node gives, as the onnx package infers them.

        What a file declares does not count: it may declare anything.
        """
        trials = []
        for trial in range(2):
            types, data = {}, {}
            for name, fact in zip(node.input, given, strict=True):
                if fact is not None and fact.shapes is not None:
                    types[name] = onnx.helper.make_tensor_type_proto(fact.kind or 1, fact.shapes[trial])
                    if fact.values is not None:
                        value = fact.values[trial]
                        kind = onnx.helper.tensor_dtype_to_np_dtype(fact.kind) if fact.kind else value.dtype
                        data[name] = numpy_helper.from_array(np.array(value, kind, order="C"), name)
            try:
                made = onnx.shape_inference.infer_node_outputs(
                    self._schema(node), node, types, data, None, list(self.model.opset_import), self.model.ir_version
                )
            except Exception as exc:
                if any(fact is not None and fact.rows is not None for fact in given):
                    raise UndecidedError(f"takes no {TRIALS[trial]} rows") from exc
                return {}
            trials.append(made)
        return {
            name: (type_.tensor_type.elem_type, _both(type_, trials[1][name]))
            for name, type_ in trials[0].items()
            if name in trials[1] and type_.HasField("tensor_type")
        }

    def _opset(self, domain: str) -> int:
        if domain in {"", "ai.onnx"}:
            return read_opset(self.model)
        return next((int(imported.version) for imported in self.model.opset_import if imported.domain == domain), 1)

    def _has_schema(self, node: onnx.NodeProto) -> bool:
        domain = "" if node.domain == "ai.onnx" else node.domain
        return bool(onnx.defs.has(node.op_type, self._opset(domain), domain))

    def _schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema:
        domain = "" if node.domain == "ai.onnx" else node.domain
        return onnx.defs.get_schema(node.op_type, self._opset(domain), domain)

    # ---------------------------------------------------------------- sequences of tensors

    def sequence(self, node: onnx.NodeProto, facts: Mapping[str, RowFact]) -> list[RowFact]:
        """Return the facts of what a node makes of or with a sequence of tensors, whose length has to be known."""
        given = [facts.get(name, RowFact()) if name else None for name in node.input]
        if (fault := next((fact.fault for fact in _faulted(given)), None)) is not None:
            return [RowFact(fault=fault)]
        if node.op_type == "SequenceEmpty":
            return [RowFact(parts=())]
        if given[0] is None or given[0].parts is None:
            raise UndecidedError("takes a sequence of tensors whose length is not known")
        parts = given[0].parts
        if node.op_type == "ConcatFromSequence":
            return [self._concatenated(node, parts, _attributes(node))]
        added, place = given[1], len(parts)
        assert added is not None
        if (fact := given[2] if len(given) > 2 else None) is not None:
            if fact.values is None or fact.is_count:
                raise UndecidedError("takes a place in a sequence of tensors that is not known")
            place = int(fact.values[0].reshape(-1)[0])
        return [RowFact(parts=(*parts[:place], added, *parts[place:]))]

    def _concatenated(self, node: onnx.NodeProto, parts: Sequence[RowFact], attrs: Mapping[str, Any]) -> RowFact:
        if attrs.get("new_axis"):
            axes = constant_fact(onnx.TensorProto.INT64, np.asarray([attrs["axis"]]))
            put = onnx.helper.make_node("Unsqueeze", ["data", "axes"], ["made"], name=node.name)
            parts = [self._operator(put, [part, axes])[0] for part in parts]
        names = [f"part_{place}" for place in range(len(parts))]
        join = onnx.helper.make_node("Concat", names, ["made"], name=node.name, axis=attrs["axis"])
        return self._operator(join, parts)[0]

    # ---------------------------------------------------------------- bodies

    def branches(self, node: onnx.NodeProto, facts: Mapping[str, RowFact]) -> list[RowFact]:
        """Return the facts of an If: of the branch that is known, or of both."""
        condition = facts.get(node.input[0], RowFact())
        if condition.fault is not None:
            return [RowFact(fault=condition.fault)] * len(node.output)
        if condition.rows is not None:
            raise UndecidedError("decides by the value of a row")
        if condition.is_count:
            raise UndecidedError("decides by the number of rows")
        names = ["then_branch", "else_branch"]
        if condition.values is not None:
            names = names[:1] if bool(condition.values[0].reshape(-1)[0]) else names[1:]
        outputs = [self.body(node, name, facts) for name in names]
        return outputs[0] if len(outputs) == 1 else [_joined(*pair) for pair in zip(*outputs, strict=True)]

    def body(
        self, node: onnx.NodeProto, name: str, facts: Mapping[str, RowFact], given: Sequence[RowFact] = ()
    ) -> list[RowFact]:
        """Return the facts of what a node's body gives.

        Args:
            node: The node.
            name: The body's attribute.
            facts: Of the tensors around the node.
            given: Of the body's inputs.
        """
        [body] = [attribute.g for attribute in node.attribute if attribute.name == name]
        taken = dict(zip((value.name for value in body.input), given, strict=True))
        inside = self.graph(body, {**facts, **taken}, [value.name for value in body.output])
        return [inside.get(value.name, RowFact()) for value in body.output]

    def loop(self, node: onnx.NodeProto, facts: Mapping[str, RowFact]) -> list[RowFact]:
        """Return the facts of a Loop."""
        for name in filter(None, node.input[:2]):
            fact = facts.get(name, RowFact())
            if fact.fault is not None:
                return [RowFact(fault=fact.fault)] * len(node.output)
            if fact.rows is not None:
                raise UndecidedError("turns as often as the value of a row has it")
            if fact.is_count:
                raise UndecidedError("turns as often as there are rows")
        carried = [_varying(facts.get(name, RowFact())) for name in node.input[2:]]
        count = RowFact(onnx.TensorProto.INT64, ((), ()))
        condition = RowFact(onnx.TensorProto.BOOL, ((), ()))

        def turn(now: Sequence[RowFact]) -> list[RowFact]:
            return self.body(node, "body", facts, [count, condition, *now])

        condition_out, *outputs = self._settled(carried, turn, skipped=1)
        if condition_out.fault is not None:
            return [RowFact(fault=condition_out.fault)] * len(node.output)
        if condition_out.rows is not None or condition_out.is_count:
            raise UndecidedError("goes on by the value of a row, or their number")
        kept = len(carried)
        return [*outputs[:kept], *(_stacked(fact, 0) for fact in outputs[kept:])]

    def scan(self, node: onnx.NodeProto, facts: Mapping[str, RowFact]) -> list[RowFact]:
        """Return the facts of a Scan."""
        attrs = _attributes(node)
        if self._opset("") < 9:
            raise UndecidedError("is a Scan of opset 8")
        count = int(attrs["num_scan_inputs"])
        kept = len(node.input) - count
        axes = list(attrs.get("scan_input_axes") or [0] * count)
        carried = [_varying(facts.get(name, RowFact())) for name in node.input[:kept]]
        slices = [
            _cut(facts.get(name, RowFact()), int(axis)) for name, axis in zip(node.input[kept:], axes, strict=True)
        ]

        def turn(now: Sequence[RowFact]) -> list[RowFact]:
            return self.body(node, "body", facts, [*now, *slices])

        outputs = self._settled(carried, turn)
        made = list(attrs.get("scan_output_axes") or [0] * (len(node.output) - kept))
        steps = _length(facts.get(node.input[kept], RowFact()), int(axes[0]))
        return [
            *outputs[:kept],
            *(_stacked(fact, int(axis), steps) for fact, axis in zip(outputs[kept:], made, strict=True)),
        ]

    def _settled(self, carried: list[RowFact], turn: Any, skipped: int = 0) -> list[RowFact]:
        """Return what a body gives once the facts of what it carries stay as they are."""
        for _ in range(_ROUNDS):
            outputs: list[RowFact] = turn(carried)
            after = [_joined(before, _varying(fact)) for before, fact in zip(carried, outputs[skipped:], strict=False)]
            if after == carried:
                return [*outputs[:skipped], *after, *outputs[skipped + len(carried) :]]
            carried = after
        raise UndecidedError("carries something whose rows are elsewhere from turn to turn")


_SPECIAL = {
    "If": _Walk.branches,
    "Loop": _Walk.loop,
    "Scan": _Walk.scan,
    **dict.fromkeys(("ConcatFromSequence", "SequenceEmpty", "SequenceInsert"), _Walk.sequence),
}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    lean = onnx.NodeProto(op_type=node.op_type)
    lean.attribute.extend(attribute for attribute in node.attribute if not attribute.HasField("g"))
    return attributes(lean)


def _valued(kind: int, first: Array, other: Array, counts: Array) -> RowFact:
    kind = kind or onnx.helper.np_dtype_to_tensor_dtype(first.dtype)
    shapes = first.shape, other.shape
    return RowFact(kind, shapes, values=(first, other), counts=counts, is_count=bool(counts.any()))


def _of_tensor(tensor: onnx.TensorProto) -> RowFact:
    shape = tuple(tensor.dims)
    if int(np.prod(shape, dtype=np.int64)) > MOST_NUMBERS or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return RowFact(tensor.data_type, (shape, shape))
    return constant_fact(tensor.data_type, numpy_helper.to_array(tensor))


def _of_constant(node: onnx.NodeProto, attrs: Mapping[str, Any]) -> RowFact:
    if isinstance(tensor := attrs.get("value"), onnx.TensorProto):
        return _of_tensor(tensor)
    kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    for name, dtype in kinds.items():
        if name in attrs:
            value = np.asarray(attrs[name], dtype)
            return constant_fact(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value)
    return RowFact()


def _fault(node: onnx.NodeProto, exc: MixedError | UndecidedError) -> RowsVerdict:
    return RowsVerdict("mixed" if isinstance(exc, MixedError) else "undecided", described(node), str(exc))


def _faulted(given: Sequence[RowFact | None]) -> list[RowFact]:
    """Return the inputs that have a fault, those that are mixed first."""
    faulted = [fact for fact in given if fact is not None and fact.fault is not None]
    return sorted(faulted, key=lambda fact: fact.fault is not None and fact.fault.outcome != "mixed")


def _both(first: onnx.TypeProto, other: onnx.TypeProto) -> tuple[Shape, Shape] | None:
    shapes = []
    for tensor_type in (first.tensor_type, other.tensor_type):
        if not tensor_type.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor_type.shape.dim):
            return None
        shapes.append(tuple(dim.dim_value for dim in tensor_type.shape.dim))
    return shapes[0], shapes[1]


def _grows_by(shapes: tuple[Shape, Shape], rows: Rows | None) -> bool:
    """Whether shapes grow with the number of rows on the axis of the rows, as that has it, and on no other."""
    if len(shapes[0]) != len(shapes[1]) or (rows is not None and rows.axis >= len(shapes[0])):
        return False
    for axis, pair in enumerate(zip(*shapes, strict=True)):
        if rows is not None and axis == rows.axis:
            if pair != (rows.size(TRIALS[0]), rows.size(TRIALS[1])):
                return False
        elif pair[0] != pair[1]:
            return False
    return True


def _varying(fact: RowFact) -> RowFact:
    """Return the fact of a tensor that has another value in each turn of a loop."""
    return replace(fact, values=None, counts=None)


def _joined(first: RowFact, other: RowFact) -> RowFact:
    """Return what holds for a tensor that is one of two."""
    fault = next((fact.fault for fact in _faulted([first, other])), None)
    if fault is not None:
        return RowFact(first.kind, fault=fault)
    if first.rows is not None and other.rows is not None and first.rows != other.rows:
        raise UndecidedError("gives rows that are not always at one place")
    shapes = first.shapes if first.shapes == other.shapes else None
    return RowFact(
        first.kind or other.kind, shapes, first.rows or other.rows, is_count=first.is_count or other.is_count
    )


def _cut(fact: RowFact, axis: int) -> RowFact:
    """Return the fact of one slice of a tensor along an axis."""
    if fact.fault is not None:
        return fact
    axis %= fact.rank
    if fact.rows is not None and fact.rows.axis == axis:
        raise MixedError("runs over the rows of the batch")
    shapes = tuple((*shape[:axis], *shape[axis + 1 :]) for shape in fact.known_shapes)
    rows = fact.rows and replace(fact.rows, axis=fact.rows.axis - (axis < fact.rows.axis))
    return RowFact(fact.kind, (shapes[0], shapes[1]), rows, is_count=fact.is_count)


def _length(fact: RowFact, axis: int) -> int | None:
    return None if fact.shapes is None else fact.shapes[0][axis]


def _stacked(fact: RowFact, axis: int, steps: int | None = None) -> RowFact:
    """Return the fact of so many slices that are joined along a new axis; None: their number is not known."""
    if fact.fault is not None or fact.shapes is None:
        return replace(fact, shapes=None, values=None, counts=None)
    axis %= fact.rank + 1
    rows = fact.rows and replace(fact.rows, axis=fact.rows.axis + (axis <= fact.rows.axis))
    shapes = None
    if steps is not None:
        first, other = ((*shape[:axis], steps, *shape[axis:]) for shape in fact.shapes)
        shapes = first, other
    return RowFact(fact.kind, shapes, rows, is_count=fact.is_count)


# ---------------------------------------------------------------- what becomes of a graph

ROWS_DEPEND = "The rows of a batch depend on each other"
ROWS_FIX = (
    "What one stream is answered would depend on who is served with it. Let each row follow from itself alone: reduce, "
    "normalise and sort over other axes than that of the batch."
)


def mixed_rows(verdict: RowsVerdict) -> RefusedModelError:
    """Return the error for a graph whose rows depend on each other."""
    return RefusedModelError(f"{ROWS_DEPEND}: {verdict.why}.", fix=ROWS_FIX, layer=verdict.node)


def with_rows_judged(manifest: Manifest, verdict: RowsVerdict) -> Manifest:
    """Return a step graph's manifest, with one row a run where the operators do not show that rows are independent.

    Raises:
        RefusedModelError: They show that a row depends on others, of a graph that would run several; names the node.
    """
    if verdict.outcome == "independent":
        return manifest
    if verdict.outcome == "mixed" and manifest.batch.mode == "stack":
        raise mixed_rows(verdict)
    return manifest.model_copy(update={"batch": manifest.batch.single(verdict.why)})
