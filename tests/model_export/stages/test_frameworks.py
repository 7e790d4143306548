"""Pipelines around models of each framework, against pandas and scikit-learn where they are installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.exporter import convert_source, export_source
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import EWMA, Diff, Impute, Lag, Pipeline, RollingMean, RollingStd, Standardize, from_sklearn
from stepwell_export.verify.runners import stepped
from tests.model_export.streaming.zoo_parts import graph


def test_a_keras_model_keeps_its_fused_layers_behind_stages() -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    keras.utils.set_random_seed(3)
    layers = [keras.layers.LSTM(6, return_sequences=True), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((None, 2), name="x"), *layers])
    stages = [Impute(0.0), Standardize([280.0, 900.0], [9.0, 40.0]), RollingMean(3)]
    content, report = verify_model(convert_source(Pipeline([*stages, model]), name="m"), long_steps=128)

    assert report.chunk is not None
    assert (report.chunk.chunk, report.chunk.why) == ("dynamic", "all timesteps at once")
    assert report.parity.against.startswith(f"numpy {np.__version__}, keras {keras.__version__}")
    assert StepModel(content).manifest.inputs[0].missing == "nan"


def test_two_keras_models_with_the_same_names_are_joined() -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    models = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        lstm = keras.layers.LSTM(3, return_sequences=True, name="rnn")
        models.append(keras.Sequential([keras.Input((None, 3), name="x"), lstm]))
    content, report = verify_model(convert_source(Pipeline(models), name="m"), long_steps=128)

    assert report.chunk is not None
    assert report.chunk.why == "all timesteps at once"
    assert len(StepModel(content).manifest.states) == 4


def test_a_branch_that_the_model_of_a_pipeline_never_took_makes_the_proof_weak(tmp_path: Path) -> None:
    body = "c = CumSum (x, a) s = Sin (c) b = Greater (s, two) y = Where (b, s, c)"
    path = tmp_path / "rare.onnx"
    onnx.save(graph(f"(float[b, t, 2] x) => (float[b, t, 2] y) {{ {body} }}", a=np.int64(1), two=np.float32(2)), path)
    _, report = verify_model(convert_source(Pipeline([Standardize(5.0, 2.0), path]), name="m"), long_steps=128)

    assert any("Greater" in reason and "never true" in reason for reason in report.reasons)


def test_a_stage_names_the_input_of_several_that_it_applies_to(tmp_path: Path) -> None:
    text = "(float[b, t, 2] x, float[b, t, 2] u) => (float[b, t, 2] y) { c = CumSum (x, a) y = Sub (c, u) }"
    path = tmp_path / "two.onnx"
    onnx.save(graph(text, a=np.int64(1)), path)
    candidate = convert_source(Pipeline([Standardize(5.0, 2.0, on="u"), Lag(1, on="x"), path]), name="m")

    verify_model(candidate, long_steps=128)
    assert {spec.name for spec in candidate.manifest.inputs} == {"x", "u"}
    with pytest.raises(UnclearModelError, match="applies to one of them"):
        convert_source(Pipeline([Lag(1), path]), name="m")


def test_a_module_that_takes_its_state_stands_behind_stages() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from tests.model_export.torch.zoo_parts import of

    torch.manual_seed(3)
    module = of(lambda m, x, h: (m.cell(x, h) * 2, m.cell(x, h)), cell=torch.nn.GRUCell(3, 4))
    spec = StepSpec(module, inputs={"x": torch.randn(2, 3)}, states={"h": torch.zeros(1, 4)})
    _, report = verify_model(
        convert_source(Pipeline([RollingMean(3), Standardize(20.0, 3.0), spec]), name="m"), long_steps=128
    )

    assert not report.weak


def test_a_masked_keras_model_is_verified_with_masked_timesteps() -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.Masking(), keras.layers.LSTM(3)])
    _, report = verify_model(convert_source(Pipeline([Standardize(5.0, 2.0), model]), name="m"), long_steps=128)

    assert "masked" in report.parity.sequences


def test_a_module_of_torch_stands_between_stages() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from tests.model_export.torch.zoo_parts import of

    torch.manual_seed(3)
    parts = {"rnn": torch.nn.GRU(2, 4, batch_first=True), "head": torch.nn.Linear(4, 1)}
    module = of(lambda m, x: m.head(m.rnn(x)[0]), **parts)
    spec = StepSpec(module, inputs={"x": torch.randn(2, 7, 2)}, time_axis=1)
    pipeline = Pipeline([Standardize([280.0, 900.0], 9.0), spec, Standardize(3.0, 7.0).inverse()])
    _, report = verify_model(convert_source(pipeline, name="m"), long_steps=128)

    assert not report.weak


@pytest.fixture
def module_with_pipeline(tmp_path: Path, sums: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A SOURCE whose function returns a pipeline with a path in it."""
    (tmp_path / "a_pipeline.py").write_text(
        "from stepwell_export import Pipeline\nfrom stepwell_export.stages import Impute\n"
        f"def build():\n    return Pipeline([Impute('last'), {str(sums)!r}])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield "a_pipeline:build"
    sys.modules.pop("a_pipeline", None)


def test_a_function_may_return_a_pipeline(module_with_pipeline: str, tmp_path: Path) -> None:
    done = export_source(module_with_pipeline, tmp_path / "m.onnx", labels={"x": ["a", "b"]}, units={"x": "mm"})
    spec = StepModel(done.path).manifest.inputs[0].model_dump()

    assert (spec["missing"], spec["labels"], spec["unit"]) == ("nan", ["a", "b"], "mm")


def test_statistics_equal_those_of_pandas(sums: Path) -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed (pip install pandas)")
    rng = np.random.default_rng(5)
    x = rng.standard_normal((60, 2)) * [3, 0.1] + [20, 1]
    x = np.where(rng.random(x.shape) < 0.1, np.nan, x).astype(np.float32)
    frame = pd.DataFrame(x.astype(np.float64)).ffill().fillna(0.0)
    whole = {
        "lag": (Lag(3, initial=0.5), frame.shift(3, fill_value=0.5)),
        "diff": (Diff(2), frame.diff(2).fillna(0)),
        "mean": (RollingMean(4), frame.rolling(4, min_periods=1).mean()),
        "std": (RollingStd(4), frame.rolling(4, min_periods=1).std(ddof=0)),
        "ewma": (EWMA(0.2), frame.ewm(alpha=0.2, adjust=False).mean()),
    }
    for name, (stage, want) in whole.items():
        content, _ = verify_model(convert_source(Pipeline([Impute("last"), stage, sums]), name="m"), long_steps=128)
        got = stepped(StepModel(content), {"x": x[None]})[0]["y"][0]
        np.testing.assert_allclose(got, want.cumsum(), rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_pipeline_of_scikit_learn_stands_in_front(sums: Path) -> None:
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed (STEPWELL_EXTRAS=sklearn)")
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (STEPWELL_EXTRAS=sklearn)")
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = np.random.default_rng(5).standard_normal((200, 4)).astype(np.float32) * [1, 5, 20, 100]
    fitted = make_pipeline(StandardScaler(), PCA(2)).fit(data)
    content, report = verify_model(convert_source(Pipeline([from_sklearn(fitted), sums]), name="m"), long_steps=128)
    got = stepped(StepModel(content), {"x": data[None, :20].astype(np.float32)})[0]["y"][0]

    assert f"scikit-learn {sklearn.__version__}" in report.parity.against
    np.testing.assert_allclose(got, fitted.transform(data[:20]).cumsum(0), rtol=1e-4, atol=1e-4)


def test_a_classifier_of_scikit_learn_stands_behind(sums: Path) -> None:
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (STEPWELL_EXTRAS=sklearn)")
    from sklearn.linear_model import LogisticRegression

    data = np.random.default_rng(5).standard_normal((200, 2)).astype(np.float32)
    fitted = LogisticRegression().fit(data, (data.sum(1) > 0).astype(int) + (data[:, 0] > 1))
    content, _ = verify_model(convert_source(Pipeline([sums, from_sklearn(fitted)]), name="m"), long_steps=128)

    assert StepModel(content).manifest.answered[0].shape == [3]


def test_the_reference_for_drift_is_of_the_values_before_the_stages(sums: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(6).normal(280, 9, (4, 30, 2)).astype(np.float32)
    x[:, ::3, 0] = np.nan
    np.savez(tmp_path / "own.npz", x=x)
    pipeline = Pipeline([Impute(280.0), Standardize(280.0, 9.0), sums])
    done = export_source(pipeline, tmp_path / "piped.onnx", name="piped", verify=tmp_path / "own.npz")
    found = StepModel(done.path).manifest.reference

    assert found is not None
    assert found.inputs["x[0]"].missing == pytest.approx(1 / 3)
    assert found.inputs["x[0]"].min == np.nanmin(x[:, :, 0])
    assert found.outputs["y[1]"].missing == 0
