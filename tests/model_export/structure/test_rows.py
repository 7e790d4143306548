"""Whether rows depend on each other, read from operators: each outcome for each way in which a graph can have rows."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented  # noqa: A004  # its name there

from stepwell_export.runtime.manifest import Array
from stepwell_export.structure.facts import Rows
from stepwell_export.structure.rows import RowAnalysis, read_rows
from tests.model_export.streaming.zoo_parts import graph, ints

Given = dict[str, tuple[tuple[int, ...], int]]
Case = tuple[str, Given, dict[str, Any]]
"""A graph in text form; one row and the axis of the rows by input; and weights."""

FOUR: Given = {"x": ((4,), 0)}
SEQUENCE: Given = {"x": ((6, 4), 0)}
STATE: Given = {"x": ((4,), 0), "s": ((4,), 0)}


HEAD = ', "com.example" : 1, "com.microsoft" : 1'


def read(text: str, given: Given, **weights: Any) -> RowAnalysis:
    """Analyse a graph in ONNX' text form, whose output is `y`."""
    return read_rows(graph(text, opset=18, head=HEAD, **weights), given, {"y": None})


INDEPENDENT: dict[str, Case] = {
    "elementwise": ("(float[B,4] x) => (float[B,4] y) { y = Tanh (x) }", FOUR, {}),
    "a product with weights": ("(float[B,4] x) => (float[B,3] y) { y = MatMul (x, W) }", FOUR, {"W": (4, 3)}),
    "a Gemm": ("(float[B,4] x) => (float[B,3] y) { y = Gemm <transB = 1> (x, W) }", FOUR, {"W": (3, 4)}),
    "an Einsum of each row": (
        '(float[B,6,4] x) => (float[B,6] y) { y = Einsum <equation = "...f,f"> (x, v) }', SEQUENCE, {"v": (4,)}),
    "a norm of features": ("(float[B,4] x) => (float[B,4] y) { y = LayerNormalization (x, g) }", FOUR, {"g": (4,)}),
    "a softmax of features": ("(float[B,4] x) => (float[B,4] y) { y = Softmax (x) }", FOUR, {}),
    "a maximum of features": ("(float[B,4] x) => (float[B] y) { y = ReduceMax <keepdims = 0> (x, one) }", FOUR,
                              {"one": ints(1)}),
    "folded and unfolded": (
        """(float[B,6,4] x) => (float[B,18] y) {
            f = Reshape (x, flat)
            p = MatMul (f, W)
            y = Reshape (p, rows)
        }""", SEQUENCE, {"flat": ints(-1, 4), "rows": ints(-1, 18), "W": (4, 3)}),
    "folded behind time": (
        """(float[B,6,4] x) => (float[6,B,4] y) {
            t = Transpose <perm = [1, 0, 2]> (x)
            f = Reshape (t, flat)
            a = Relu (f)
            y = Reshape (a, back)
        }""", SEQUENCE, {"flat": ints(-1, 4), "back": ints(6, -1, 4)}),
    "sizes from Shape": (
        """(float[B,6,4] x) => (float[B,24] y) {
            s = Shape <start = 0, end = 1> (x)
            to = Concat <axis = 0> (s, rest)
            y = Reshape (x, to)
        }""", SEQUENCE, {"rest": ints(-1)}),
    "an initial state that is expanded": (
        """(float[B,4] x) => (float[B,4] y) {
            n = Shape <start = 0, end = 1> (x)
            to = Concat <axis = 0> (n, four)
            z = Expand (h, to)
            y = Add (x, z)
        }""", FOUR, {"four": ints(4), "h": (1, 4)}),
    "a branch by the number of axes": (
        """(float[B,4] x) => (float[B,4] y) {
            sizes = Shape (x)
            axes = Size (sizes)
            c = Equal (axes, two)
            y = If <then_branch = t () => (float[B,4] a) { a = Neg (x) },
                    else_branch = e () => (float[B,4] b) { b = Identity (x) }> (c)
        }""", FOUR, {"two": np.array(2)}),
    "a state of zeros": (
        """(float[B,4] x) => (float[B,4] y) {
            n = Shape (x)
            z = ConstantOfShape (n)
            y = Add (x, z)
        }""", FOUR, {}),
    "attention": (
        """(float[B,6,4] x) => (float[B,6,4] y) {
            k = Transpose <perm = [0, 2, 1]> (x)
            s = MatMul (x, k)
            w = Softmax (s)
            y = MatMul (w, x)
        }""", SEQUENCE, {}),
    "a table of ids": ("(int64[B] x) => (float[B,4] y) { y = Gather (T, x) }", {"x": ((), 0)}, {"T": (9, 4)}),
    "a GRU with rows on axis 1": (
        "(float[6,B,4] x) => (float[6,1,B,3] y) { y = GRU <hidden_size = 3> (x, W, R) }",
        {"x": ((6, 4), 1)}, {"W": (1, 9, 4), "R": (1, 9, 3)}),
    "an LSTM with rows in front": (
        "(float[B,6,4] x) => (float[B,6,1,3] y) { y = LSTM <hidden_size = 3, layout = 1> (x, W, R) }",
        SEQUENCE, {"W": (1, 12, 4), "R": (1, 12, 3)}),
    "a convolution over time": (
        "(float[B,4,6] x) => (float[B,3,5] y) { y = Conv (x, W) }", {"x": ((4, 6), 0)}, {"W": (3, 4, 2)}),
    "a norm with known statistics": (
        "(float[B,4] x) => (float[B,4] y) { y = BatchNormalization (x, a, a, a, v) }", FOUR,
        {"a": (4,), "v": np.ones(4, np.float32)}),
    "a scan over time": (
        """(float[B,6,4] x) => (float[B,6,4] y) {
            z = ReduceMax <keepdims = 0> (x, one)
            h, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], body = b
                (float[B,4] s, float[B,4] e) => (float[B,4] n, float[B,4] o) { n = Add (s, e) o = Tanh (n) }> (z, x)
        }""", SEQUENCE, {"one": ints(1)}),
    "a loop that counts": (
        """(float[B,4] x) => (float[B,4] y) {
            y = Loop <body = b (int64 i, bool c, float[B,4] s) => (bool d, float[B,4] n)
                { d = Identity (c) n = Sin (s) }> (three, , x)
        }""", FOUR, {"three": np.array(3)}),
    "branches by a constant": (
        """(float[B,4] x) => (float[B,4] y) {
            y = If <then_branch = t () => (float[B,4] a) { a = Neg (x) },
                    else_branch = e () => (float[B,4] b) { b = ReduceMax <keepdims = 1> (x, zero) }> (yes)
        }""", FOUR, {"yes": np.array(True), "zero": ints(0)}),
    "quantised with a known scale": (
        """(float[B,4] x) => (float[B,4] y) {
            q = QuantizeLinear (x, s)
            y = DequantizeLinear (q, s)
        }""", FOUR, {"s": np.array(0.1, np.float32)}),
}  # fmt: skip

