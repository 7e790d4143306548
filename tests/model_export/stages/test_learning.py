"""Stages that learn equal their recursions, learn where there is a truth and `learn` is true, and stay in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.chunk.selection import choose_chunk
from stepwell_export.converted import ConvertedModel, verify_model
from stepwell_export.exporter import convert_source, export_source
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.precision import Precision
from stepwell_export.runtime.errors import ManifestError, ParityError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.stages import (
    EWMA,
    STFT,
    AdaptiveThreshold,
    Conformal,
    Impute,
    IntervalCoverage,
    Part,
    Pipeline,
    Readout,
    Stage,
)
from stepwell_export.stages.pipeline import RowModel
from stepwell_export.verify.runners import chunked, stepped
from stepwell_export.verify.tolerance import DEFAULT, Tolerance
from tests.model_export.rows_apart import assert_rows_apart
from tests.model_export.stages.test_stages import lstm
from tests.model_export.streaming.zoo_parts import graph

RNG = np.random.default_rng(5)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A model without memory: `z` is -x, rows of 3."""
    path = tmp_path / "rows.onnx"
    onnx.save(graph("(float[n, 3] x) => (float[n, 3] z) { z = Neg (x) }"), path)
    return path


def rowwise(path: Path, *stages: Any) -> StepModel:
    """Stages around the model of `rows`, not verified."""
    return step_model(Part(model_of(path), of="inputs.x", to="z"), *stages)


def candidate(*parts: Any, **options: Any) -> ConvertedModel:
    return convert_source(Pipeline(parts, **options), name="m")


def step_model(*parts: Any, **options: Any) -> StepModel:
    made = candidate(*parts, **options)
    return StepModel(made.proto.SerializeToString(), made.manifest)


def answers(model: StepModel, **inputs: Array) -> dict[str, Array]:
    return stepped(model, {name: np.asarray(array, np.float32) for name, array in inputs.items()})[0]


def with_holes(values: Array, share: float = 0.2) -> Array:
    return np.where(RNG.random(values.shape) < share, np.nan, values).astype(np.float32)


def quantiles(values: Array, share: float, rate: float) -> tuple[list[float], list[float]]:
    """The recursion of the contract on one list of numbers: the quantile before each, and after."""
    q = m = s = 0.0
    before, after, n = [], [], 0
    for x in map(float, values):
        if np.isnan(x):
            before.append(q)
            after.append(q)
            continue
        n += 1
        q = x if n == 1 else q
        before.append(q)
        g = max(rate, 1 / n)
        m += g * (x - m)
        s += g * (abs(x - m) - s)
        q += max(rate, n**-0.5) * s * (share - (x <= q))
        after.append(q)
    return before, after


def recursive_least_squares(features: Array, truths: Array, horizon: int, forgetting: float, ridge: float) -> Array:
    """The recursion of the contract on one sequence: the prediction at each timestep."""
    size = features.shape[1]
    w, p, n, found = np.zeros(size), np.eye(size) / ridge, 0, []
    for t, truth in enumerate(truths):
        if t >= horizon and not np.isnan(truth):
            g = features[t - horizon]
            v = p @ g
            d = forgetting + g @ v
            w += v / d * (truth - w @ g)
            p = (p - np.outer(v, v) / d) / forgetting
            n += 1
            u = np.zeros(size)
            u[n % size] = np.sqrt(1e-3 * size * (1 - forgetting) * ridge)
            v = p @ u
            d = 1 + u @ v
            w -= v / d * (w @ u)
            p -= np.outer(v, v) / d
        found.append(w @ features[t])
    return np.array(found)


@pytest.mark.slow
def test_a_pipeline_that_learns_is_verified_against_its_twins(tmp_path: Path) -> None:
    whole = candidate(
        Impute(0.0, of="x", to="filled"),
        Part(lstm(tmp_path), of="filled", to="h"),
        Readout("h", "x[0]", forgetting=0.98, horizon=2),
        Conformal("y", "x[0]", horizon=2),
        IntervalCoverage(truth="x[0]", horizon=2),
        AdaptiveThreshold("h", warm=10),
    )
    content, report = verify_model(whole, long_steps=128)
    manifest = StepModel(content).manifest

    assert not report.weak
    assert report.front is not None
    assert manifest.learn == "learn"
    assert [(spec.name, spec.missing) for spec in manifest.inputs] == [("x", "nan")]
    assert [spec.name for spec in manifest.answered] == ["coverage", "threshold", "exceeds"]
    assert {state.dtype for state in manifest.states if state.is_learned and state.input[-2] == "."} == {"float64"}
    assert report.parity.steps == 2000


