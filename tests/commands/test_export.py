"""`stepwell export` on the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from stepwell_export.runtime.errors import FileError, ParityError, WeakProofError
from stepwell_export.runtime.step_model import StepModel
from tests.commands.program import run_stepwell
from tests.model_export.streaming import zoo_parts

keras = pytest.importorskip("keras", reason="Keras is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurrent model in a `.keras` file, large enough that different summation orders give different bits."""
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("source") / "small.keras"
    keras.Sequential([keras.Input((None, 2)), keras.layers.SimpleRNN(32), keras.layers.Dense(1, name="y")]).save(path)
    return path


def test_the_table_and_the_json_document_have_every_comparison_and_the_file_is_written(
    tmp_path: Path, source: Path
) -> None:
    done = run_stepwell("export", source, "-o", tmp_path / "pump.onnx", "--name", "valve")
    report = json.loads(run_stepwell("export", source, "-o", tmp_path / "pump.onnx", "--json").stdout)

    assert done.exit_code == 0
    assert "valve: step by step against keras" in done.stdout
    columns = ["output", "difference", "relative", "allowed", "timestep", "sequence", "numbers"]
    assert columns in [line.split() for line in done.stdout.splitlines()], "it fits into 80 columns"
    assert re.search(r"^values:  output y: \S+ at most, \S+ in the middle, \d+% distinct$", done.stdout, re.MULTILINE)
    lines = ["parity:", "covered:", "not:", "long:", "alone:", "saved:", "chunks:", "speed:"]
    lines.append(f"written: {tmp_path / 'pump.onnx'}")
    assert [line for line in lines if f"\n{line}" not in done.stdout] == []
    assert (report["name"], [line["name"] for line in report["outputs"]]) == ("pump", ["y"])
    assert report["parity"]["max_abs"] <= 1e-5
    assert report["bytes"] == (tmp_path / "pump.onnx").stat().st_size
    assert (report["drift"]["steps"], report["parity"]["long_steps"]) == (2000, 2000)
    assert report["chunk_lengths"] == [[64], [1, 7, 2, 13], [512]]
    assert {"max_abs_alone", "max_abs_chunk", "max_abs_saved", "skipped"} <= report.keys()
    assert {timing["steps"] for timing in report["chunk"]["timings"]} >= {1}


def test_the_next_commands_are_printed(tmp_path: Path, source: Path) -> None:
    """The curl line has one timestep of zeros; a folder per version is found as the service finds it."""
    flat = run_stepwell("export", source, "-o", tmp_path / "pump.onnx").stdout
    versioned = run_stepwell("export", source, "-o", tmp_path / "models/pump/3/model.onnx").stdout

    assert f"serve:   stepwell serve --models {tmp_path}\n" in flat
    assert f"serve:   stepwell serve --models {tmp_path / 'models'}\n" in versioned
    for printed in (flat, versioned):
        assert "/v1/models/pump/streams/first/step" in printed
        assert json.loads(shlex.split(printed.partition("step:")[2])[-1])["inputs"].popitem()[1] == [0, 0]


def test_an_export_without_parity_fails_and_writes_nothing(tmp_path: Path, source: Path) -> None:
    done = run_stepwell("export", source, "-o", tmp_path / "pump.onnx", "--tolerance", "0")

    assert (done.exit_code, type(done.exception)) == (1, ParityError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["model.keras"], ["model.keras", "-o", "a.onnx", "--tolerance", "inf"]])
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    assert run_stepwell("export", *words).exit_code == 2


def test_feedback_is_checked_before_anything_is_written(tmp_path: Path, source: Path) -> None:
    done = run_stepwell("export", source, "-o", tmp_path / "pump.onnx", "--feedback", "y=x")

    assert done.exit_code == 1
    assert "no such input" in str(done.exception) or "same shape" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_proof_that_is_weak_writes_nothing_unless_it_is_accepted(tmp_path: Path, source: Path) -> None:
    words = ["export", source, "-o", tmp_path / "pump.onnx", "--tolerance", "0.5"]
    done, as_json = run_stepwell(*words), run_stepwell(*words, "--json")
    report = json.loads(as_json.stdout)

    assert (done.exit_code, as_json.exit_code, type(done.exception)) == (1, 1, WeakProofError)
    assert "\nweak:    output y: 0.5 is allowed, and half of its values are below" in done.stdout
    assert "written:" not in done.stdout
    assert "--accept-weak" in str(done.exception)
    assert (report["file"], report["weak"], report["parity"]["weak"]) == (None, True, True)
    assert report["outputs"][0]["scale"].keys() == {"largest", "median", "distinct"}
    assert list(tmp_path.iterdir()) == []
    assert "\nweak: " in run_stepwell(*words, "--accept-weak").stdout
    assert json.loads(run_stepwell("inspect", tmp_path / "pump.onnx", "--json").stdout)["parity"]["weak"] is True


