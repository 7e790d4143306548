"""Everything that is known about a servable model file, as plain data for people and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepwell_export.runtime.errors import FileError
from stepwell_export.runtime.manifest import sidecar_of
from stepwell_export.runtime.operator_scan import contents_of, weight_files
from stepwell_export.runtime.protobuf import Message, opened
from stepwell_export.runtime.step_model import StepModel

_TRAINED = (".keras", ".h5")


def check_onnx_file(path: Path) -> None:
    """Check that a path may be that of an ONNX model, before it is loaded.

    Raises:
        FileError: There is no such file, or it is a folder or a trained model.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected an ONNX file.", fix="Give the path of a file in it.")
    if not path.is_file():
        raise FileError(f"{path} is not there; expected an ONNX file.", fix="Check the path.")
    if path.suffix in _TRAINED:
        target = path.with_suffix(".onnx")
        raise FileError(
            f"{path} is a trained model, not an exported one; expected an ONNX file.",
            fix=f"Export it first: stepwell export {path} -o {target}; then give {target}.",
        )


def load(path: Path) -> StepModel:
    """Load a model from a file.

    Raises:
        FileError: There is no such file, or it is a folder or a trained model.
        ManifestError: It has no manifest, or one that does not fit.
        ModelLoadError: onnxruntime cannot load or run it.
    """
    check_onnx_file(path)
    return StepModel(path)


def describe(path: Path, model: StepModel) -> dict[str, Any]:
    """Return the inputs, outputs, states and sizes of a loaded model, as plain data.

    Returns:
        Keys `file`, `manifest_from` (`file` or `sidecar`), `name`, `inputs`, `outputs`, `states`, `latency`, `every`,
        `constants`, `windows` (as in the manifest; states and windows with `bytes`), `bytes_per_stream`, `batch`
        (`mode`, `max`, and `together`: whether the probe found that rows can be run together), `chunked` (whether
        many timesteps of a stream are one run), `weights` (`fp16`, `int8`, or None where they are as they were),
        `parity` (None where the model was not verified against anything), `fingerprint` and `graph` (`bytes`,
        `nodes`, `opset`).
    """
    manifest = model.manifest
    parts = manifest.model_dump(mode="json", by_alias=True)
    sizes = {field.name: field.nbytes for field in model.fields}
    return {
        "file": str(path),
        "manifest_from": "sidecar" if sidecar_of(path).is_file() else "file",
        "name": manifest.name,
        "inputs": parts["inputs"],
        "outputs": parts["outputs"],
        "states": [{**state, "bytes": sizes[state["in"]]} for state in parts["states"]],
        "latency": manifest.latency,
        "every": manifest.every,
        "learn": manifest.learn,
        "constants": parts["constants"],
        "windows": [
            {**part, "bytes": sizes[window.state_name]}
            for part, window in zip(parts["windows"], manifest.windows, strict=True)
        ],
        "bytes_per_stream": model.state_bytes,
        "batch": {**parts["batch"], "together": model.batched},
        "chunked": model.chunked,
        "weights": parts.get("weights"),
        "parity": parts["verified"],
        "fingerprint": model.fingerprint.hex(),
        "graph": graph_size(path),
    }


def graph_size(path: Path) -> dict[str, Any]:
    """Return a graph's size: `bytes` (weights beside it included), `nodes` (subgraphs included), `opset` by domain.

    Source: onnx.proto: ModelProto.graph = 7, .opset_import = 8; OperatorSetIdProto.domain = 1, .version = 2;
    GraphProto.node = 1; NodeProto.attribute = 5; AttributeProto.g = 6, .graphs = 11.
    """
    with opened(path) as content:
        model = Message(content)
        size, nodes = len(content), sum(map(_count_nodes, model.messages(7)))
        opset = {entry.text(1): entry.integer(2) for entry in model.messages(8)}
    beside = sum(extra.stat().st_size for extra in weight_files(path, contents_of(path)) if extra.is_file())
    return {"bytes": size + beside, "nodes": nodes, "opset": opset}


def _count_nodes(graph: Message) -> int:
    nodes = graph.messages(1)
    inner = [body for node in nodes for attribute in node.messages(5) for body in attribute.messages(6, 11)]
    return len(nodes) + sum(map(_count_nodes, inner))