MIXED: dict[str, Case] = {
    "ReduceMax": ("(float[B,4] x) => (float[1,4] y) { y = ReduceMax (x, zero) }", FOUR, {"zero": ints(0)}),
    "ReduceMean": ("(float[B,4] x) => (float[1,1] y) { y = ReduceMean (x) }", FOUR, {}),
    "Softmax": ("(float[B,4] x) => (float[B,4] y) { y = Softmax <axis = 0> (x) }", FOUR, {}),
    "CumSum": ("(float[B,4] x) => (float[B,4] y) { y = CumSum (x, zero) }", FOUR, {"zero": np.array(0)}),
    "TopK": ("(float[B,4] x) => (float[1,4] y) { y, i = TopK <axis = 0> (x, one) }", FOUR, {"one": ints(1)}),
    "ArgMax": ("(float[B,4] x) => (int64[1,4] y) { y = ArgMax <axis = 0> (x) }", FOUR, {}),
    "Gather": ("(float[B,4] x) => (float[4] y) { y = Gather <axis = 0> (x, zero) }", FOUR, {"zero": np.array(0)}),
    "Slice": ("(float[B,4] x) => (float[C,4] y) { y = Slice (x, one, end, zero) }", FOUR,
              {"one": ints(1), "end": ints(2**63 - 1), "zero": ints(0)}),
    "Slice backwards": ("(float[B,4] x) => (float[B,4] y) { y = Slice (x, last, end, zero, last) }", FOUR,
                        {"last": ints(-1), "end": ints(-(2**63)), "zero": ints(0)}),
    "Pad": ("(float[B,4] x) => (float[C,4] y) { y = Pad (x, p) }", FOUR, {"p": ints(1, 0, 0, 0)}),
    "Concat": ("(float[B,4] x) => (float[C,4] y) { y = Concat <axis = 0> (z, x) }", FOUR, {"z": (1, 4)}),
    "Split": ("(float[B,4] x) => (float[C,4] y) { y, r = Split <axis = 0, num_outputs = 2> (x) }", FOUR, {}),
    "MatMul": (
        """(float[B,4] x) => (float[B,4] y) {
            t = Transpose (x)
            s = MatMul (x, t)
            y = MatMul (s, x)
        }""", FOUR, {}),
    "Gemm": ("(float[B,4] x) => (float[4,4] y) { y = Gemm <transA = 1> (x, x) }", FOUR, {}),
    "Einsum": ('(float[B,4] x) => (float[4] y) { y = Einsum <equation = "bf,bf->f"> (x, x) }', FOUR, {}),
    "Einsum of all pairs": (
        '(float[B,4] x) => (float[B,4] y) { y = Einsum <equation = "b...,c...->b..."> (x, x) }', FOUR, {}),
    "differences of all pairs": (
        """(float[B,4] x) => (float[B,B,4] y) {
            a = Unsqueeze (x, zero)
            b = Unsqueeze (x, one)
            y = Sub (a, b)
        }""", FOUR, {"zero": ints(0), "one": ints(1)}),
    "statistics of the batch": (
        """(float[B,4] x) => (float[B,4] y) {
            y, m, n = BatchNormalization <training_mode = 1> (x, a, a, a, v)
        }""", FOUR, {"a": (4,), "v": np.ones(4, np.float32)}),
    "statistics over batch and space": (
        "(float[B,4,3,3] x) => (float[B,4,3,3] y) { y = MeanVarianceNormalization (x) }", {"x": ((4, 3, 3), 0)}, {}),
    "rows folded into time that is added up": (
        """(float[B,6,4] x) => (float[1,4] y) {
            f = Reshape (x, flat)
            y = ReduceSum (f, zero)
        }""", SEQUENCE, {"flat": ints(-1, 4), "zero": ints(0)}),
    "a transpose that a reshape forgets": (
        """(float[B,6] x) => (float[B,6] y) {
            t = Transpose (x)
            y = Reshape (t, back)
        }""", {"x": ((6,), 0)}, {"back": ints(-1, 6)}),
    "time and rows mistaken": (
        "(float[B,6,4] x) => (float[B,6,3] y) { y1 = GRU <hidden_size = 3> (x, W, R) y = Squeeze (y1, one) }",
        SEQUENCE, {"W": (1, 9, 4), "R": (1, 9, 3), "one": ints(1)}),
    "a convolution over rows": (
        "(float[1,4,B] x) => (float[1,3,C] y) { y = Conv (x, W) }", {"x": ((1, 4), 2)}, {"W": (3, 4, 2)}),
    "one scale for all rows": (
        """(float[B,4] x) => (float[B,4] y) {
            q, s, z = DynamicQuantizeLinear (x)
            y = DequantizeLinear (q, s, z)
        }""", FOUR, {}),
    "a scan over rows": (
        """(float[B,4] x) => (float[B,4] y) {
            h, y = Scan <num_scan_inputs = 1, body = b (float[4] s, float[4] e) => (float[4] n, float[4] o)
                { n = Max (s, e) o = Sub (e, n) }> (z, x)
        }""", FOUR, {"z": (4,)}),
    "a branch by the largest value": (
        """(float[B,4] x) => (float[B,4] y) {
            m = ReduceMax <keepdims = 0> (x)
            c = Greater (m, eight)
            y = If <then_branch = t () => (float[B,4] a) { a = Neg (x) },
                    else_branch = e () => (float[B,4] b) { b = Identity (x) }> (c)
        }""", FOUR, {"eight": np.array(8, np.float32)}),
    "a loop until all rows are small": (
        """(float[B,4] x) => (float[B,4] y) {
            y = Loop <body = b (int64 i, bool c, float[B,4] s) => (bool d, float[B,4] n) {
                n = Sqrt (s)
                m = ReduceMax <keepdims = 0> (n)
                d = Greater (m, one)
            }> (many, , x)
        }""", FOUR, {"many": np.array(99), "one": np.array(1, np.float32)}),
}  # fmt: skip

