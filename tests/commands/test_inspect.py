"""`stepwell inspect` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from stepwell_export.runtime.describe import describe, load
from stepwell_export.runtime.errors import FileError, ManifestError
from tests import graphs
from tests.commands.program import run_stepwell


def one_row(reason: str) -> graphs.Built:
    """A running sum whose manifest has one row a run, with the reason."""
    graph, manifest = graphs.total()
    return graph, manifest.model_copy(update={"batch": manifest.batch.single(reason)})


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            graphs.lstm,
            ["-> h_next", "64 bytes", "run together, 256 at most", "not verified", "opset 17", "timestep by timestep"],
        ),
        (graphs.lying_batch, ["run one at a time"]),
        (lambda: one_row("'x' (Odd) is unknown"), ["run one at a time: 'x' (Odd) is unknown"]),
        (graphs.batch_axis_1, ["[2, 3]"]),
        (graphs.no_batch_axis, ["none"]),
        (graphs.scaled, ["constant", "= 3"]),
        (graphs.moving_sum, ["last 3 of x"]),
        (graphs.time_axis, ["[1, 2] in the graph"]),
        (graphs.total_half, ["stored as float16"]),
        (graphs.noisy, ["random", "ignore"]),
        (lambda: graphs.count(5), ["has initial values"]),
    ],
)
def test_the_tables_describe_the_model(tmp_path: Path, build: graphs.Build, expected: list[str]) -> None:
    done = run_stepwell("inspect", graphs.write_model(tmp_path, "pump", build))

    assert done.exit_code == 0
    assert [words for words in expected if words not in done.stdout] == []


def test_the_json_output_is_the_description(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.lstm)

    assert json.loads(run_stepwell("inspect", path, "--json").stdout) == describe(path, load(path))


def test_names_are_not_interpreted_as_markup(tmp_path: Path) -> None:
    graph, manifest = graphs.total()
    model = onnx.load_model_from_string(graph)
    model.graph.output[0].name = model.graph.node[1].output[0] = "[red]y[/red]"
    renamed = [manifest.outputs[0].model_copy(update={"name": "[red]y[/red]"})]
    built = model.SerializeToString(), manifest.model_copy(update={"outputs": renamed})
    path = graphs.write_model(tmp_path, "pump", lambda: built)

    assert "[red]y[/red]" in run_stepwell("inspect", path).stdout


def test_what_is_no_model_file_exits_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "bare.onnx").write_bytes(graphs.fold()[0])

    assert type(run_stepwell("inspect", tmp_path / "bare.onnx").exception) is ManifestError
    assert "is a folder; expected an ONNX file" in str(run_stepwell("inspect", tmp_path).exception)
    done = run_stepwell("inspect", tmp_path / "none.onnx")
    assert (done.exit_code, type(done.exception)) == (1, FileError)


@pytest.mark.parametrize("command", ["inspect", "adopt"])
def test_a_trained_model_has_to_be_exported_first(tmp_path: Path, command: str) -> None:
    (tmp_path / "pump.keras").write_bytes(b"")
    done = run_stepwell(command, tmp_path / "pump.keras")

    assert done.exit_code == 1
    assert f"stepwell export {tmp_path / 'pump.keras'} -o {tmp_path / 'pump.onnx'}" in str(done.exception)


def test_wrong_usage_is_exit_code_2() -> None:
    assert run_stepwell("inspect").exit_code == 2