def test_a_stage_whose_twin_is_wrong_is_refused(sums: Path) -> None:
    class Wrong(Readout):
        def _learn(self, w: Array, p: Array, n: Array, g: Array, truths: Array) -> tuple[Array, Array, Array]:
            return super()._learn(w, p, n, g, truths * 1.01)

    with pytest.raises(ParityError):
        verify_model(candidate(sums, Wrong("y", "t", forgetting=0.9)), long_steps=128)


def test_the_threshold_is_the_quantile_before_a_value(rows: Path) -> None:
    x = with_holes(RNG.standard_normal((2, 300, 3)))
    found = answers(rowwise(rows, AdaptiveThreshold("inputs.x", quantile=0.9, rate=0.03, warm=20)), x=np.nan_to_num(x))
    missing = answers(step_model(Impute(0.0, of="x", to="f"), Part(model_of(rows), of="f", to="z"),
                                 AdaptiveThreshold("inputs.x", quantile=0.9, rate=0.03, warm=20)), x=x)  # fmt: skip

    for data, got in ((np.nan_to_num(x), found), (x, missing)):
        for row, place in ((0, 0), (1, 2)):
            values = data[row, :, place]
            before = np.array(quantiles(values, 0.9, 0.03)[0])
            number = np.cumsum(~np.isnan(values))
            exceeds = ~np.isnan(values) & (values > before) & (number > 20)
            np.testing.assert_allclose(got["threshold"][row, :, place], before, rtol=1e-6, atol=1e-7)
            np.testing.assert_array_equal(got["exceeds"][row, :, place], exceeds)


def model_of(path: Path) -> Any:
    """The model of `rows` as a part."""
    return RowModel(read_model(path), file=path)


def test_an_interval_is_the_quantile_of_residuals_so_far(rows: Path) -> None:
    x, truth = RNG.standard_normal((2, 200, 3)), with_holes(RNG.standard_normal((2, 200, 3)))
    found = answers(rowwise(rows, Conformal("z", "t", coverage=0.8, rate=0.05, horizon=3, initial=0.7)), x=x, t=truth)
    prediction = -x.astype(np.float32)
    residual = np.full(x.shape, np.nan)
    residual[:, 3:] = np.abs(truth[:, 3:] - prediction[:, :-3])

    radius = np.array(quantiles(residual[1, :, 2], 0.8, 0.05)[1])
    radius[np.cumsum(~np.isnan(residual[1, :, 2])) == 0] = 0.7
    radius = np.maximum(radius, 0)
    np.testing.assert_allclose(found["low"][1, :, 2], prediction[1, :, 2] - radius, atol=1e-6)
    np.testing.assert_allclose(found["high"][1, :, 2], prediction[1, :, 2] + radius, atol=1e-6)


def test_the_coverage_is_the_share_of_truths_within_the_interval_lately(rows: Path) -> None:
    x, truth = RNG.standard_normal((2, 200, 3)), with_holes(2 * RNG.standard_normal((2, 200, 3)))
    stages = Conformal("z", "t", horizon=3, initial=0.7), IntervalCoverage(truth="t", rate=0.05, horizon=3, initial=0.8)
    model = step_model(Part(model_of(rows), of="inputs.x", to="z"), *stages, outputs=["low", "high", "coverage"])
    found = {name: array[1, :, 2] for name, array in answers(model, x=x, t=truth).items()}

    share, expected = 0.8, []
    for t, came in enumerate(truth[1, :, 2]):
        if t >= 3 and not np.isnan(came):
            share += 0.05 * ((found["low"][t - 3] <= came <= found["high"][t - 3]) - share)
        expected.append(share)
    np.testing.assert_allclose(found["coverage"], expected, atol=1e-6)