UNDECIDED: dict[str, Case] = {
    "an unknown operator": ('(float[B,4] x) => (float[B,4] y) { y = com.example.Odd (x) }', FOUR, {}),
    "an operator of another domain with a known name": (
        "(float[B,4] x) => (float[B,4] y) { y = com.example.Tanh (x) }", FOUR, {}),
    "a convolution with a kernel for each row": (
        "(float[1,B,6] x) => (float[1,B,6] y) { y = Conv <group = 1009, kernel_shape = [1]> (x, W) }",
        {"x": ((1, 6), 1)}, {"W": (1009, 1, 1)}),
    "the number of rows as a number": (
        """(float[B,4] x) => (float[B,4] y) {
            n = Shape <start = 0, end = 1> (x)
            f = Cast <to = 1> (n)
            y = Div (x, f)
        }""", FOUR, {}),
    "a branch by the number of rows": (
        """(float[B,4] x) => (float[B,4] y) {
            n = Shape <start = 0, end = 1> (x)
            c = Equal (n, one)
            y = If <then_branch = t () => (float[B,4] a) { a = Neg (x) },
                    else_branch = e () => (float[B,4] b) { b = Identity (x) }> (c)
        }""", FOUR, {"one": ints(1)}),
    "the place in the batch": (
        """(float[B,4] x) => (float[B,4] y) {
            n = Shape <start = 0, end = 1> (x)
            m = Squeeze (n)
            i = Range (zero, m, one)
            f = Cast <to = 1> (i)
            u = Unsqueeze (f, at)
            y = Add (x, u)
        }""", FOUR, {"zero": np.array(0), "one": np.array(1), "at": ints(1)}),
    "a fixed number of rows": ("(float[B,4] x) => (float[B,4] y) { y = Add (x, W) }", FOUR, {"W": (3, 4)}),
    "axes of length 1 that go": ("(float[B,4,1] x) => (float[B,4] y) { y = Squeeze (x) }", {"x": ((4, 1), 0)}, {}),
    "two halves that are joined and split": (
        """(float[B,4] x) => (float[B,4] y) {
            n = Neg (x)
            both = Concat <axis = 0> (x, n)
            t = Tanh (both)
            l, r = Split <axis = 0, num_outputs = 2> (t)
            y = Add (l, r)
        }""", FOUR, {}),
    "rows picked by a value": (
        """(float[B,4] x, int64[B] i) => (float[B,4] y) { y = Gather <axis = 0> (x, i) }""",
        {"x": ((4,), 0), "i": ((), 0)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEPENDENT)
def test_rows_that_never_meet_are_independent(name: str) -> None:
    text, given, weights = INDEPENDENT[name]

    assert read(text, given, **weights).verdict.outcome == "independent"


@pytest.mark.parametrize("name", MIXED)
def test_an_operator_along_the_rows_mixes_them(name: str) -> None:
    text, given, weights = MIXED[name]

    assert read(text, given, **weights).verdict.outcome == "mixed"


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_the_operators_do_not_show_is_not_decided(name: str) -> None:
    text, given, weights = UNDECIDED[name]

    assert read(text, given, **weights).verdict.outcome == "undecided"


def test_the_node_that_mixes_rows_is_named_with_what_it_does() -> None:
    text = "(float[B,4] x) => (float[B,4] y) { [largest] m = ReduceMax (x, zero) y = Div (x, m) }"

    verdict = read(text, FOUR, zero=ints(0)).verdict

    assert verdict.why == "Node 'largest' (ReduceMax) reduces over the rows of the batch"


def test_rows_that_are_mixed_for_an_answer_that_does_not_count_are_no_fault() -> None:
    text = "(float[B,4] x) => (float[B,4] y, float[1,4] seen) { y = Tanh (x) seen = ReduceMax (x, zero) }"

    assert read(text, FOUR, zero=ints(0)).verdict.outcome == "independent"


def test_a_state_that_is_mixed_is_a_fault_though_the_answer_is_not() -> None:
    text = """(float[B,4] x, float[B,4] s) => (float[B,4] y, float[B,4] n) {
        y = Add (x, s)
        m = ReduceMax (s, zero)
        n = Add (x, m)
    }"""

    found = read_rows(graph(text, opset=18, zero=ints(0)), STATE, {"y": 0, "n": 0})

    assert found.verdict.outcome == "mixed"


def test_rows_are_found_on_a_folded_axis() -> None:
    text, given, weights = INDEPENDENT["folded behind time"]

    assert read(text, given, **weights).facts["f"].rows == Rows(0, before=6)


def test_an_answer_without_rows_is_not_decided() -> None:
    found = read_rows(graph("(float[B,4] x) => (float[4] y) { y = Neg (W) }", W=(4,)), FOUR, {"y": 0})

    assert found.verdict.outcome == "undecided"


@pytest.mark.parametrize(
    "name", sorted(name for name, case in INDEPENDENT.items() if len(case[1]) == 1 and "layout" not in case[0])
)  # onnxruntime has no such kernel
def test_a_row_of_an_independent_graph_is_not_moved_by_a_row_of_nan_or_infinity(name: str) -> None:
    """What the analysis promises, on onnxruntime: bit for bit."""
    text, given, weights = INDEPENDENT[name]
    model = graph(text, opset=18, head=HEAD, **weights)
    [(source, (row, axis))] = given.items()
    is_id = model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    kind = np.int64 if is_id else np.float32
    plain = np.random.default_rng(0).integers(1, 9, (*row[:axis], 2, *row[axis:])).astype(kind)
    place = read(text, given, **weights).facts["y"].rows
    assert place is not None

    for value in [0] if is_id else [np.nan, np.inf, 1e30]:
        other = plain.copy()
        np.moveaxis(other, axis, 0)[1] = value
        calm, wild = (_first_row(_run(model, {source: x}), place) for x in (plain, other))
        assert np.array_equal(calm, wild)


def _run(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], feeds)[0])


