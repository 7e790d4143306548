"""`describe` returns what a servable model takes, gives, carries and weighs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from stepwell_export.runtime.describe import describe, graph_size, load
from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import sidecar_of
from tests import graphs


def test_the_description_is_plain_data_with_every_part(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.lstm)
    found = json.loads(json.dumps(describe(path, load(path))))

    assert found["name"] == "pump"
    assert [tensor["name"] for tensor in found["inputs"]] == ["x"]
    assert [tensor["name"] for tensor in found["outputs"]] == ["y"]
    assert [(state["in"], state["out"], state["bytes"]) for state in found["states"]] == [
        ("h", "h_next", 32),
        ("c", "c_next", 32),
    ]
    assert found["bytes_per_stream"] == 64
    assert found["batch"] == {"mode": "stack", "max": 256, "together": True}
    assert found["parity"] is None
    assert len(found["fingerprint"]) == 16


def test_the_batch_is_what_the_probe_found_and_not_what_is_declared(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "liar", graphs.lying_batch)

    assert describe(path, load(path))["batch"] == {"mode": "stack", "max": 256, "together": False}


def test_weights_in_fewer_bits_are_told(tmp_path: Path) -> None:
    graph, manifest = graphs.lstm()
    manifest = manifest.model_copy(update={"weights": "int8"})
    full = graphs.write_model(tmp_path, "full", graphs.lstm)
    fewer = graphs.write_model(tmp_path, "fewer", lambda: (graph, manifest))

    assert [describe(path, load(path))["weights"] for path in (full, fewer)] == [None, "int8"]


def test_a_window_counts_in_the_bytes_of_a_stream(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "window", graphs.moving_sum)
    found = describe(path, load(path))

    assert (found["windows"][0]["bytes"], found["bytes_per_stream"]) == (12, 12)


def test_it_is_told_where_the_manifest_comes_from(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "pump", graphs.fold)
    inside = describe(path, load(path))["manifest_from"]
    sidecar_of(path).write_text(graphs.fold()[1].to_json())

    assert (inside, describe(path, load(path))["manifest_from"]) == ("file", "sidecar")


@pytest.mark.parametrize("build", [graphs.lstm, graphs.slow, graphs.noisy], ids=["plain", "subgraph", "branches"])
def test_the_graphs_size_is_what_the_onnx_package_counts(tmp_path: Path, build: graphs.Build) -> None:
    path = graphs.write_model(tmp_path, "model", build)
    model = onnx.load(str(path))
    inner = sum(len(a.g.node) for node in model.graph.node for a in node.attribute if a.HasField("g"))

    assert graph_size(path) == {
        "bytes": path.stat().st_size,
        "nodes": len(model.graph.node) + inner,
        "opset": {entry.domain: entry.version for entry in model.opset_import},
    }


def test_weights_beside_the_file_are_counted(tmp_path: Path) -> None:
    path = graphs.write_model(tmp_path, "model", graphs.lstm)
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)

    assert graph_size(path)["bytes"] == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size


def test_a_graph_without_manifest_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(graphs.fold()[0])
    with pytest.raises(ManifestError):
        load(path)