@pytest.mark.parametrize(("horizon", "forgetting", "ridge"), [(1, 0.97, 1.0), (4, 0.999, 0.1)])
def test_a_readout_is_recursive_least_squares(rows: Path, horizon: int, forgetting: float, ridge: float) -> None:
    x, truth = RNG.standard_normal((2, 300, 3)), with_holes(RNG.standard_normal((2, 300, 2)))
    readout = Readout("z", "t", horizon, forgetting, ridge)
    model = step_model_with_truth(rows, readout, 2)
    found = answers(model, x=x, t=truth)["y"]

    for row in (0, 1):
        for place in (0, 1):
            features = -x[row].astype(np.float32).astype(np.float64)
            want = recursive_least_squares(features, truth[row, :, place].astype(float), horizon, forgetting, ridge)
            np.testing.assert_allclose(found[row, :, place], want, rtol=1e-5, atol=1e-6)


def step_model_with_truth(rows: Path, stage: Stage, size: int) -> StepModel:
    """The model of `rows` and an own model of `t`, rows of `size`, so that the truth has such rows."""
    path = rows.with_name("truths.onnx")
    onnx.save(graph(f"(float[n, {size}] t) => (float[n, {size}] twice) {{ twice = Add (t, t) }}"), path)
    return step_model(
        Part(model_of(rows), of="inputs.x", to="z"), Impute(0.0, of="inputs.t", to="ti"),
        Part(model_of(path), of="ti", to="twice"), stage,
    )  # fmt: skip


def test_features_that_stay_zero_leave_the_others_right(rows: Path) -> None:
    steps = 20_000
    x = RNG.standard_normal((1, steps, 3)).astype(np.float32)
    x[:, :, 2] = 0
    truth = np.zeros((1, steps, 1), np.float32)
    truth[:, 1:, 0] = x[:, :-1, 0] - 2 * x[:, :-1, 1]
    model = rowwise(rows, Readout("z", "t", forgetting=0.9))
    found, states = chunked(model, {"x": x, "t": truth}, [500])

    np.testing.assert_allclose(found["y"][0, -1, 0], x[0, -1, 0] - 2 * x[0, -1, 1], rtol=1e-2)
    inverse = next(array for name, array in states.items() if name.endswith(".P"))
    assert np.isfinite(inverse).all()
    assert np.abs(inverse).max() < 1e6
    np.testing.assert_array_equal(inverse, np.swapaxes(inverse, -1, -2))


def drawn(count: int = 5, steps: int = 60) -> dict[str, Array]:
    return {
        "x": RNG.standard_normal((count, steps, 2)).astype(np.float32) / 5,
        "t": with_holes(RNG.standard_normal((count, steps, 1))),
    }