def test_own_data_settles_a_weak_proof(tmp_path: Path, source: Path) -> None:
    np.savez(tmp_path / "own.npz", np.random.default_rng(0).normal(size=(20, 2)))
    words = ["--tolerance", "0.5", "--verify", tmp_path / "own.npz"]

    assert run_stepwell("export", source, "-o", tmp_path / "pump.onnx", *words).exit_code == 0


def test_a_tolerance_is_never_raised(tmp_path: Path, source: Path) -> None:
    words = ["--tolerance", "1e-4", "--accept-weak", "--json"]
    report = json.loads(run_stepwell("export", source, "-o", tmp_path / "pump.onnx", *words).stdout)

    assert (report["parity"]["atol"], report["parity"]["rtol"]) == (1e-4, 1e-4)


def test_labels_units_and_the_grid_are_shown_by_inspect(tmp_path: Path, source: Path) -> None:
    words = ["--labels", "y=level", "--units", "y=mm", "--every", "1m", "--labels", "input_layer=up, down"]
    words += ["--units", "input_layer=C,kPa"]
    given = keras.models.load_model(source).inputs[0].name
    words = [word.replace("input_layer", given) for word in words]
    assert run_stepwell("export", source, "-o", tmp_path / "pump.onnx", *words).exit_code == 0
    told = json.loads(run_stepwell("inspect", tmp_path / "pump.onnx", "--json").stdout)

    assert (told["inputs"][0]["labels"], told["inputs"][0]["unit"]) == (["up", "down"], ["C", "kPa"])
    assert (told["outputs"][0]["labels"], told["outputs"][0]["unit"]) == (["level"], "mm")
    table = run_stepwell("inspect", tmp_path / "pump.onnx").stdout
    assert "in mm; level" in table
    assert "up in C, down in kPa" in table
    assert told["every"] == "1m"
    assert "1m, from one timestep to the next" in table


def test_graphs_before_and_after_are_joined_with_the_model(tmp_path: Path, source: Path) -> None:
    halved = "(float[n, 2] raw) => (float[n, 2] x) { half = Constant <value_float = 0.5> () x = Mul (raw, half) }"
    onnx.save(zoo_parts.graph(halved), tmp_path / "pre.onnx")
    doubled = "(float[n, 1] y) => (float[n, 1] z) { z = Add (y, y) }"
    onnx.save(zoo_parts.graph(doubled), tmp_path / "post.onnx")
    files = ["--before", tmp_path / "pre.onnx", "--after", tmp_path / "post.onnx"]
    done = run_stepwell("export", source, "-o", tmp_path / "pump.onnx", *files, "--json")
    manifest = StepModel(tmp_path / "pump.onnx").manifest

    assert done.exit_code == 0
    assert [spec.name for spec in (*manifest.inputs, *manifest.answered)] == ["raw", "z"]
    assert json.loads(done.stdout)["parity"]["against"].startswith("onnxruntime")


def test_a_graph_that_is_joined_is_not_overwritten(tmp_path: Path, source: Path) -> None:
    halved = "(float[n, 2] raw) => (float[n, 2] x) { half = Constant <value_float = 0.5> () x = Mul (raw, half) }"
    onnx.save(zoo_parts.graph(halved), tmp_path / "part.onnx")
    content = (tmp_path / "part.onnx").read_bytes()
    done = run_stepwell("export", source, "-o", tmp_path / "part.onnx", "--before", tmp_path / "part.onnx")

    assert (done.exit_code, type(done.exception)) == (1, FileError)
    assert "is the file that was given" in str(done.exception)
    assert (tmp_path / "part.onnx").read_bytes() == content


def test_a_graph_that_is_not_there_is_named(tmp_path: Path, source: Path) -> None:
    done = run_stepwell("export", source, "-o", tmp_path / "pump.onnx", "--before", tmp_path / "none.onnx")

    assert (done.exit_code, type(done.exception)) == (1, FileError)
    assert "none.onnx is no ONNX file" in str(done.exception)
