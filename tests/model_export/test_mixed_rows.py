"""Models in which one stream reaches another's answers, seldom: refused by every front end, or run one row at a time.

Ordinary numbers show nothing of it: what is taken from all rows is below a threshold, or multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export import StepSpec
from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.adoption.rewrite import Change
from stepwell_export.converted import verify_model
from stepwell_export.exporter import convert_source, export_source
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import Pipeline
from stepwell_export.streaming import convert
from tests import graphs
from tests.model_export.rows_apart import assert_rows_apart
from tests.model_export.streaming.zoo_parts import GRU, batch_first, ints
from tests.published import NAMES, published

MIXES = "The rows of a batch depend on each other: "

# ---------------------------------------------------------------- ONNX

NUMBERS = {
    "zero": ints(0), "two": ints(2), "eight": np.array(80, np.float32), "many": np.array(1e3, np.float32),
    "last": ints(-1), "all": ints(2**63 - 1), "first": np.array(0), "nothing": np.zeros((1, 1, 1, 1), np.float32),
    "ones": ints(1),
}  # fmt: skip
LOUD = {
    "the largest of all rows": "m = ReduceMax (a, two) d = Max (m, eight) yt = Div (yl, d)",
    "a product with all rows, of zeros": "w = Sub (yl, yl) k = Transpose <perm = [0, 1, 3, 2]> (yl) "
    "s = MatMul (w, k) o = MatMul (s, yl) yt = Add (yl, o)",
    "a branch by the largest of all rows": "m = ReduceMax <keepdims = 0> (a) c = Greater (m, eight) "
    "yt = If <then_branch = t () => (float[T,1,B,5] p) { p = Neg (yl) }, "
    "else_branch = e () => (float[T,1,B,5] q) { q = Identity (yl) }> (c)",
}  # fmt: skip


def loud(nodes: str) -> onnx.ModelProto:
    """A GRU over `(batch, time, 4)` with nodes behind it, from `yl` and its magnitude `a` to `yt`; rows on axis 2."""
    model = batch_first(
        f"[gru] yl = GRU <hidden_size = 5> (xt, W, R, B)\na = Abs (yl)\n{nodes}", plane=np.array(2), **NUMBERS, **GRU
    )
    model.opset_import[0].version = 18
    return model


@pytest.mark.parametrize("name", LOUD)
def test_an_onnx_graph_whose_rows_meet_is_refused(name: str) -> None:
    with pytest.raises(RefusedModelError) as caught:
        verify_model(convert(loud(LOUD[name]), name="loud"), long_steps=0)
    assert caught.value.problem.startswith(MIXES)


def test_a_graph_of_one_row_that_would_mix_rows_runs_one_at_a_time() -> None:
    model = loud(LOUD["the largest of all rows"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    content, report = verify_model(convert(model, name="loud"), long_steps=0)

    assert not StepModel(content).batched
    assert [skipped.why for skipped in report.skipped if skipped.what == "rows together"] == [
        "the model runs one row at a time: Tensor 'gru.h' has no axis for rows"
    ]


def test_the_file_of_a_model_that_is_not_decided_has_the_reason(tmp_path: Path) -> None:
    model = batch_first(
        "yl = GRU <hidden_size = 5> (xt, W, R, B) m = Transpose <perm = [2, 0, 1, 3]> (yl)\n"
        "[pool] p, places = MaxPool <kernel_shape = [1, 1]> (m) yt = Transpose <perm = [1, 2, 0, 3]> (p)",
        **GRU,
    )  # fmt: skip
    onnx.save(model, tmp_path / "odd.onnx")
    export_source(tmp_path / "odd.onnx", tmp_path / "step.onnx")

    manifest = StepModel(tmp_path / "step.onnx").manifest
    assert manifest.batch.mode == "single"
    assert manifest.batch.why == "Node 'pool' (MaxPool) gives places that are counted through the batch"


# ---------------------------------------------------------------- step graphs that are adopted

STEP_LOUD = {
    "the largest of all rows": "m = ReduceMax <axes = [0]> (a) d = Max (m, eight) y = Div (h, d)",
    "the row before, if it is loud": "f = Slice (a, zero, last, zero) z = Slice (a, zero, one, zero) "
    "b = Concat <axis = 0> (z, f) c = Greater (b, eight) n = Neg (h) y = Where (c, n, h)",
    "a softmax over the rows, of zeros": "z = Sub (h, h) p = Softmax <axis = 0> (z) o = Mul (p, z) y = Add (h, o)",
}


def step_loud(nodes: str, rows: str) -> bytes:
    """A leaky state `s` of three with nodes behind it, from `h` and its magnitude `a` to `y`."""
    text = f"""g (float[{rows},3] x, float[{rows},3] s) => (float[{rows},3] y, float[{rows},3] s_next) {{
        k = Mul (s, half)
        s_next = Add (k, x)
        h = Tanh (s_next)
        a = Abs (s_next)
        {nodes}
    }}"""
    weights = NUMBERS | {"half": np.array(0.5, np.float32), "one": ints(1)}
    return graphs.graph_from_text(text, {name: value for name, value in weights.items() if name in text})


@pytest.mark.parametrize("name", STEP_LOUD)
def test_an_adopted_graph_whose_rows_meet_runs_one_row_at_a_time(name: str, tmp_path: Path) -> None:
    path = tmp_path / "loud.onnx"
    path.write_bytes(step_loud(STEP_LOUD[name], "B"))
    adopted = adopt_file(path)

    assert not StepModel(path).batched
    assert any(note.startswith("rows are run one at a time: ") for note in adopted.adoption.notes)


@pytest.mark.parametrize("name", STEP_LOUD)
def test_a_graph_of_one_row_that_is_batchified_works_on_each_row_by_itself(name: str, tmp_path: Path) -> None:
    path = tmp_path / "loud.onnx"
    path.write_bytes(step_loud(STEP_LOUD[name], "1"))
    adopt_file(path, changes=["batchify"], target=tmp_path / "new.onnx")

    model = StepModel(tmp_path / "new.onnx")
    assert model.batched
    assert_rows_apart(model)


def test_an_adopted_graph_whose_rows_never_meet_runs_them_together(tmp_path: Path) -> None:
    path = tmp_path / "calm.onnx"
    path.write_bytes(step_loud("y = Div (h, eight)", "B"))
    adopt_file(path)

    model = StepModel(path)
    assert model.batched
    assert_rows_apart(model)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_published_model_never_meet(name: str, tmp_path: Path) -> None:
    """Two of them were made for one row, and are rewritten to run several."""
    one = published(name)
    changes: list[Change] = ["batchify"] if name.startswith("dtln") else ["fold-context"]
    (tmp_path / "found.onnx").write_bytes(one.file.read_bytes())
    hints = {"constants": one.hints.constants, "windows": one.hints.windows, "shapes": one.hints.shapes}
    adopt_file(tmp_path / "found.onnx", changes=changes, target=tmp_path / "new.onnx", **hints)  # type: ignore[arg-type]

    model = StepModel(tmp_path / "new.onnx")
    assert model.batched
    assert_rows_apart(model)


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize("name", STEP_LOUD)
def test_a_pipeline_with_a_graph_over_rows_that_meet_is_refused(name: str, tmp_path: Path) -> None:
    """The model in front is calm; what follows is an ONNX graph over rows, as of a classifier."""
    weights = {key: value for key, value in (NUMBERS | {"one": ints(1)}).items() if key in STEP_LOUD[name]}
    rows = f"rows (float[B,5] h) => (float[B,5] y) {{ a = Abs (h) {STEP_LOUD[name]} }}"
    (tmp_path / "rows.onnx").write_bytes(graphs.graph_from_text(rows, weights))
    onnx.save(batch_first("yt = GRU <hidden_size = 5> (xt, W, R, B)", **GRU), tmp_path / "gru.onnx")
    pipeline = Pipeline([tmp_path / "gru.onnx", tmp_path / "rows.onnx"])

    with pytest.raises(RefusedModelError) as caught:
        verify_model(convert_source(pipeline, name="loud"), long_steps=0)
    assert caught.value.problem.startswith(MIXES)


# ---------------------------------------------------------------- PyTorch

TORCH_LOUD: dict[str, Callable[[Any, Any], Any]] = {
    "the largest of all rows": lambda torch, y: y / y.abs().amax(0, keepdim=True).clamp(min=80),
    "the row before, if it is loud": lambda torch, y: torch.where(y.abs().roll(1, 0) > 80, -y, y),
    "a product with all rows, of zeros": lambda torch, y: y + torch.einsum("b...,c...->b...", y - y, y),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", TORCH_LOUD)
def test_a_module_over_sequences_whose_rows_meet_is_refused(name: str) -> None:
    from tests.model_export.torch.zoo_parts import nn, of, torch, whole

    spec = whole(of(lambda m, x: TORCH_LOUD[name](torch, m.gru(x)[0]), gru=nn.GRU(4, 6, batch_first=True)))
    _is_refused(spec)


@pytest.mark.torch
@pytest.mark.parametrize("name", TORCH_LOUD)
def test_a_module_with_states_whose_rows_meet_is_refused(name: str) -> None:
    from tests.model_export.torch.zoo_parts import nn, of, torch

    def step(m: Any, x: Any, h: Any) -> Any:
        h = m.cell(x, h)
        return TORCH_LOUD[name](torch, h), h

    module = of(step, cell=nn.GRUCell(4, 6))
    _is_refused(StepSpec(module, inputs={"x": torch.randn(2, 4)}, states={"h": torch.zeros(1, 6)}))


def _is_refused(spec: StepSpec) -> None:
    from stepwell_export.torch import convert as convert_torch

    with pytest.raises(RefusedModelError) as caught:
        verify_model(convert_torch(spec, name="loud"), long_steps=0)
    assert caught.value.problem.startswith(MIXES)