def bits(states: dict[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in states.items()}


def test_chunks_of_any_cut_learn_what_single_timesteps_do(sums: Path, tmp_path: Path) -> None:
    whole = candidate(Part(sums, to="h"), Readout("h", "t", 2, 0.97), Conformal("y", "t"), AdaptiveThreshold("h"))
    model, data = StepModel(whole.proto.SerializeToString(), whole.manifest), drawn()
    _, timed, choice = choose_chunk(whole.proto, whole.manifest, [data], DEFAULT, folder=tmp_path)
    assert choice.chunk == "dynamic", choice
    want, want_states = stepped(model, data)

    for cut in ([60], [1], [7, 2, 13]):
        found, states = chunked(timed, data, cut)
        for name, array in want.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
        for name, array in want_states.items():
            np.testing.assert_allclose(states[name].astype(float), array.astype(float), rtol=1e-4, atol=1e-5)


def test_rows_learn_apart(sums: Path) -> None:
    model = step_model(Part(sums, to="h"), Readout("h", "t", 2, 0.97), Conformal("y", "t"), AdaptiveThreshold("h"))
    data = drawn()
    _, together = stepped(model, data)

    assert model.batched
    assert_rows_apart(model)
    for row in range(5):
        _, alone = stepped(model, {name: array[row : row + 1] for name, array in data.items()})
        assert bits(alone) == bits({name: array[row : row + 1] for name, array in together.items()})


def test_where_learn_is_false_truths_count_as_missing_and_delays_move(sums: Path) -> None:
    model = step_model(Part(sums, to="h"), Readout("h", "t", 2, 0.97), Conformal("y", "t", horizon=2))
    data = drawn()
    rollout = slice(20, 31)
    hidden = {**data, "t": data["t"].copy()}
    hidden["t"][:, rollout] = np.nan
    learn = np.ones((5, 60), bool)
    learn[:, rollout] = False

    got, got_states = stepped(model, {**data, "learn": learn})
    want, want_states = stepped(model, hidden)

    assert bits(got_states) == bits(want_states)
    assert bits(got) == bits(want)


def test_whether_a_value_exceeds_is_no_sign_of_drift(sums: Path) -> None:
    whole = candidate(Part(sums, to="h"), AdaptiveThreshold("h", to=("limit", "is_high")))

    assert {spec.name: spec.is_distributed for spec in whole.manifest.answered} == {"limit": True, "is_high": False}


def test_a_threshold_answers_and_learns_nothing_where_learn_is_false(sums: Path) -> None:
    model, data = step_model(Part(sums, to="h"), AdaptiveThreshold("h", warm=3)), drawn()["x"]
    _, states = stepped(model, {"x": data})
    outputs, after = model.step({"x": data[:, 0] + 100}, states, learn=False)

    learned = [state.input for state in model.manifest.states if state.is_learned]
    assert len(learned) == 4
    assert all(after[name].tobytes() == states[name].tobytes() for name in learned)
    assert outputs["exceeds"].all()


@pytest.mark.parametrize("sizes", [[1, 1, 1, 4, 4, 4, 1, 1]])
def test_nine_tenths_of_truths_are_in_the_interval_while_noise_grows_and_shrinks(sizes: list[float]) -> None:
    steps, rows = 5000, 10
    noise = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(sizes)), sizes)
    series = np.zeros((rows, steps, 1))
    for t in range(1, steps):
        series[:, t, 0] = 0.8 * series[:, t - 1, 0] + noise[t] * RNG.standard_normal(rows)
    found = Conformal("p", "x", coverage=0.9).reference((0.8 * series, series))
    inside = (found["low"][:, :-1] <= series[:, 1:]) & (series[:, 1:] <= found["high"][:, :-1])

    shares = inside[:, 999:, 0].mean(axis=1)
    assert 0.88 <= shares.min() <= shares.max() <= 0.92


def test_fewer_bits_leave_what_is_learned_and_the_constants_of_stages(tmp_path: Path) -> None:
    whole = candidate(
        Impute(0.0, of="x", to="f"), Part(lstm(tmp_path), of="f", to="h"), Readout("h", "x[0]"), Conformal("y", "x[0]")
    )
    precision = Precision(store_dtype="float16")
    lowered = precision.lower(whole)

    kept = {state.input: state.store_dtype for state in lowered.manifest.states if state.is_learned}
    assert "Readout.P" in kept
    assert set(kept.values()) == {"float64", "float32", "bool"}
    assert {state.store_dtype for state in lowered.manifest.states if not state.is_learned} == {"float16"}
    assert precision.kept_in(whole) == "what stages have learned stays as it is, float64"
    assert Precision(weights="fp16").kept_in(whole) == "constants of stages stay as they are"


def test_stages_learn_from_what_states_in_fewer_bits_give(sums: Path) -> None:
    precision = Precision(store_dtype="float16")
    lowered = precision.lower(candidate(EWMA(0.1), Part(sums, to="h"), Readout("h", "t", forgetting=0.9)))
    _, report = verify_model(lowered, default=Tolerance(precision.atol, precision.rtol, scaled=True), long_steps=128)

    assert "driven sequences" in [skipped.what for skipped in report.skipped]


