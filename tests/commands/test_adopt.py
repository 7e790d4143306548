"""`stepwell adopt` on the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_export.adoption.autoconfigure import adopt
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import sidecar_of
from stepwell_export.runtime.step_model import StepModel
from tests import graphs
from tests.commands.program import run_stepwell


def write_graph(folder: Path, build: graphs.Build) -> Path:
    """Write a graph without a manifest."""
    path = folder / "pump.onnx"
    path.write_bytes(build()[0])
    return path


def adopted_manifest(path: Path, *words: str) -> dict[str, Any]:
    """Adopt a graph and return its manifest."""
    document: dict[str, Any] = json.loads(run_stepwell("adopt", path, *words, "--json").stdout)["manifest"]
    return document


def test_the_manifest_is_printed_and_written_beside_the_file(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.lstm)
    done = run_stepwell("adopt", path)

    assert done.exit_code == 0
    assert "-> h_next" in done.stdout
    assert "rows:    run together" in done.stdout
    assert sidecar_of(path).is_file()


def test_every_flag_is_written_to_the_manifest(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.noisy)
    words = [
        "--name",
        "valve",
        "--state",
        "s=s_next",
        "--output",
        "draw=random",
        "--output",
        "scrap=ignore",
        "--every",
        "500ms",
    ]
    report = json.loads(run_stepwell("adopt", path, *words, "--shape", "x=1x2", "--json").stdout)
    manifest = report["manifest"]

    assert (manifest["name"], report["states_found_by"]) == ("valve", {"s": "said"})
    assert manifest["every"] == "500ms"
    assert [output["kind"] for output in manifest["outputs"]] == ["value", "random", "ignore"]
    assert (manifest["inputs"][0]["shape"], manifest["inputs"][0]["graph_shape"]) == ([1, 2], [2])
    assert json.loads(sidecar_of(path).read_text()) == manifest


def test_windows_and_constants_are_written_to_the_manifest(tmp_path: Path) -> None:
    window = adopted_manifest(write_graph(tmp_path, graphs.moving_sum), "--window", "x=3", "--shape", "x=2")
    constant = adopted_manifest(write_graph(tmp_path, graphs.scaled), "--constant", "gain=7")

    assert window["windows"] == [{"input": "x", "context": 3, "axis": 0, "init": "zeros"}]
    assert constant["constants"] == {"gain": {"dtype": "int64", "value": 7}}


def test_the_printed_command_line_reproduces_the_manifest(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.scaled)
    first = run_stepwell("adopt", path, "--constant", "gain=7", "--every", "1s")
    manifest = sidecar_of(path).read_text()
    [line] = [line for line in first.stdout.splitlines() if line.startswith("same as: ")]
    run_stepwell(*shlex.split(line.removeprefix("same as: stepwell ")))

    assert sidecar_of(path).read_text() == manifest


def test_an_ambiguous_or_unknown_graph_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for build, error in ((graphs.scaled, UnclearModelError), (graphs.noisy, RefusedModelError)):
        path = write_graph(tmp_path, build)
        done = run_stepwell("adopt", path)

        assert (done.exit_code, type(done.exception)) == (1, error)
        assert not sidecar_of(path).exists()


def test_an_embedded_manifest_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.fold)

    assert run_stepwell("adopt", path).exit_code == 1
    assert run_stepwell("adopt", path, "--replace").exit_code == 0


def test_wrong_usage_is_exit_code_2_and_writes_nothing(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.scaled)
    for words in (
        *("--state h", "--state =h", "--state h=a --state h=b", "--constant gain=many", "--output y=maybe"),
        *("--window x=0", "--window x=long", "--shape x=2x", "--shape x=-1", "--fold-context", "--batchify"),
        *("-o new.onnx", "--init none.npz", f"--init {__file__}", "--init h=much", "--store-dtype int8"),
    ):
        assert run_stepwell("adopt", path, *words.split()).exit_code == 2, words
    assert [file.name for file in tmp_path.iterdir()] == ["pump.onnx"]


def test_the_library_and_the_command_produce_the_same_manifest(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.fold)

    assert adopted_manifest(path) == json.loads(adopt(path).manifest.to_json())


# -------------------------------------------------------------------- initial states, store dtypes, new files


def test_initial_states_can_be_values_or_a_file(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.lstm)
    np.savez(tmp_path / "start.npz", c=np.arange(8, dtype=np.float32))
    manifest = adopted_manifest(path, "--init", "h=0.5", "--init", str(tmp_path / "start.npz"))
    states = StepModel(path).initial_states(1)
    done = run_stepwell("adopt", path, "--init", "h=[1,2,3,4,5,6,7,8]")

    assert "--init 'h=[1,2,3,4,5,6,7,8]'" in done.stdout  # of the printed command line
    assert [state["init"] != "zeros" for state in manifest["states"]] == [True, True]
    assert states["h"].tolist() == [[0.5] * 8]
    assert states["c"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_the_effect_of_storing_states_as_float16_is_reported(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.lstm)
    done = run_stepwell("adopt", path, "--store-dtype", "float16")
    report = json.loads(run_stepwell("adopt", path, "--store-dtype", "float16", "--json").stdout)

    assert "stored:  states as float16: 32 bytes per stream, 64 bytes before; outputs changed by at most" in done.stdout
    assert [state["store_dtype"] for state in report["manifest"]["states"]] == ["float16", "float16"]
    assert report["store"]["saved"] == [64, 32]
    assert 0 < report["store"]["max_abs"] < 5e-3
    assert StepModel(path).state_bytes == 32
    integers = write_graph(tmp_path, graphs.fold)
    assert type(run_stepwell("adopt", integers, "--store-dtype", "float16").exception) is RefusedModelError


def test_a_rewritten_graph_is_written_to_a_new_file(tmp_path: Path) -> None:
    path, new = write_graph(tmp_path, graphs.moving_sum), tmp_path / "new.onnx"
    before = path.read_bytes()
    done = run_stepwell("adopt", path, "--window", "x=3", "--shape", "x=2", "--fold-context", "-o", new)

    assert done.exit_code == 0
    assert "0.0e+00 largest difference from pump.onnx as it was in 100 steps" in done.stdout
    assert f"--fold-context -o {new}" in done.stdout
    assert StepModel(new).manifest.windows == []
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.onnx", "pump.onnx"]


def test_a_single_row_graph_is_batched_and_its_states_are_stored_as_float16(tmp_path: Path) -> None:
    def one_row() -> graphs.Built:
        return graphs.graph_from_text(
            """g (float[1,3] x, float[1,3] s) => (float[1,3] y, float[1,3] s_next) {
                shape = Constant <value = int64[2] {1, 3}> ()
                row = Reshape (x, shape)
                half = Constant <value = float[1] {0.5}> ()
                rest = Mul (s, half)
                s_next = Add (rest, row)
                y = Tanh (s_next)
            }"""
        ), graphs.total(3)[1]

    path, new = write_graph(tmp_path, one_row), tmp_path / "new.onnx"
    words = ["--batchify", "-o", new, "--store-dtype", "float16"]
    report = json.loads(run_stepwell("adopt", path, *words, "--json").stdout)

    assert (report["batched"], report["written"]) == (True, str(new))
    assert (StepModel(new).batched, StepModel(new).state_bytes) == (True, 6)


def test_a_refused_rewrite_leaves_no_file(tmp_path: Path) -> None:
    def without_a_rule() -> graphs.Built:
        return graphs.graph_from_text(
            """without_a_rule (float[1,3] x, float[3] s) => (float[1,3] y, float[3] s_next) {
                axis = Constant <value = int64[1] {0}> ()
                row = Squeeze (x, axis)
                total = Add (s, row)
                s_next = Hardmax <axis = 0> (total)
                y = Unsqueeze (s_next, axis)
            }"""
        ), graphs.no_batch_axis()[1]

    path, new = write_graph(tmp_path, without_a_rule), tmp_path / "new.onnx"

    assert type(run_stepwell("adopt", path, "--batchify", "-o", new).exception) is RefusedModelError
    assert [file.name for file in tmp_path.iterdir()] == ["pump.onnx"]


def test_feedback_is_written_to_the_manifest_and_the_printed_command_line(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.wave)
    done = run_stepwell("adopt", path, "--feedback", "y=x")

    assert json.loads(sidecar_of(path).read_text())["feedback"] == {"x": "y"}
    assert "--feedback y=x" in done.stdout
    assert "computed from y" in done.stdout
    rule = {"x": {"output": "y", "scale": 2, "std": "spread"}}
    assert adopted_manifest(path, "--feedback", json.dumps(rule))["feedback"] == rule


def test_invalid_feedback_writes_nothing(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.wave)
    wrong = (
        (["y"], 2),
        (['{"x": '], 2),
        (["y=x", "--feedback", "spread=x"], 2),
        (["z=x"], 1),
        (["x=y"], 1),
        (["h=x"], 1),
    )
    for words, code in wrong:
        assert run_stepwell("adopt", path, "--feedback", *words).exit_code == code, words
    assert not sidecar_of(path).exists()


def test_own_sequences_give_the_manifest_a_reference_for_drift(tmp_path: Path) -> None:
    path = write_graph(tmp_path, graphs.lstm)
    np.savez(tmp_path / "own.npz", x=np.ones((20, 6, 4), np.float32))
    done = run_stepwell("adopt", path, "--verify", tmp_path / "own.npz")

    assert "20 own sequences with 120 timesteps" in done.stdout
    assert f"--verify {tmp_path / 'own.npz'}" in done.stdout
    assert json.loads(sidecar_of(path).read_text())["reference"]["timesteps"] == 120