def _first_row(value: Array, rows: Rows) -> Array:
    front = np.moveaxis(value, rows.axis, 0)
    return np.asarray(front.reshape(rows.before, -1, rows.behind, *front.shape[1:])[:, 0])


# ---------------------------------------------------------------- the node cases of ONNX

OPERATORS = {
    "add", "argmax", "averagepool", "batchnorm", "clip", "concat", "constantofshape", "conv", "cumsum",
    "depthtospace", "einsum", "expand", "flatten", "gather", "gathernd", "gemm", "globalpool", "groupnormalization",
    "instancenorm", "layernormalization", "lpnormalization", "lrn", "matmul", "maxpool",
    "meanvariancenormalization", "onehot", "pad", "quantizelinear", "reducemax", "reducemean", "reshape", "resize",
    "rnn", "scatternd", "slice", "softmax", "split", "squeeze", "tile", "topk", "transpose", "trilu", "unsqueeze",
    "where",
}  # fmt: skip
"""Modules of ONNX' backend test."""


def node_cases() -> list[Any]:
    """Return the cases of these operators that have one node and tensors alone."""
    from onnx.backend.test.case import node

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(node.__path__, f"{node.__name__}."):
            if module.name.rpartition(".")[2].replace("_", "") in OPERATORS:
                importlib.import_module(module.name)
    return [case for case in node._NodeTestCases if case.model is not None and len(case.model.graph.node) == 1]


