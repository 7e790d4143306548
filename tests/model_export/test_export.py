"""A SOURCE becomes one file that serves, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import (
    FileError,
    ParityError,
    StepwellError,
    TensorError,
    UnclearModelError,
)
from stepwell_export.runtime.manifest import sidecar_of
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped

keras = pytest.importorskip("keras", reason="Keras is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small recurrent model in a `.keras` file."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((None, 2), name="x"), layers.GRU(3, return_sequences=True), layers.Dense(1)])
    path = tmp_path_factory.mktemp("source") / "small.keras"
    model.save(path)
    return str(path)


def test_the_written_file_serves_with_its_report(tmp_path: Path, source: str) -> None:
    done = export_source(source, tmp_path / "pump.onnx")
    model = StepModel(done.path)

    assert (model.manifest.name, model.batched) == ("pump", True)
    assert model.manifest.verified == done.report.parity
    assert done.report.parity.against.startswith(f"keras {keras.__version__}")
    assert [p.name for p in tmp_path.iterdir()] == ["pump.onnx"]


def test_the_steps_equal_the_whole_sequence_of_the_original(tmp_path: Path, source: str) -> None:
    path = export_source(source, tmp_path / "pump.onnx").path
    x = np.random.default_rng(3).standard_normal((2, 9, 2)).astype(np.float32)
    model = StepModel(path)
    outputs, _ = model.chunk({model.manifest.inputs[0].name: x}, model.initial_states(2))
    want = np.asarray(keras.saving.load_model(source)(x))

    np.testing.assert_allclose(outputs[model.manifest.answered[0].name], want, rtol=0, atol=1e-5)


def test_the_distributions_of_own_sequences_and_their_predictions_are_in_the_manifest(
    tmp_path: Path, source: str
) -> None:
    x = np.random.default_rng(5).standard_normal((6, 8, 2)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x)
    model = StepModel(export_source(source, tmp_path / "pump.onnx", verify=tmp_path / "own.npz").path)
    found = model.manifest.reference
    y = stepped(model, {model.manifest.inputs[0].name: x})[0][model.manifest.answered[0].name]

    assert found is not None
    assert (found.sequences, found.timesteps) == (6, 48)
    [first, second] = found.inputs.values()
    assert (first.min, second.max) == (float(np.min(x[:, :, 0])), float(np.max(x[:, :, 1])))
    [output, *_] = found.outputs.values()
    assert (output.count, output.min, output.max) == (48, np.min(y[:, :, 0]), np.max(y[:, :, 0]))


def test_progress_is_told(tmp_path: Path, source: str) -> None:
    told: list[tuple[str, int, int]] = []
    export_source(source, tmp_path / "pump.onnx", progress=lambda *part: told.append(part))

    assert told
    assert all(0 <= done <= parts for _, done, parts in told)


def failing(tmp_path: Path, kind: type[StepwellError], source: str, file: str = "pump.onnx", **options: object) -> str:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        export_source(source, tmp_path / file, **options)  # type: ignore[arg-type]  # each option has its own type
    assert sorted(tmp_path.rglob("*")) == before
    return caught.value.problem


def test_without_parity_the_old_file_stays(tmp_path: Path, source: str) -> None:
    (tmp_path / "pump.onnx").write_bytes(b"old")
    failing(tmp_path, ParityError, source, tolerance=0.0)

    assert (tmp_path / "pump.onnx").read_bytes() == b"old"


def test_own_sequences_that_do_not_fit_write_nothing(tmp_path: Path, source: str) -> None:
    np.savez(tmp_path / "own.npz", x=np.ones((5, 3), np.float32))

    assert "shape [1, 5, 3]" in failing(tmp_path, TensorError, source, verify=tmp_path / "own.npz")


def test_the_target_is_looked_at_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file")

    assert "notes is a file" in failing(tmp_path, FileError, "never_imported:model", "notes/pump.onnx")


def test_a_missing_folder_is_made_and_only_for_a_model_that_is_written(tmp_path: Path, source: str) -> None:
    failing(tmp_path, ParityError, source, "models/pump.onnx", tolerance=0.0)

    assert export_source(source, tmp_path / "models" / "pump.onnx").path.is_file()


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    layers = [keras.Input((None, 2), name="x"), keras.layers.GRU(4, name="cell"), keras.layers.Dense(1, name="head")]
    model = keras.Sequential(layers)
    model.layers[0].cell.bias.assign(np.full((2, 12), np.nan))

    with pytest.raises(ParityError, match=r"the original gives nan.*Weights that are not finite: .*cell") as caught:
        export_source(model, tmp_path / "pump.onnx")

    assert "batch" not in caught.value.problem
    assert "is not finite at timestep 1" in caught.value.problem
    assert "allowed" not in caught.value.problem  # there is no distance between two NaN


def test_a_missing_own_file_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    assert "own.npz" in failing(tmp_path, FileError, "never_imported:model", verify=tmp_path / "own.npz")


def test_a_sidecar_that_would_win_is_not_left_to_win(tmp_path: Path) -> None:
    sidecar_of(tmp_path / "pump.onnx").write_text("{}")

    assert "would win" in failing(tmp_path, FileError, "never_imported:model")


def test_a_name_that_cannot_be_served_is_told(tmp_path: Path) -> None:
    assert "'my pump'" in failing(tmp_path, UnclearModelError, "never_imported:model", "my pump.onnx")
