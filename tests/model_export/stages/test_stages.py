"""Each stage equals its definition, alone in a graph and in front of a model; what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import ConvertedModel, verify_model
from stepwell_export.exporter import convert_source, export_source
from stepwell_export.runtime.errors import ManifestError, ParityError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import (
    EWMA,
    Clip,
    Diff,
    Impute,
    Lag,
    Log,
    Log1p,
    MinMax,
    OneHot,
    Pipeline,
    RollingMean,
    RollingStd,
    Select,
    Stage,
    Standardize,
)
from stepwell_export.verify.runners import stepped
from tests.model_export.rows_apart import assert_rows_apart
from tests.model_export.streaming.zoo_parts import LSTM, batch_first, graph

pytest.importorskip("onnx", reason="onnx is not installed")

MEAN, STD = [280.0, 1e5, -3.0, 0.5], [10.0, 200.0, 0.01, 2.0]


def lstm(folder: Path) -> Path:
    """An ONNX file: an LSTM over `x`, rows of 4, with output `y`, rows of 5."""
    model = batch_first(
        "yl = LSTM <hidden_size = 5> (xt, W, R, B)\nyt = Add (yl, E)", E=(5,), **LSTM
    )  # fmt: skip
    path = folder / "lstm.onnx"
    onnx.save(model, path)
    return path


def converted(*parts: Any) -> ConvertedModel:
    return convert_source(Pipeline(parts), name="m")


def outputs_of(candidate: ConvertedModel, x: Array) -> Array:
    """Verify the candidate, and return its output for sequences `(N, T, *row)`."""
    content, report = verify_model(candidate, long_steps=128)
    assert not report.weak
    model = StepModel(content)
    name = model.manifest.inputs[0].name
    got = stepped(model, {name: x})[0]
    return got[model.manifest.answered[0].name]


def holes(rows: int = 2, steps: int = 40, width: int = 4) -> Array:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, steps, width))
    return np.where(rng.random(x.shape) < 0.2, np.nan, x).astype(np.float32)


CHAINS: dict[str, tuple[Stage, ...]] = {
    "scaled": (Clip(-0.5, [0.5, 0.6, 0.7, 0.8]), Standardize(MEAN, STD), EWMA(0.3)),
    "scaled back": (Impute("last", initial=[1.0, 2.0, 3.0, 4.1]), Standardize(MEAN, STD).inverse(), RollingMean(5)),
    "ranges": (Impute("mean").fit(np.arange(12.0).reshape(3, 4)), MinMax([0, 0, -5, 1], [1, 2, 5, 9]), Lag(3, 0.3)),
    "ranges back": (Impute(0.5), MinMax(-2.0, 3.0).inverse(), RollingStd(4)),
    "logarithms": (Log1p(), Diff(2)),
    "logarithms back": (Log1p().inverse(),),
    "columns": (Select([5, 0, 2, 2], width=6),),
}


@pytest.mark.parametrize("name", CHAINS)
def test_stages_in_front_of_a_model_are_verified_with_it(tmp_path: Path, name: str) -> None:
    content, report = verify_model(converted(*CHAINS[name], lstm(tmp_path)), long_steps=128)
    model = StepModel(content)

    assert not report.weak
    assert report.parity.against.startswith("numpy")
    assert [spec.name for spec in model.manifest.inputs] == ["x"]
    assert [spec.name for spec in model.manifest.answered] == ["y"]
    assert model.batched
    assert_rows_apart(model)


@pytest.mark.parametrize(
    "stage",
    [Standardize(3.0, 7.0).inverse(), EWMA(0.2), Select([4, 0], width=5)],
)
def test_a_stage_behind_a_model_is_verified_with_it(tmp_path: Path, stage: Stage) -> None:
    content, report = verify_model(converted(lstm(tmp_path), stage), long_steps=128)

    assert not report.weak
    assert [spec.name for spec in StepModel(content).manifest.answered] == ["y"]


@pytest.mark.parametrize("stage", [Lag(3, append=True)])
def test_an_appended_statistic_stands_behind_the_numbers_of_the_row(tmp_path: Path, stage: Stage) -> None:
    candidate = converted(Select([0, 1], width=["a", "b"]), stage, lstm(tmp_path))

    verify_model(candidate, long_steps=128)
    assert candidate.manifest.inputs[0].shape == [2]


def test_missing_values_and_sent_once_values_are_those_seen_last(tmp_path: Path) -> None:
    x = holes()
    filled = x.copy()
    last = np.zeros((2, 4), np.float32)
    for t in range(x.shape[1]):
        last = np.where(np.isnan(x[:, t]), last, x[:, t])
        filled[:, t] = last
    candidate = converted(Impute("last"), lstm(tmp_path))
    plain = convert_source(lstm(tmp_path), name="m")

    assert candidate.manifest.inputs[0].missing == "nan"
    np.testing.assert_allclose(outputs_of(candidate, x), outputs_of(plain, filled), rtol=0, atol=1e-6)


def test_ids_are_encoded_in_the_graph(tmp_path: Path) -> None:
    candidate = converted(OneHot(4), lstm(tmp_path))
    ids = np.array([[0, 3, 2, 1, 7, -1]])
    rows = np.asarray(ids[..., None] == np.arange(4), np.float32)

    assert (candidate.manifest.inputs[0].dtype, candidate.manifest.inputs[0].shape) == ("int64", [])
    plain = outputs_of(convert_source(lstm(tmp_path), name="m"), rows)
    np.testing.assert_allclose(outputs_of(candidate, ids), plain, rtol=0, atol=1e-6)


def test_chunks_of_a_pipeline_take_one_run(tmp_path: Path) -> None:
    stages = [Standardize(MEAN, STD), RollingMean(5), RollingStd(3), Lag(2), Diff(1)]
    _, report = verify_model(converted(*stages, lstm(tmp_path)), long_steps=128)

    assert report.chunk is not None
    assert report.chunk.chunk == "dynamic", report.chunk


def test_a_wrong_stage_is_refused(tmp_path: Path) -> None:
    class Wrong(Standardize):
        def reference(self, values: Array) -> Array:
            return super().reference(values) * 1.01

    with pytest.raises(ParityError):
        verify_model(converted(Wrong(MEAN, STD), lstm(tmp_path)), long_steps=128)


def test_models_are_joined_one_behind_the_other(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    onnx.save(batch_first("yt = LSTM <hidden_size = 5> (xt, W, R, B)", **LSTM), first)
    text = "(float[batch, time, 5] x) => (float[batch, time, 2] z) { a = CumSum (x, axis) z = MatMul (a, D) }"
    onnx.save(graph(text, axis=np.int64(1), D=(5, 2), opset=15), second)
    x = np.random.default_rng(0).standard_normal((1, 20, 4)).astype(np.float32)
    middle = outputs_of(convert_source(first, name="a"), x)
    want = outputs_of(convert_source(second, name="b"), middle)
    joined = converted(first, Standardize(0.1, 2.0), Standardize(0.1, 2.0).inverse(), second)

    np.testing.assert_allclose(outputs_of(joined, x), want, rtol=1e-5, atol=1e-5)


def test_a_second_model_may_have_inputs_of_its_own(tmp_path: Path) -> None:
    second = tmp_path / "second.onnx"
    text = """(float[b, t, 5] y, float[b, t, 5] more) => (float[b, t, 5] z) { s = Add (y, more) z = CumSum (s, a) }"""
    onnx.save(graph(text, a=np.int64(1)), second)

    whole = converted(lstm(tmp_path), second)

    assert [spec.name for spec in whole.manifest.inputs] == ["x", "more"]
    content, report = verify_model(whole, long_steps=128)
    assert not report.weak
    inputs = {"x": np.ones((2, 40, 4), np.float32), "more": np.ones((2, 40, 5), np.float32)}
    assert stepped(StepModel(content), inputs)[0]["z"].shape == (2, 40, 5)


def test_an_input_keeps_its_name_where_a_tensor_inside_the_other_model_has_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    text = "(float[b, t, 2] raw) => (float[b, t, 2] y, float[b, t, 2] sums) { sums = CumSum (raw, a) y = Neg (sums) }"
    onnx.save(graph(text, a=np.int64(1)), first)
    text = "(float[b, t, 2] y) => (float[b, t, 2] z) { raw = CumSum (y, a) sums = Neg (raw) z = CumSum (sums, a) }"
    onnx.save(graph(text, a=np.int64(1)), second)

    joined = converted(first, second)

    verify_model(joined, long_steps=128)
    assert [spec.name for spec in joined.manifest.inputs] == ["raw"]
    assert [spec.name for spec in joined.manifest.answered] == ["sums", "z"]


def test_an_input_of_the_first_model_may_have_the_name_of_an_output_of_the_second(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    onnx.save(graph("(float[b, t, 2] x) => (float[b, t, 2] z) { z = CumSum (x, a) }", a=np.int64(1)), first)
    onnx.save(graph("(float[b, t, 2] z) => (float[b, t, 2] x) { x = CumSum (z, a) }", a=np.int64(1)), second)

    content, _ = verify_model(converted(first, second), long_steps=128)

    model = StepModel(content)
    assert [spec.name for spec in model.manifest.inputs] == ["x"]
    assert [(spec.name, spec.tensor) for spec in model.manifest.answered] == [("x", "x/answer")]
    assert model.manifest.verified is not None
    assert [*(model.manifest.verified.model_extra or {})["scale"]] == ["x"]
    x = np.ones((1, 4, 2), np.float32)
    np.testing.assert_array_equal(stepped(model, {"x": x})[0]["x"][0, :, 0], [1, 3, 6, 10])


def test_files_before_and_after_are_part_of_the_written_graph(tmp_path: Path) -> None:
    rows, whole = tmp_path / "rows.onnx", tmp_path / "whole.onnx"
    onnx.save(graph("(float[n, 3] raw) => (float[n, 4] x) { x = MatMul (raw, D) }", D=(3, 4)), rows)
    onnx.save(graph("(float[b, t, 5] y) => (float[b, t, 5] z) { z = CumSum (y, a) }", a=np.int64(1)), whole)
    done = export_source(str(lstm(tmp_path)), tmp_path / "m.onnx", before=[rows], after=[whole])
    manifest = StepModel(done.path).manifest

    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("raw", [3])]
    assert [spec.name for spec in manifest.answered] == ["z"]


def test_a_stage_follows_an_answer_for_the_whole_sequence_only_if_it_needs_no_other_timestep(tmp_path: Path) -> None:
    text = "(float[b, t, 4] x) => (float[b, 4] y) { c = CumSum (x, a) y = Gather <axis = 1> (c, last) }"
    path = tmp_path / "last.onnx"
    onnx.save(graph(text, a=np.int64(1), last=np.int64(-1)), path)

    verify_model(converted(path, Standardize(2.0, 3.0).inverse()), long_steps=128)
    with pytest.raises(RefusedModelError, match="uses earlier timesteps"):
        verify_model(converted(path, EWMA(0.1)), long_steps=128)


def test_a_model_of_rows_with_an_input_of_its_own_follows_an_answer_for_the_whole_sequence(tmp_path: Path) -> None:
    last, rows = tmp_path / "last.onnx", tmp_path / "rows.onnx"
    text = "(float[b, t, 4] x) => (float[b, 4] y) { c = CumSum (x, a) y = Gather <axis = 1> (c, last) }"
    onnx.save(graph(text, a=np.int64(1), last=np.int64(-1)), last)
    onnx.save(graph("(float[n, 4] y, float[n, 4] more) => (float[n, 4] z) { z = Mul (y, more) }"), rows)

    whole = converted(last, rows)
    _, report = verify_model(whole, long_steps=128)

    assert [spec.name for spec in whole.manifest.inputs] == ["x", "more"]
    assert not report.weak


def test_names_of_columns_become_labels(tmp_path: Path) -> None:
    candidate = converted(Select(["c", "a", "b", "d"], width=["a", "b", "c", "d"]), Standardize(), lstm(tmp_path))

    assert candidate.manifest.inputs[0].model_dump()["labels"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Standardize(0.0, 0.0), "expected numbers above 0"),
        (lambda: Standardize([1.0, np.inf]), "expected a finite number"),
        (lambda: MinMax(1.0, 1.0), "expected `high` above `low`"),
        (lambda: Clip(np.nan, 1.0), "expected a finite number"),
        (lambda: Impute("median"), "expected 'last', 'mean' or numbers"),
        (lambda: Lag(0), "expected a whole number of at least 1"),
        (lambda: RollingMean(1), "expected a whole number of at least 2"),
        (lambda: EWMA(0.0), "expected a number above 0"),
        (lambda: OneHot(1), "expected a whole number of at least 2"),
        (lambda: Select([], width=3), "at least one column"),
        (lambda: Select([3], width=3), "has no column 3"),
        (lambda: Select(["z"], width=["a"]), "has no column 'z'"),
        (lambda: Standardize().fit(["a"]), "no array of numbers"),
        (lambda: Standardize().fit([[1.0, np.nan]]), "without any finite value in column 1"),
        (lambda: Pipeline([Lag(1)]), "has no model"),
    ],
)
def test_a_wrong_parameter_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        make()


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([Standardize([1.0, 2.0])], r"`offset` of shape \[2\]"),
        ([Lag(1), Impute("last")], "cannot take them"),
        ([Clip(), Impute("last")], "cannot take them"),
        ([Impute("mean")], "has no mean"),
        ([OneHot(3)], "returns 3 numbers"),
        ([Select([0], width=9)], "returns 1 numbers"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(tmp_path: Path, parts: list[Any], problem: str) -> None:
    with pytest.raises(UnclearModelError, match=problem):
        converted(*parts, lstm(tmp_path))


def test_what_has_no_inverse_is_refused() -> None:
    with pytest.raises(UnclearModelError, match="Lag has no inverse"):
        Lag(1).inverse()


@pytest.mark.parametrize(
    ("stage", "given"),
    [
        (Log, {"offset": [1.0]}),
        (Log, {"floor": [1.0]}),
        (Log, {"base": [2.0]}),
        (Select, {"columns": [0], "width": 2.5}),
    ],
)
def test_a_list_in_the_place_of_a_number_is_refused(stage: Callable[..., Any], given: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="expected a"):
        stage(**given)
