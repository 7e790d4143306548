"""`stepwell adopt` on the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from model_export.adopt import adopt
from model_export.errors import RefusedModelError, UnclearModelError
from model_export.manifest import sidecar_of
from tests import graphs
from tests.commands.program import stepwell


def bare(folder: Path, build: graphs.Build) -> Path:
    """Write a graph without manifest."""
    path = folder / "pump.onnx"
    path.write_bytes(build()[0])
    return path


def found(path: Path, *words: str) -> dict[str, Any]:
    """Adopt and return the manifest."""
    document: dict[str, Any] = json.loads(stepwell("adopt", path, *words, "--json").stdout)["manifest"]
    return document


def test_what_was_found_is_printed_and_the_manifest_lies_beside_the_file(tmp_path: Path) -> None:
    path = bare(tmp_path, graphs.lstm)
    done = stepwell("adopt", path)

    assert done.exit_code == 0
    assert "-> h_next" in done.stdout
    assert "rows:    run together" in done.stdout
    assert sidecar_of(path).is_file()


def test_every_flag_reaches_the_manifest(tmp_path: Path) -> None:
    path = bare(tmp_path, graphs.noisy)
    words = ["--name", "valve", "--state", "s=s_next", "--output", "draw=random", "--output", "scrap=ignore"]
    told = json.loads(stepwell("adopt", path, *words, "--shape", "x=1x2", "--json").stdout)
    manifest = told["manifest"]

    assert (manifest["name"], told["states_found_by"]) == ("valve", {"s": "said"})
    assert [output["kind"] for output in manifest["outputs"]] == ["value", "random", "ignore"]
    assert (manifest["inputs"][0]["shape"], manifest["inputs"][0]["graph_shape"]) == ([1, 2], [2])
    assert json.loads(sidecar_of(path).read_text()) == manifest


def test_windows_and_constants_reach_the_manifest(tmp_path: Path) -> None:
    window = found(bare(tmp_path, graphs.moving_sum), "--window", "x=3", "--shape", "x=2")
    constant = found(bare(tmp_path, graphs.scaled), "--constant", "gain=7")

    assert window["windows"] == [{"input": "x", "context": 3, "axis": 0, "init": "zeros"}]
    assert constant["constants"] == {"gain": {"dtype": "int64", "value": 7}}


def test_the_command_line_that_is_told_gives_the_same_again(tmp_path: Path) -> None:
    path = bare(tmp_path, graphs.scaled)
    first = stepwell("adopt", path, "--constant", "gain=7")
    manifest = sidecar_of(path).read_text()
    [line] = [line for line in first.stdout.splitlines() if line.startswith("same as: ")]
    stepwell(*shlex.split(line.removeprefix("same as: stepwell ")))

    assert sidecar_of(path).read_text() == manifest


def test_it_asks_where_the_graph_is_open_and_writes_nothing(tmp_path: Path) -> None:
    path = bare(tmp_path, graphs.scaled)
    done = stepwell("adopt", path)

    assert (done.exit_code, type(done.exception)) == (1, UnclearModelError)
    assert not sidecar_of(path).exists()


def test_a_refused_graph_fails(tmp_path: Path) -> None:
    assert type(stepwell("adopt", bare(tmp_path, graphs.noisy)).exception) is RefusedModelError


def test_a_manifest_inside_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.fold)

    assert stepwell("adopt", path).exit_code == 1
    assert stepwell("adopt", path, "--replace").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--state", "h"],
        ["--state", "=h"],
        ["--state", "h=a", "--state", "h=b"],
        ["--constant", "gain=many"],
        ["--output", "y=maybe"],
        ["--window", "x=0"],
        ["--window", "x=long"],
        ["--shape", "x=2x"],
        ["--shape", "x=-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, words: list[str]) -> None:
    path = bare(tmp_path, graphs.scaled)

    assert stepwell("adopt", path, *words).exit_code == 2
    assert not sidecar_of(path).exists()


def test_the_library_and_the_command_find_the_same(tmp_path: Path) -> None:
    path = bare(tmp_path, graphs.fold)

    assert found(path) == json.loads(adopt(path).manifest.to_json())