def test_a_written_file_keeps_learn_and_runs(sums: Path, tmp_path: Path) -> None:
    written = tmp_path / "whole.onnx"
    export_source(Pipeline([Part(sums, to="h"), AdaptiveThreshold("h", warm=3)]), written)
    again = step_model(Part(written), AdaptiveThreshold("threshold", to=("t", "e"), warm=1))

    assert StepModel(written).manifest.learn == "learn"
    assert again.manifest.learn == "learn"
    assert len([state for state in again.manifest.states if state.is_learned]) == 8


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: AdaptiveThreshold("y", quantile=1.0), "`quantile` is 1.0; expected a number above 0 and below 1"),
        (lambda: AdaptiveThreshold("y", warm=-1), "`warm` is -1; expected a whole number of at least 0"),
        (lambda: Conformal("y", coverage=90), "`coverage` is 90"),
        (lambda: Conformal("y", horizon=0), "`horizon` is 0; expected a whole number of at least 1"),
        (lambda: Conformal("y", truth=""), "expected an input, `x`, or one of its numbers"),
        (lambda: Conformal("y").fit([np.nan]), "without any finite value"),
        (lambda: Readout("h", forgetting=1.1), "above 0 and at most 1"),
        (lambda: Readout("h", ridge=0), "`ridge` is 0; expected a number above 0"),
    ],
)
def test_a_wrong_parameter_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(ManifestError, match=problem):
        make()


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (Readout("y", "x[2]"), r"has the truth 'x\[2\]'; a row of 'x' has 2 numbers"),
        (Conformal("y", "x[0]"), r"a prediction with 2 numbers and the truth 'x\[0\]' with 1"),
        (Conformal("y", "x", initial=[1.0, 2.0, 3.0]), r"`initial` of shape \[3\]"),
        (Readout("nope", "x[0]"), "reads 'nope', which is not there"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(sums: Path, stage: Stage, problem: str) -> None:
    with pytest.raises(UnclearModelError, match=problem):
        candidate(Impute(0.0, of="x", to="f"), Part(sums, of="f"), stage)


def test_a_model_that_reads_a_truth_needs_an_impute(sums: Path) -> None:
    with pytest.raises(UnclearModelError, match="reads 'x', whose values may be missing for another part"):
        candidate(sums, Conformal("y", "x"))


def test_a_reference_takes_values_by_name_or_in_order() -> None:
    prediction, truth = RNG.standard_normal((2, 1, 50, 1))
    stage = Conformal("p", "x")

    np.testing.assert_array_equal(
        stage.reference({"x": truth, "p": prediction})["low"], stage.reference(prediction, truth)["low"]
    )


def test_fitted_residuals_give_the_first_radius() -> None:
    stage = Conformal("y", coverage=0.5).fit([[1.0], [-3.0], [2.0], [np.nan]])

    np.testing.assert_allclose(stage.initial, [2.0])


@pytest.mark.parametrize(
    ("truth", "problem"),
    [("h", "'h', which is a value that a part gives"), ("X[0]", "'X', which is not there; the inputs are x")],
)
def test_a_truth_that_is_a_slip_is_refused_with_the_inputs_that_are_there(sums: Path, truth: str, problem: str) -> None:
    with pytest.raises(UnclearModelError, match=problem):
        candidate(Part(sums, to="h"), Readout("h", truth))


def test_a_truth_that_is_said_to_be_an_input_may_have_almost_the_name_of_another(sums: Path) -> None:
    made = candidate(Part(sums, to="h"), Readout("h", "inputs.X[0]"))

    assert [spec.name for spec in made.manifest.inputs] == ["x", "X"]


@pytest.mark.parametrize("read", ["magnitude", "phase"])
def test_a_phase_beside_what_learns_is_verified_as_what_it_turns(tmp_path: Path, read: str) -> None:
    path = tmp_path / "turn.onnx"
    onnx.save(graph("(float[n, 5] magnitude) => (float[n, 5] y) { y = Neg (magnitude) }"), path)
    parts = [
        STFT(8, 2, form="polar", of="x"), Part(model_of(path), of="magnitude", to="y"),
        AdaptiveThreshold(read),
    ]  # fmt: skip
    made = convert_source(Pipeline(parts, outputs=["phase", "magnitude", "exceeds"]), name="m")

    kinds = {spec.name: spec.kind for spec in made.manifest.outputs}
    assert (kinds["phase"], kinds["phase.turned"]) == ("ignore", "value")
    content, _ = verify_model(made, long_steps=128)
    assert [spec.name for spec in StepModel(content).manifest.answered] == ["phase", "magnitude", "exceeds"]
