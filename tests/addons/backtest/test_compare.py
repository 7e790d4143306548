"""Two models on the same data: the differences are those of the models run step by step."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.backtest.differences import OutputDifferences
from stepwell.addons.backtest.histogram import OverTime
from stepwell.addons.backtest.picture import picture
from stepwell.addons.backtest.run import BacktestError, Comparison, compare, joint_inputs
from stepwell.addons.recorded import RecordedData, open_data
from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.addons.recorded.files import write_npz
from tests.graphs import Built, lstm, stateless, total, write_model


def model(folder: Path, name: str, build: Callable[[], Built]) -> StepModel:
    return StepModel(write_model(folder, name, build))


def stepped(model: StepModel, xs: Array) -> Array:
    """Return the output y of one stream, step by step, `(T, 2)`."""
    states, found = model.initial_states(1), []
    for x in xs:
        outputs, states = model.step({"x": x[None]}, states)
        found.append(outputs["y"][0])
    return np.array(found)


@pytest.fixture
def data(tmp_path: Path) -> RecordedData:
    """Streams of different lengths."""
    rng = np.random.default_rng(3)
    for n in range(5):
        write_npz(tmp_path / f"{n}.npz", x__x=rng.normal(size=(n + 1, 40 * n + 7, 4)), streams=_names(n))
    return open_data([tmp_path], _specs(), ColumnChoice())


def _names(n: int) -> Array:
    return np.array([f"{n}.{i}" for i in range(n + 1)])


def _specs() -> list[Any]:
    return list(lstm()[1].inputs)


def recorded(data: RecordedData) -> dict[str, Array]:
    rows: dict[str, list[Array]] = {}
    for part in data.read():
        names = list(data.streams)
        for code, x in zip(part.codes.tolist(), part.inputs["x"], strict=True):
            rows.setdefault(names[code], []).append(x)
    return {name: np.array(xs) for name, xs in rows.items()}


def test_the_differences_are_those_of_both_models_run_step_by_step(tmp_path: Path, data: RecordedData) -> None:
    new, old = model(tmp_path, "new", lambda: lstm(seed=1)), model(tmp_path, "old", lstm)
    expected = {name: np.abs(stepped(new, xs) - stepped(old, xs)) for name, xs in recorded(data).items()}
    everything = np.concatenate(list(expected.values()))

    comparison = compare(new, old, data)

    [y] = comparison.outputs
    largest, code, step = y.largest
    assert comparison.timesteps == len(everything)
    assert largest == pytest.approx(everything.max(), abs=1e-6)
    assert expected[comparison.streams[code]][step - 1].max() == pytest.approx(largest, abs=1e-6)
    assert y.mean == pytest.approx(everything.mean(), abs=1e-6)
    assert y.p99 == pytest.approx(np.quantile(everything, 0.99), rel=0.15)
    of_streams = dict(zip(comparison.streams, y.of_streams(len(comparison.streams)), strict=True))
    assert of_streams == pytest.approx({name: each.max() for name, each in expected.items()}, abs=1e-6)
    assert comparison.streams[comparison.worst(1)[0]] == max(expected, key=lambda name: expected[name].max())


def test_a_model_does_not_differ_from_itself(tmp_path: Path, data: RecordedData) -> None:
    one, same = model(tmp_path, "new", lstm), model(tmp_path, "old", lstm)

    comparison = compare(one, same, data)

    [y] = comparison.outputs
    assert (y.largest[0], y.mean, y.p99, y.disagree, y.non_finite) == (0.0, 0.0, 0.0, 0, 0)
    assert comparison.worst(5) == []
    assert "do not differ" in picture(comparison, "same", {})


def test_the_spans_over_time_hold_every_timestep_at_its_step() -> None:
    """The spans become longer as the steps grow; no timestep is lost and the largest difference stays at its place."""
    over_time = OverTime()
    rng = np.random.default_rng(0)
    steps = np.arange(1, 1001)
    differences = rng.random(1000)
    for part in np.array_split(np.arange(1000), 17):
        over_time.add(steps[part], differences[part])

    spans = over_time.spans()

    assert sum(span.timesteps for span in spans) == 1000
    for span in spans:
        inside = differences[span.first - 1 : span.last]
        assert span.largest == np.max(inside)
        assert span.p50 == pytest.approx(np.quantile(inside, 0.5, method="inverted_cdf"), rel=0.11)


def test_numbers_that_are_not_finite_in_one_model_only_are_counted() -> None:
    nan, inf = np.nan, np.inf
    ours = np.array([[[0.0, 1.0], [nan, 1.0], [inf, 0.0], [1.0, 0.0]]])
    theirs = np.array([[[0.0, 1.0], [nan, 1.0], [inf, 0.0], [nan, 0.0]]])
    y = OutputDifferences("y", 2)

    y.add(np.array([0]), np.array([[1, 2, 3, 4]]), ours, theirs)

    assert (y.non_finite, y.largest) == (1, (np.inf, 0, 4))


def test_another_arg_max_is_counted_for_outputs_of_several_numbers() -> None:
    classes, single = OutputDifferences("p", 2), OutputDifferences("y", 1)

    classes.add(
        np.array([0]), np.array([[1, 2]]), np.array([[[0.4, 0.6], [0.9, 0.1]]]), np.array([[[0.6, 0.4], [0.9, 0.1]]])
    )
    single.add(np.array([0]), np.array([[1, 2]]), np.ones((1, 2, 1)), np.zeros((1, 2, 1)))

    assert (classes.disagree, single.disagree) == (1, None)


def test_models_whose_inputs_or_outputs_differ_are_not_compared(tmp_path: Path, data: RecordedData) -> None:
    old = model(tmp_path, "old", lstm)

    with pytest.raises(BacktestError, match=r"Input 'x' is float32\[3\] in the new model and float32\[4\]"):
        joint_inputs(model(tmp_path, "narrow", lambda: lstm(3)), old)
    with pytest.raises(BacktestError, match="Output 'y' has shape"):
        compare(model(tmp_path, "total", lambda: total(3)), model(tmp_path, "flat", stateless), data)


def test_the_picture_is_well_formed_and_has_each_output_stream_and_limit(tmp_path: Path, data: RecordedData) -> None:
    comparison: Comparison = compare(model(tmp_path, "new", lambda: lstm(seed=1)), model(tmp_path, "old", lstm), data)

    drawing = ET.fromstring(picture(comparison, "new & old", {"y": 0.5}))

    texts = [element.text for element in drawing.iter() if element.text]
    assert "new & old" in texts
    assert "limit 0.5" in texts
    assert comparison.streams[comparison.worst(1)[0]] in texts
