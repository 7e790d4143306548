"""A model's metadata as in the Open Inference Protocol, and its configuration as in Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_export.manifest import Manifest, TensorSpec
from service.codec.oip.response_bodies import ModelMetadata, TensorMetadata
from service.codec.oip.tensors import DATATYPES


def config_of(model: str, manifest: Manifest, *, max_rows: int, idle_s: float, stateful: bool) -> dict[str, Any]:
    """Return a model's configuration in the form that Triton's clients expect.

    Args:
        model: The model's name.
        manifest: Its manifest.
        max_rows: Largest batch of one run.
        idle_s: Seconds after which an idle sequence expires.
        stateful: It has a state, so its requests are batched by sequence.
    """
    config: dict[str, Any] = {
        "name": model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        "input": [_config_tensor(spec) for spec in manifest.inputs],
        "output": [_config_tensor(spec) for spec in manifest.answered],
        "model_transaction_policy": {"decoupled": False},
    }
    if stateful:
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": int(idle_s * 1_000_000),
            "direct": {},
            "state": [
                {
                    "input_name": state.input,
                    "output_name": state.output,
                    "data_type": f"TYPE_{DATATYPES[state.dtype]}",
                    "dims": state.shape,
                }
                for state in manifest.states
            ],
        }
    return config


def metadata_of(model: str, versions: Sequence[int], manifest: Manifest) -> ModelMetadata:
    """Return a model's metadata."""

    def tensors(specs: Sequence[TensorSpec]) -> list[TensorMetadata]:
        return [TensorMetadata(spec.name, DATATYPES[spec.dtype], [-1, *spec.shape]) for spec in specs]

    return ModelMetadata(
        model,
        [str(version) for version in versions],
        "onnx_onnxv1",
        tensors(manifest.inputs),
        tensors(manifest.answered),
    )


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": spec.shape}
