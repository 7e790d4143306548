"""A pipeline is a graph of named values: what reads what by default and by name, what is answered, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.adoption.adopt_file import adopt_file
from stepwell_export.converted import verify_model
from stepwell_export.exporter import convert_source, export_source
from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import EWMA, Clip, Impute, Lag, Multiply, Part, Pipeline, RollingMean, Select, Standardize
from stepwell_export.verify.runners import stepped
from tests.model_export.rows_apart import assert_rows_apart
from tests.model_export.streaming.zoo_parts import graph

X = np.random.default_rng(0).standard_normal((2, 30, 2)).astype(np.float32)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """The running sum of `u` less `v`, rows of 2."""
    text = "(float[b, t, 2] u, float[b, t, 2] v) => (float[b, t, 2] z) { d = Sub (u, v) z = CumSum (d, a) }"
    return saved(tmp_path / "both.onnx", text)


def saved(path: Path, text: str) -> Path:
    onnx.save(graph(text, a=np.int64(1)), path)
    return path


def run(parts: list[Any], outputs: list[str] | None = None, **inputs: Array) -> dict[str, Array]:
    """Verify a pipeline, and return its answers by name, in order."""
    content, report = verify_model(convert_source(Pipeline(parts, outputs=outputs), name="m"), long_steps=128)
    assert not report.weak
    model = StepModel(content)
    assert_rows_apart(model)
    assert {spec.name for spec in model.manifest.inputs} == set(inputs)
    return stepped(model, inputs)[0]


def test_a_value_that_no_later_part_reads_passes_by(sums: Path) -> None:
    found = run([Part(sums, to="first"), Clip(-1.0, 1.0, of="inputs.x", to="limited"), Lag(1, of="first")], x=X)

    assert list(found) == ["limited", "first"]
    np.testing.assert_array_equal(found["limited"], np.clip(X, -1, 1))
    np.testing.assert_allclose(found["first"][:, 1:], X.cumsum(1)[:, :-1], atol=1e-5)


def test_a_model_reads_values_by_the_names_given_for_its_inputs(sums: Path, both: Path) -> None:
    parts = [Standardize(1.0, 2.0, of="x", to="scaled"), Part(sums, of="scaled", to="s")]
    scaled = (X - 1) / 2
    want = (scaled.cumsum(1) - scaled).cumsum(1)

    in_order = run([*parts, Part(both, of=("s", "scaled"), to="z")], x=X)["z"]
    by_input = run([*parts, Part(both, of={"v": "scaled", "u": "s"})], x=X)["z"]

    np.testing.assert_allclose(in_order, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(by_input, in_order)


def test_a_stage_gives_the_name_that_it_read_to_its_value_and_the_input_stays_as_it_was_sent(
    sums: Path, both: Path
) -> None:
    found = run([Clip(-0.5, 0.5, of="x"), Part(both, of=("x", "inputs.x"))], x=X)

    np.testing.assert_allclose(found["z"], (np.clip(X, -0.5, 0.5) - X).cumsum(1), atol=1e-5)


def test_two_models_read_one_input_where_both_have_its_name(sums: Path, tmp_path: Path) -> None:
    text = "(float[b, t, 2] y, float[b, t, 2] x) => (float[b, t, 2] z) { d = Sub (y, x) z = CumSum (d, a) }"

    found = run([sums, saved(tmp_path / "second.onnx", text)], x=X)

    np.testing.assert_allclose(found["z"], (X.cumsum(1) - X).cumsum(1), rtol=1e-4, atol=1e-4)


def test_outputs_pick_and_order_the_answers(sums: Path) -> None:
    parts = [Part(sums, to="s"), RollingMean(2, of="s", to="mean"), EWMA(0.5, of="s", to="smooth")]

    assert list(run(parts, x=X)) == ["mean", "smooth"]
    assert list(run(parts, ["smooth", "s"], x=X)) == ["smooth", "s"]


def test_a_file_with_a_manifest_is_a_part_with_its_states(sums: Path, tmp_path: Path) -> None:
    written = export_source(str(sums), tmp_path / "written.onnx").path
    plain = run([EWMA(0.3), sums, Standardize(1.0, 3.0).inverse()], x=X)

    found = run([EWMA(0.3), Part(written, of="x", to="y"), Standardize(1.0, 3.0).inverse()], x=X)

    assert [state.input for state in StepModel(written).manifest.states]
    np.testing.assert_allclose(found["y"], plain["y"], rtol=1e-5, atol=1e-5)


def test_a_model_without_memory_is_a_part(sums: Path, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    dense = keras.Sequential([keras.Input((None, 2), name="x"), keras.layers.Dense(3, name="dense")])

    found = run([sums, Part(dense, to="out")], x=X)

    np.testing.assert_allclose(found["out"], np.asarray(dense(X.cumsum(1))), rtol=1e-4, atol=1e-4)


def test_an_input_that_one_part_needs_complete_is_not_imputed_for_another(both: Path) -> None:
    with pytest.raises(UnclearModelError, match="Clip reads 'x', whose values may be missing for another part"):
        convert(Impute("last", of="x", to="filled"), Clip(of="inputs.x", to="v"), Part(both, of=("filled", "v")))


def convert(*parts: Any, outputs: list[str] | None = None) -> Any:
    return convert_source(Pipeline(parts, outputs=outputs), name="m")


def test_an_unknown_name_is_refused_with_the_names_that_are_there(sums: Path, both: Path) -> None:
    there = r"reads 'nope', which is not there; expected one of x, y, inputs\.x"
    with pytest.raises(UnclearModelError, match=there):
        convert(sums, Lag(1, of="nope"))
    with pytest.raises(UnclearModelError, match=there):
        convert(sums, Part(both, of=("y", "nope")))
    with pytest.raises(UnclearModelError, match=there):
        convert(sums, outputs=["nope"])
    with pytest.raises(UnclearModelError, match=r"expected one of u, v, inputs\.u"):
        convert(Lag(1, of="u"), Lag(1, of="nope"), both)


def test_a_second_value_of_a_name_is_refused_unless_it_is_named(sums: Path, both: Path) -> None:
    with pytest.raises(UnclearModelError, match="gives a second value 'y'"):
        convert(sums, Part(sums, of="inputs.x"))
    assert [spec.name for spec in convert(sums, Part(sums, of="inputs.x", to="again")).manifest.answered] == [
        "y",
        "again",
    ]


def test_names_that_are_not_one_for_each_input_or_output_are_refused(both: Path) -> None:
    with pytest.raises(UnclearModelError, match=r"has the inputs \['u', 'v'\]; named are 'x'"):
        convert(Part(both, of="x"))
    with pytest.raises(UnclearModelError, match="has the outputs"):
        convert(Part(both, to={"w": "y"}))


def test_a_model_of_several_inputs_does_not_guess_which_one_reads_a_value(sums: Path, both: Path) -> None:
    with pytest.raises(UnclearModelError, match="no part has read yet are"):
        convert(sums, both)
    with pytest.raises(UnclearModelError, match="applies to one of them"):
        convert(Lag(1), both)


def test_outputs_are_names_that_differ(sums: Path) -> None:
    with pytest.raises(ManifestError, match="expected a list of names that differ"):
        Pipeline([sums], outputs=["y", "y"])
    with pytest.raises(UnclearModelError, match="an input as it was sent"):
        convert(sums, outputs=["x"])


def test_select_names_the_numbers_of_its_row_by_width(sums: Path) -> None:
    candidate = convert(Select(["b", "a"], width=["a", "b", "c"], on="x"), sums)

    assert candidate.manifest.inputs[0].model_dump()["labels"] == ["a", "b", "c"]


def written(path: Path, *parts: Any) -> Path:
    """A file with a manifest."""
    export_source(Pipeline(parts), path)
    return path


def test_a_written_file_whose_answer_has_the_name_of_its_input_is_a_part(tmp_path: Path, sums: Path) -> None:
    file = written(tmp_path / "m.onnx", Standardize(1.0, 2.0, of="x"), Part(sums, of="x", to="x"))
    want = ((X - 1) / 2).cumsum(1)

    alone, behind = run([Part(file)], x=X), run([Part(file), Standardize(1.0, 2.0)], x=X)

    assert (list(alone), list(behind)) == (["x"], ["x"])
    np.testing.assert_allclose(alone["x"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(behind["x"], (want - 1) / 2, rtol=1e-4, atol=1e-5)


def test_a_written_file_with_a_window_of_past_inputs_is_a_part(tmp_path: Path) -> None:
    file = tmp_path / "window.onnx"
    text = "(float[b, 4] x) => (float[b, 2] y) { l = Gather <axis=1> (x, o) r = Gather <axis=1> (x, n) y = Add (l, r) }"
    onnx.save(graph(text, o=np.array([0, 1]), n=np.array([2, 3])), file)
    adopt_file(file, windows={"x": 2}, shapes={"x": [2]})
    assert StepModel(file).manifest.windows

    found = run([Part(file), Standardize(1.0, 2.0)], x=X)["y"]

    want = X + np.concatenate([np.zeros_like(X[:, :1]), X[:, :-1]], axis=1)
    np.testing.assert_allclose(found, (want - 1) / 2, atol=1e-6)


def test_an_input_keeps_its_name_where_an_answer_has_it(sums: Path) -> None:
    found = run([Standardize(1.0, 2.0, of="x"), Part(sums, of="x", to="x")], x=X)

    assert list(found) == ["x"]


@pytest.mark.parametrize("of", [5, ["s", 3], {"s"}, ()])
def test_what_is_no_name_or_tuple_of_names_is_refused(sums: Path, of: Any) -> None:
    with pytest.raises(ManifestError, match="expected a name, or a tuple of names"):
        convert(Part(sums, to="s"), Multiply(of=of))
    with pytest.raises(ManifestError, match="expected a name, or a tuple of names"):
        convert(Part(sums, of=of))


def test_values_may_be_named_in_a_list(sums: Path) -> None:
    found = run([Part(sums, to="s"), Multiply(of=["s", "inputs.x"])], x=X)

    np.testing.assert_allclose(found["product"], X.cumsum(1) * X, rtol=1e-4, atol=1e-4)
