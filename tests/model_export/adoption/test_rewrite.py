"""A rewritten graph does what the file did, or is refused with the reason and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.adoption.rewrite import Change, rewrite
from stepwell_export.converted import with_manifest
from stepwell_export.graph.inline_window import fold_context
from stepwell_export.runtime.errors import FileError, ParityError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.files import check_new_file
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.step_model import StepModel
from tests import graphs
from tests.published import published


def rewritten(
    folder: Path, source: bytes | Path, change: Change, hints: Overrides | None = None, *, opset: int = 17
) -> tuple[StepModel, StepModel]:
    """Adopt, rewrite and write; return the model of the file, and that of the new file."""
    path = folder / "found.onnx"
    path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    manifest = adopt(path, hints=hints, steps=5).manifest
    content, described = rewrite(path, manifest, [change], [], steps=20)
    (folder / "new.onnx").write_bytes(with_manifest(content, described))
    return StepModel(path, manifest), StepModel(folder / "new.onnx")


def fixed(text: str, weights: dict[str, Array] | None = None) -> bytes:
    return graphs.graph_from_text(text, weights)


# -------------------------------------------------------------------- folding


def test_a_folded_window_is_a_state_and_answers_are_the_same(tmp_path: Path) -> None:
    before, after = rewritten(
        tmp_path, graphs.moving_sum()[0], "fold-context", Overrides(windows={"x": 3}, shapes={"x": [2]})
    )

    assert after.manifest.windows == []
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in after.manifest.states] == [
        ("x.context", "x.context_next", [3], 0)
    ]
    assert after.manifest.verified is not None
    assert (after.manifest.verified.against, after.manifest.verified.max_abs) == ("found.onnx as it was", 0.0)
    assert after.state_bytes == before.state_bytes


def test_what_a_window_starts_from_is_kept(tmp_path: Path) -> None:
    hints = Overrides(windows={"x": 3}, shapes={"x": [2]}, initial={"x.context": [10, 20, 30]})
    _, after = rewritten(tmp_path, graphs.moving_sum()[0], "fold-context", hints)
    answers, _ = after.step({"x": np.array([[1, 2]], np.float32)}, after.initial_states(1))

    assert answers["y"].tolist() == [[63]]


def test_a_fixed_length_is_declared_shorter_by_the_window(tmp_path: Path) -> None:
    source = fixed(
        """g (float[B,8] x) => (float[B,1] y) {
            axis = Constant <value = int64[1] {1}> ()
            y = ReduceSum <keepdims = 1> (x, axis)
        }"""
    )
    rewritten(tmp_path, source, "fold-context", Overrides(windows={"x": 3}))
    declared = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(str(tmp_path / "new.onnx")).graph.input
    }

    assert declared == {"x": ["B", 5], "x.context": ["B", 3]}


def test_a_window_that_branches_look_at_is_folded_too(tmp_path: Path) -> None:
    source = fixed(
        """g (float[B,N] x, bool twice) => (float[B,1] y) {
            axis = Constant <value = int64[1] {1}> ()
            y = If (twice) <
                then_branch = t () => (float[D,1] a) { s = ReduceSum (x, axis)
                    a = Add (s, s) },
                else_branch = e () => (float[D,1] b) { b = ReduceSum (x, axis) }
            >
        }"""
    )
    hints = Overrides(constants={"twice": True}, windows={"x": 2}, shapes={"x": [1]})
    _, after = rewritten(tmp_path, source, "fold-context", hints)
    answers, _ = after.chunk({"x": np.array([[[1], [2], [3], [4]]], np.float32)}, after.initial_states(1))

    assert answers["y"].ravel().tolist() == [2, 6, 12, 18]


def test_an_axis_behind_the_batch_is_counted_right(tmp_path: Path) -> None:
    source = fixed(
        """g (float[2,B,N] x) => (float[2,B,1] y) {
            axis = Constant <value = int64[1] {2}> ()
            y = ReduceSum <keepdims = 1> (x, axis)
        }"""
    )
    _, after = rewritten(tmp_path, source, "fold-context", Overrides(windows={"x": 3}, shapes={"x": [2, 1]}))

    assert [(s.shape, s.batch_axis) for s in after.manifest.states] == [([2, 3], 1)]


def test_operators_too_old_for_the_new_nodes_are_refused() -> None:
    graph, manifest = graphs.moving_sum()
    model = onnx.load_model_from_string(graph)
    model.opset_import[0].version = 9
    with pytest.raises(RefusedModelError) as caught:
        fold_context(model, manifest)

    assert "opset 9; expected 10 or later" in caught.value.problem


def test_silero_folded_equals_its_authors_answers_exactly(tmp_path: Path) -> None:
    one = published("silero-vad/silero_vad")
    unfolded, model = rewritten(tmp_path, one.file, "fold-context", one.hints)
    rows = {one.given: one.xs[None]}
    answers, _ = model.chunk(rows, model.initial_states(1))
    as_it_was, _ = unfolded.chunk(rows, unfolded.initial_states(1))

    assert (len(one.xs), model.batched) == (100, True)
    np.testing.assert_array_equal(answers[one.answered], as_it_was[one.answered])
    np.testing.assert_allclose(answers[one.answered].reshape(one.ys.shape), one.ys, rtol=0, atol=1e-5)


# -------------------------------------------------------------------- batchifying


FIXED = """g (float[1,1,3] x, float[1,3] s) => (float[1,3] y, float[1,3] s_next) {
    row = Reshape (x, shape)
    s_next = Add (s, row)
    y = Tanh (s_next)
}"""


def test_a_declared_row_and_a_reshape_to_it_are_opened(tmp_path: Path) -> None:
    before, after = rewritten(tmp_path, fixed(FIXED, {"shape": np.array([1, 3])}), "batchify")

    assert (before.batched, after.batched) == (False, True)
    assert after.manifest.verified is not None
    assert (after.manifest.verified.steps, after.manifest.verified.max_abs) == (20, 0.0)


def test_a_shape_that_two_reshapes_share_is_opened_for_each_by_itself(tmp_path: Path) -> None:
    source = fixed(
        """g (float[1,4] x, float[1,4] s) => (float[1,4] y, float[1,4] s_next) {
            columns = Transpose (x)
            row = Reshape (x, shape)
            other = Reshape (bias, shape)
            both = Add (row, other)
            s_next = Add (s, both)
            y = Tanh (s_next)
        }""",
        {"shape": np.array([1, 4]), "bias": np.arange(4, dtype=np.float32).reshape(2, 2)},
    )
    _, after = rewritten(tmp_path, source, "batchify")

    assert after.batched


def test_where_the_batch_of_a_recurrence_is_makes_no_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = fixed(
        """g (float[1,3] x, float[1,1,4] h, float[1,1,4] c)
            => (float[1,4] y, float[1,1,4] h_next, float[1,1,4] c_next) {
            step = Reshape (x, to_step)
            all, h_next, c_next = LSTM <hidden_size = 4> (step, W, R, , , h, c)
            y = Reshape (all, to_row)
        }""",
        {
            "W": rng.normal(size=(1, 16, 3)).astype(np.float32),
            "R": rng.normal(size=(1, 16, 4)).astype(np.float32),
            "to_step": np.array([1, 1, 3]),
            "to_row": np.array([1, 4]),
        },
    )
    _, after = rewritten(tmp_path, source, "batchify")

    assert after.batched


def test_what_a_state_starts_from_keeps_its_place(tmp_path: Path) -> None:
    source = fixed(
        """g (float[1,4] x, float[1,2,1,4] s) => (float[1,4] y, float[1,2,1,4] s_next) {
            axes = Constant <value = int64[2] {0, 1}> ()
            s_next = Add (s, x)
            y = ReduceSum <keepdims = 0> (s_next, axes)
        }"""
    )
    _, after = rewritten(tmp_path, source, "batchify", Overrides(initial={"s": np.arange(8)}))

    assert [(state.batch_axis, state.shape) for state in after.manifest.states] == [(0, [2, 1, 4])]
    assert after.initial_states(1)["s"].ravel().tolist() == list(range(8))


@pytest.mark.parametrize(
    "node", ["mean = ReduceMean <axes = [0], keepdims = 1> (x)", "mean = Squeeze (x, axis)"], ids=["mean", "squeeze"]
)
def test_what_a_node_does_along_the_axis_of_the_one_row_stays_within_each_row(tmp_path: Path, node: str) -> None:
    source = fixed(
        f"""g (float[1,3] x, float[1,3] s) => (float[1,3] y, float[1,3] s_next) {{
            axis = Constant <value = int64[1] {{0}}> ()
            {node}
            s_next = Add (s, mean)
            y = Neg (s_next)
        }}"""
    )

    assert rewritten(tmp_path, source, "batchify")[1].batched


def test_a_state_without_an_axis_for_rows_gets_one(tmp_path: Path) -> None:
    _, after = rewritten(tmp_path, graphs.no_batch_axis()[0], "batchify")

    assert after.batched
    assert [state.batch_axis for state in after.manifest.states] == [0]


def test_a_graph_that_runs_rows_together_needs_no_rewriting(tmp_path: Path) -> None:
    with pytest.raises(UnclearModelError) as caught:
        rewritten(tmp_path, graphs.lstm()[0], "batchify")

    assert "runs rows together already" in caught.value.problem


@pytest.mark.parametrize("name", ["dtln/model_1", "dtln/model_2"])
def test_dtln_batchified_equals_its_authors_answers_in_every_row(tmp_path: Path, name: str) -> None:
    one = published(name)
    _, model = rewritten(tmp_path, one.file, "batchify", one.hints)
    rows = np.stack([one.xs, np.zeros_like(one.xs), one.xs])
    answers, _ = model.chunk({one.given: rows}, model.initial_states(3))
    found = answers[one.answered].reshape(3, *one.ys.shape)

    assert model.batched
    np.testing.assert_allclose(found[[0, 2]], np.stack([one.ys, one.ys]), rtol=0, atol=1e-5)


# -------------------------------------------------------------------- proof and file


def test_a_rewriting_that_changes_an_answer_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: onnx.ModelProto, manifest: Manifest) -> tuple[onnx.ModelProto, Manifest]:
        folded, described = fold_context(model, manifest)
        start = next(tensor for tensor in folded.graph.initializer if tensor.name.endswith(".starts"))
        start.CopyFrom(numpy_helper.from_array(np.array([-4]), start.name))
        end = next(tensor for tensor in folded.graph.initializer if tensor.name.endswith(".ends"))
        end.CopyFrom(numpy_helper.from_array(np.array([-1]), end.name))
        return folded, described

    monkeypatch.setattr("stepwell_export.adoption.rewrite.fold_context", forgetful)
    with pytest.raises(ParityError) as caught:
        rewritten(tmp_path, graphs.moving_sum()[0], "fold-context", Overrides(windows={"x": 3}, shapes={"x": [2]}))

    assert "of the rewritten graph differs" in caught.value.problem
    assert not (tmp_path / "new.onnx").exists()


def test_the_file_that_was_given_is_never_the_one_that_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        check_new_file(tmp_path / "a.onnx", tmp_path / "." / "a.onnx")

    assert "is not touched" in caught.value.problem


def test_a_sidecar_that_would_win_over_the_new_files_manifest_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.onnx.stepwell.json").write_text("{}")
    with pytest.raises(FileError):
        check_new_file(tmp_path / "b.onnx", tmp_path / "a.onnx")


def test_a_manifest_inside_the_old_file_is_replaced_in_the_new_one(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "found", graphs.lying_batch)
    content, described = rewrite(path, adopt(path, replace=True).manifest, ["batchify"], [], steps=5)
    (tmp_path / "new.onnx").write_bytes(with_manifest(content, described))

    assert StepModel(tmp_path / "new.onnx").manifest.batch.mode == "stack"
    assert len(onnx.load(str(tmp_path / "new.onnx")).metadata_props) == 1
