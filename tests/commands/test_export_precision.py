"""`stepwell export` with `--weights` and `--store-dtype`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stepwell_export.runtime.errors import ParityError, WeakProofError
from stepwell_export.runtime.step_model import StepModel
from tests.commands.program import run_stepwell

keras = pytest.importorskip("keras", reason="Keras is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("source") / "small.keras"
    layers = [keras.Input((None, 8)), keras.layers.GRU(64, return_sequences=True), keras.layers.Dense(1, name="y")]
    keras.Sequential(layers).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((2, 40, 8)).astype(np.float32))
    return path


def test_fewer_bits_without_own_data_are_weak(tmp_path: Path, source: Path) -> None:
    done = run_stepwell("export", source, "-o", tmp_path / "m.onnx", "--weights", "fp16", "--store-dtype", "float16")

    words = "the weights are stored as fp16 and the states are stored as float16, and random data does not show"
    assert type(done.exception) is WeakProofError
    assert words in str(done.exception)
    assert f"\nweak:    {words}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_written_model_is_smaller_and_the_change_of_the_predictions_is_reported(
    tmp_path: Path, source: Path, data: Path
) -> None:
    words = ["--weights", "int8", "--store-dtype", "float16", "--verify", data]
    report = json.loads(run_stepwell("export", source, "-o", tmp_path / "m.onnx", *words, "--json").stdout)
    table = run_stepwell("export", source, "-o", tmp_path / "m.onnx", *words).stdout
    model = StepModel(tmp_path / "m.onnx")

    assert "of the value" in table
    assert "file:    " in table
    assert "stream:  256 bytes at full precision, 128 bytes now" in table
    assert report["saved"]["bytes_per_stream"] == {"before": 256, "after": 128}
    assert report["saved"]["file"]["after"] < report["saved"]["file"]["before"] / 2
    assert report["saved"]["file"]["after"] == report["bytes"] == (tmp_path / "m.onnx").stat().st_size
    assert 1e-5 < report["parity"]["max_abs"] < 0.1
    assert (model.state_bytes, model.manifest.model_dump()["weights"]) == (128, "int8")


def test_the_given_tolerance_is_used_and_nothing_beyond_it_is_written(tmp_path: Path, source: Path) -> None:
    done = run_stepwell("export", source, "-o", tmp_path / "m.onnx", "--weights", "int8", "--tolerance", "1e-5")

    assert type(done.exception) is ParityError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--weights", "int4"], ["--store-dtype", "int8"]])
def test_an_unknown_format_is_wrong_usage(tmp_path: Path, source: Path, words: list[str]) -> None:
    assert run_stepwell("export", source, "-o", tmp_path / "m.onnx", *words).exit_code == 2


@pytest.mark.parametrize("size", [1e-9, 1e4])
def test_weights_in_fewer_bits_are_compared_at_every_size_of_the_answers(
    tmp_path: Path, data: Path, size: float
) -> None:
    """In half precision, weights of a billionth are zero: a graph that answers 0.0 for ever is no model."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((None, 8)), keras.layers.GRU(64, return_sequences=True), keras.layers.Dense(8, name="y")]
    model = keras.Sequential(layers)
    kernel, bias = model.layers[1].get_weights()
    model.layers[1].set_weights([kernel * size, bias])
    model.save(tmp_path / "sized.keras")

    words = ["--weights", "fp16", "--verify", data, "--json"]
    done = run_stepwell("export", tmp_path / "sized.keras", "-o", tmp_path / "m.onnx", *words)

    if size < 1e-6:
        assert type(done.exception) is ParityError
        assert not (tmp_path / "m.onnx").exists()
    else:
        assert json.loads(done.stdout)["weak"] is False
