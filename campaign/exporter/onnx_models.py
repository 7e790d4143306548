"""Generated models as ONNX graphs: over sequences, with Scan, Loop and If; and step graphs to adopt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from campaign.exporter.built import Array, Built, weight
from campaign.exporter.cases import CHUNKED, KEEP_WIDTH, Case
from campaign.exporter.ops import Setting, Tensor
from campaign.exporter.rare import CELLS, SEQUENCE, STEPWISE
from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import UnclearModelError, WeakProofError

VOCABULARY = 50
_OPSET = 17
_FLOAT, _INT = TensorProto.FLOAT, TensorProto.INT64


class Graph:
    """`SequenceOps` that write nodes; a tensor is its name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.count_of_names = 0

    def name(self) -> str:
        """Return a name that is not used yet."""
        self.count_of_names += 1
        return f"t{self.count_of_names}"

    def constant(self, value: Array) -> str:
        """Return a constant tensor."""
        name = self.name()
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """Return a vector of int64."""
        return self.constant(np.array(values, np.int64))

    def node(self, operator: str, *inputs: Tensor, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node and return its output, or all of them; a number among the inputs becomes a constant."""
        given = [value if isinstance(value, str) else self.constant(np.array(value, np.float32)) for value in inputs]
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, given, names, **attributes))
        return names[0] if outputs == 1 else names

    @contextmanager
    def inside(self) -> Iterator[list[Any]]:
        """Write nodes into the list of a subgraph instead."""
        outside, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outside

    # ------------------------------------------------------------ elementwise

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Add", a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Sub", a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Mul", a, b)

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Div", a, b)

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Max", a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Min", a, b)

    def mod(self, a: Tensor, b: Tensor) -> Tensor:
        return self.sub(a, self.mul(self.floor(self.div(a, b)), b))

    def greater(self, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Cast", self.node("Greater", a, b), to=_FLOAT)

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.node("Where", self.node("Greater", condition, 0.5), a, b)

    def abs(self, a: Tensor) -> Tensor:
        return self.node("Abs", a)

    def exp(self, a: Tensor) -> Tensor:
        return self.node("Exp", a)

    def log(self, a: Tensor) -> Tensor:
        return self.node("Log", a)

    def sqrt(self, a: Tensor) -> Tensor:
        return self.node("Sqrt", a)

    def tanh(self, a: Tensor) -> Tensor:
        return self.node("Tanh", a)

    def floor(self, a: Tensor) -> Tensor:
        return self.node("Floor", a)

    def round(self, a: Tensor) -> Tensor:
        return self.node("Round", a)

    def sign(self, a: Tensor) -> Tensor:
        return self.node("Sign", a)

    def relu(self, a: Tensor) -> Tensor:
        return self.node("Relu", a)

    def clip(self, a: Tensor, low: float, high: float) -> Tensor:
        return self.node("Clip", a, low, high)

    def log1p(self, a: Tensor) -> Tensor:
        return self.log(self.add(a, 1.0))

    def expm1(self, a: Tensor) -> Tensor:
        return self.sub(self.exp(a), 1.0)

    def tail(self, a: Tensor) -> Tensor:
        return self.sub(1.0, self.node("Erf", a))

    def floor_quotient(self, a: Tensor, b: float) -> Tensor:
        return self.floor(self.div(a, b))

    def first(self, a: Tensor) -> Tensor:
        return self.node("Slice", a, self.ints(0), self.ints(1), self.ints(1))

    def how_many(self, a: Tensor, limit: float) -> Tensor:
        chosen = self.node("Compress", self.node("Reshape", a, self.ints(-1)), self.node(
            "Reshape", self.node("Greater", a, limit), self.ints(-1)), axis=0)  # fmt: skip
        return self.node("Cast", self.node("Size", chosen), to=_FLOAT)

    def feature_max(self, a: Tensor) -> Tensor:
        return self.node("ReduceMax", a, axes=[-1], keepdims=1)

    def largest_place(self, a: Tensor) -> Tensor:
        width = self.node("Gather", self.node("Shape", a), self.ints(-1), axis=0)
        off_on = self.constant(np.array([0, 1], np.float32))
        return self.node("OneHot", self.node("ArgMax", a, axis=-1, keepdims=0), width, off_on, axis=-1)

    # ------------------------------------------------------------ along time and rows

    def running_max(self, a: Tensor) -> Tensor:
        return self.scan(a, lambda x, state: (self.maximum(x, state),) * 2)[0]

    def running_sum(self, a: Tensor) -> Tensor:
        return self.node("CumSum", a, self.constant(np.array(1, np.int64)))

    def late(self, a: Tensor, steps: int) -> Tensor:
        padded = self.node("Pad", a, self.ints(0, steps, 0, 0, 0, 0))
        return self.node("Slice", padded, self.ints(0), self.ints(-steps), self.ints(1))

    def early(self, a: Tensor, steps: int) -> Tensor:
        padded = self.node("Pad", a, self.ints(0, 0, 0, 0, steps, 0))
        return self.node("Slice", padded, self.ints(steps), self.ints(2**40), self.ints(1))

    def count(self, a: Tensor) -> Tensor:
        first = self.node("Slice", a, self.ints(0), self.ints(1), self.ints(2))
        ones = self.node("ConstantOfShape", self.node("Shape", first),
                         value=helper.make_tensor("one", _FLOAT, [1], [1.0]))  # fmt: skip
        return self.running_sum(ones)

    def time_max(self, a: Tensor) -> Tensor:
        return self.node("ReduceMax", a, axes=[1], keepdims=1)

    def time_mean(self, a: Tensor) -> Tensor:
        return self.node("ReduceMean", a, axes=[1], keepdims=1)

    def row_max(self, a: Tensor) -> Tensor:
        return self.node("ReduceMax", a, axes=[0], keepdims=1)

    def decaying_attention(self, a: Tensor, decay: float) -> Tensor:
        place = self.count(a)
        across = self.node("Transpose", place, perm=[0, 2, 1])
        distance = self.sub(place, across)
        scores = self.node("MatMul", a, self.node("Transpose", a, perm=[0, 2, 1]))
        width = self.node("Cast", self.node("Gather", self.node("Shape", a), self.ints(2), axis=0), to=_FLOAT)
        fading = self.sub(self.div(scores, self.sqrt(width)), self.mul(distance, decay))
        is_ahead = self.node("Greater", 0.0, distance)
        masked = self.node("Where", is_ahead, -math.inf, fading)
        return self.node("MatMul", self.node("Softmax", masked, axis=-1), a)

    def if_longer(self, a: Tensor, at: Setting, then: Callable[[Tensor], Tensor]) -> Tensor:
        length = self.node("Gather", self.node("Shape", a), self.constant(np.array(1, np.int64)), axis=0)
        return self._branch(self.node("Greater", length, self.constant(np.array(at.period, np.int64))), a, then)

    def if_above(self, a: Tensor, limit: float, how: int, then: Callable[[Tensor], Tensor]) -> Tensor:
        ways: Sequence[Callable[[], str]] = (
            lambda: self.node("Greater", self.node("ReduceMax", a, keepdims=0), limit),
            lambda: self.node(
                "Greater",
                self.node("Size", self.node("NonZero", self.node("Greater", a, limit))),
                self.constant(np.array(0, np.int64)),
            ),
            lambda: self.node("Greater", self.node("ReduceSum", self.greater(a, limit), keepdims=0), 0.5),
        )
        return self._branch(ways[how % len(ways)](), a, then)

    def _branch(self, condition: str, a: Tensor, then: Callable[[Tensor], Tensor]) -> str:
        graphs = []
        for make in (then, lambda value: self.node("Identity", value)):
            with self.inside() as nodes:
                end = make(a)
            graphs.append(helper.make_graph(nodes, f"branch_{end}", [], [_value(end, _FLOAT, None)]))
        return str(self.node("If", condition, then_branch=graphs[0], else_branch=graphs[1]))

    def scan(
        self,
        a: Tensor,
        step: Callable[[str, str], tuple[str, str]],
        *,
        start: str | None = None,
        as_loop: bool = False,
    ) -> tuple[str, str]:
        """Return the answers of a recurrence, and its last state; it starts from zeros if nothing else is given."""
        shape = self.node("Shape", a)
        if start is None:
            start = self.node("ConstantOfShape", self.node("Gather", shape, self.ints(0, 2), axis=0))
        return self._loop(a, shape, start, step) if as_loop else self._scan(a, start, step)

    def _scan(self, a: Tensor, start: str, step: Callable[[str, str], tuple[str, str]]) -> tuple[str, str]:
        state, x = self.name(), self.name()
        with self.inside() as nodes:
            answer, after = (self.node("Identity", name) for name in step(x, state))
        body = helper.make_graph(
            nodes, f"body_{answer}", [_value(state, _FLOAT, None), _value(x, _FLOAT, None)],
            [_value(after, _FLOAT, None), _value(answer, _FLOAT, None)],
        )  # fmt: skip
        last, answers = self.node(
            "Scan", start, a, outputs=2, body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1]
        )
        return answers, last

    def _loop(self, a: Tensor, shape: str, start: str, step: Callable[[str, str], tuple[str, str]]) -> tuple[str, str]:
        length = self.node("Gather", shape, self.constant(np.array(1, np.int64)), axis=0)
        at, keep, state = self.name(), self.name(), self.name()
        with self.inside() as nodes:
            x = self.node("Gather", a, at, axis=1)
            answer, after = (self.node("Identity", name) for name in step(x, state))
            going = self.node("Identity", keep)
        body = helper.make_graph(
            nodes, f"body_{answer}",
            [_value(at, _INT, []), _value(keep, TensorProto.BOOL, []), _value(state, _FLOAT, None)],
            [_value(going, TensorProto.BOOL, []), _value(after, _FLOAT, None), _value(answer, _FLOAT, None)],
        )  # fmt: skip
        true = self.constant(np.array(True))
        last, answers = self.node("Loop", length, true, start, outputs=2, body=body)
        return self.node("Transpose", answers, perm=[1, 0, 2]), last

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        """Return the ONNX file."""
        graph = helper.make_graph(self.nodes, "generated", list(inputs), list(outputs), self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def _value(name: str, kind: int, shape: Sequence[int | str] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def build(case: Case) -> Built:
    """Return an ONNX graph."""
    return _step_graph(case) if case.front_end == "adopt" else _sequence_graph(case)


# ---------------------------------------------------------------- over sequences


def _sequence_graph(case: Case) -> Built:
    rng = np.random.default_rng([case.seed, case.index, 2])
    graph, units, width = Graph(), case.units, case.features
    x = "x"
    if case.rare == "ids modulo":
        x = graph.node("Mod", x, graph.constant(np.array(VOCABULARY, np.int64)))
    elif case.rare == "ids divided":
        x = graph.node("Div", x, graph.constant(np.array(1000, np.int64)))
        x = graph.node("Mod", x, graph.constant(np.array(VOCABULARY, np.int64)))
    if case.takes_ids:
        x, width = graph.node("Gather", graph.constant(weight(rng, VOCABULARY, units)), x, axis=0), units
    part = SEQUENCE.get(case.rare) or STEPWISE.get(case.rare)
    if part is not None and case.place == "before":
        x = part(graph, x, case.setting)
    start, start_width = x, width
    for name in [*([case.rare] if case.place == "inside" else []), *case.blocks]:
        if name in CELLS:
            x, _ = _recurrence(graph, x, case, name)
        elif name != "embedding":
            x = _layer(graph, rng, name, x, (width, units))
            width = width if name in KEEP_WIDTH else units
    y = _dense(graph, rng, x, width, 2)
    if part is not None and case.place == "behind":
        y = part(graph, graph.add(y, _dense(graph, rng, start, start_width, 2)), case.setting)
    if case.head == "last":
        y = graph.node("Gather", y, graph.constant(np.array(-1, np.int64)), axis=1)
    elif case.head == "recent":
        y = graph.node("Slice", y, graph.ints(-case.setting.period), graph.ints(2**40), graph.ints(1))
    if case.head in ("mean", "recent"):
        y = graph.node("ReduceMean", y, axes=[1], keepdims=0)
    graph.nodes.append(helper.make_node("Identity", [y], ["y"]))
    given = _value("x", _INT, ["batch", "time"]) if case.takes_ids else _value(
        "x", _FLOAT, ["batch", "time", case.features])  # fmt: skip
    answer = _value("y", _FLOAT, ["batch", "time", 2] if case.head == "each" else ["batch", 2])
    content = graph.model([given], [answer])
    session = ort.InferenceSession(content)

    def export(path: Path) -> bool:
        source = path.with_name("source.onnx")
        source.write_bytes(content)
        try:
            try:
                export_source(str(source), path)
            except UnclearModelError:  # nothing in the graph shows where time is
                export_source(str(source), path, time_axes={"x": 1}, batch_axes={"x": 0})
        except WeakProofError:
            return True
        return False

    def run(values: Array) -> Array:
        answer: Array = session.run(None, {"x": values})[0]
        return answer

    return Built(run, export)


def _recurrence(graph: Graph, x: str, case: Case, name: str, start: str | None = None) -> tuple[str, str]:
    def step(now: str, state: str) -> tuple[str, str]:
        answer, after = CELLS[name].step(graph, now, state, case.setting)
        return answer, after

    return graph.scan(x, step, start=start, as_loop=case.setting.how % 2 == 1)


def _dense(graph: Graph, rng: np.random.Generator, x: str, width: int, units: int) -> str:
    return str(graph.add(graph.node("MatMul", x, graph.constant(weight(rng, width, units))),
                         graph.constant(weight(rng, units))))  # fmt: skip


def _layer(graph: Graph, rng: np.random.Generator, name: str, x: str, sizes: tuple[int, int]) -> str:
    width, units = sizes
    if name == "dense":
        return _dense(graph, rng, x, width, units)
    if name == "relu":
        return str(graph.relu(x))
    if name == "norm":
        scale, bias = (graph.constant(np.full(width, value, np.float32)) for value in (1, 0))
        return str(graph.node("LayerNormalization", x, scale, bias, axis=-1))
    if name == "conv":
        padded = graph.node("Pad", graph.node("Transpose", x, perm=[0, 2, 1]), graph.ints(0, 0, 2, 0, 0, 0))
        found = graph.node("Conv", padded, graph.constant(weight(rng, units, width, 3)))
        return str(graph.node("Transpose", found, perm=[0, 2, 1]))
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[name]
    weights = [graph.constant(weight(rng, 1, gates * units, size)) for size in (width, units)]
    weights.append(graph.constant(weight(rng, 1, 2 * gates * units)))
    first = graph.node("Transpose", x, perm=[1, 0, 2])
    found = graph.node(name.upper(), first, *weights, hidden_size=units)
    return str(graph.node("Transpose", graph.node("Squeeze", found, graph.ints(1)), perm=[1, 0, 2]))


# ---------------------------------------------------------------- to adopt

_NAMES: Sequence[Callable[[int, int], tuple[str, str]]] = (
    lambda k, _: (f"h{k}", f"h{k}_next"),
    lambda k, _: (f"cache_in_{k}", f"cache_out_{k}"),
    lambda k, n: (f"state_{k}", f"state_out_{k + 1}"),
    lambda k, n: ("abcdefgh"[k], "pqrstuvw"[n - 1 - k]),
    lambda k, _: ("abcdefgh"[k], "pqrstuvw"[k]),
)
"""Ways to name states and their next values; the first two show what belongs together."""


def _step_graph(case: Case) -> Built:
    """Return a graph that takes and returns its states: for one timestep, or for a chunk of any length."""
    rng = np.random.default_rng([case.seed, case.index, 2])
    graph, width = Graph(), case.features
    is_chunk = case.rare in CHUNKED or (not case.rare and bool(rng.random() < 0.3))
    cells = [*([case.rare] if case.place == "inside" else []), *case.blocks]
    part = SEQUENCE.get(case.rare) or STEPWISE.get(case.rare)
    taps = 0 if not case.rare or is_chunk else int(rng.integers(0, 3))
    count = len(cells) + taps
    names = _NAMES[int(rng.integers(0, 2 if not case.rare or is_chunk else len(_NAMES)))]
    pairs = [names(k, count) for k in range(count)]
    shifts, states = pairs[:taps], pairs[taps:]
    x, ends = "x", list[tuple[str, str]]()
    if part is not None and case.place == "before":
        x = part(graph, x, case.setting)
    for k, (before, after) in enumerate(shifts):
        ends.append(("x" if k == 0 else shifts[k - 1][0], after))
        x = graph.add(x, graph.mul(before, 0.3 / (k + 1)))
    for name, (before, after) in zip(cells, states, strict=True):
        if is_chunk:
            x, found = _recurrence(graph, x, case, name, before)
        else:
            x, found = CELLS[name].step(graph, x, before, case.setting)
        ends.append((found, after))
    if part is not None and case.place == "behind":
        x = part(graph, graph.add(x, "x"), case.setting)
    ends.append((_dense(graph, rng, x, width, 2), "y"))
    graph.nodes += [helper.make_node("Identity", [value], [name]) for value, name in ends]
    row: list[int | str] = ["batch", width]
    lead: list[int | str] = ["batch", "time"] if is_chunk else ["batch"]
    given = [("x", [*lead, width]), *((before, row) for before, _ in pairs)]
    answers = [("y", [*lead, 2]), *((after, row) for _, after in sorted(pairs, key=lambda pair: pair[1]))]
    inputs, outputs = ([_value(name, _FLOAT, shape) for name, shape in values] for values in (given, answers))
    content = graph.model(inputs, outputs)
    session = ort.InferenceSession(content)

    def run(values: Array) -> Array:
        steps = values[:, :, None] if is_chunk else values
        return np.concatenate([_follow(session, pairs, steps[r : r + 1]) for r in range(len(values))])

    return Built(run, lambda path: _adopted(path, content))


def _follow(session: ort.InferenceSession, pairs: Sequence[tuple[str, str]], values: Array) -> Array:
    """Run one row step by step with the pairs that the graph was made with."""
    states = {before: np.zeros((1, values.shape[-1]), np.float32) for before, _ in pairs}
    names, answers = [after for _, after in pairs], []
    for t in range(values.shape[1]):
        y, *after = session.run(["y", *names], {"x": values[:, t], **states})
        states = dict(zip(states, after, strict=True))
        answers.append(y.reshape(1, -1))
    return np.stack(answers, 1)


def _adopted(path: Path, content: bytes) -> bool:
    """Adopt a graph; return whether the verification is called weak."""
    path.write_bytes(content)
    verified = adopt_file(path).manifest.verified
    return verified is not None and bool(getattr(verified, "weak", False))