def test_no_case_of_onnx_that_is_independent_lets_a_row_move_another() -> None:
    """Each axis of the first input is read as that of the rows; one of them becomes NaN, 1e30 and an ordinary number.

    The rules are held against onnxruntime here, operator by operator, with the attributes that ONNX tests.
    """
    held, quiet = 0, ort.SessionOptions()
    quiet.log_severity_level = 4
    for case in node_cases():
        names = [value.name for value in case.model.graph.input]
        feeds = dict(zip(names, case.data_sets[0][0], strict=False))
        if not all(isinstance(value, np.ndarray) and value.dtype.kind in "fiub" for value in feeds.values()):
            continue
        session = None
        for axis, size in enumerate(np.shape(feeds[names[0]]) if feeds[names[0]].dtype.kind == "f" else ()):
            row = tuple(other for place, other in enumerate(feeds[names[0]].shape) if place != axis)
            rest = {name: feeds[name] for name in names[1:]}
            answers = dict.fromkeys((value.name for value in case.model.graph.output), None)
            found = read_rows(case.model, {names[0]: (row, axis)}, answers, rest)
            if size < 2 or found.verdict.outcome != "independent":
                continue
            try:
                session = session or ort.InferenceSession(case.model.SerializeToString(), quiet)
            except (Fail, NotImplemented):  # an operator, a type or a layout that onnxruntime lacks
                break
            places = [found.facts[name].rows for name in answers]
            calm = session.run(None, feeds)
            for value in (np.nan, 1e30, 2.5):
                other = feeds[names[0]].copy()
                with np.errstate(over="ignore"):  # in float16, 1e30 is infinite
                    np.moveaxis(other, axis, 0)[0] = value
                wild = session.run(None, {**feeds, names[0]: other})
                for place, one, two in zip(places, calm, wild, strict=True):
                    was, becomes = (_other_rows(array, place, size) for array in (one, two))
                    assert np.array_equal(was, becomes, equal_nan=True), f"{case.name}, axis {axis}"
                    held += 1
    assert held > 500


def _other_rows(value: Array, rows: Rows | None, size: int) -> Array:
    if rows is None:
        return value.astype(np.float64)
    front = np.moveaxis(value, rows.axis, 0)
    return np.asarray(front.reshape(rows.before, size, rows.behind, *front.shape[1:])[:, 1:]).astype(np.float64)
