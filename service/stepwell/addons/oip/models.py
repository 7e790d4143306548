"""What the Open Inference Protocol returns of the server and its models, for HTTP and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from stepwell.addons.oip.errors import TritonError, quote, unknown_model
from stepwell.addons.oip.response_bodies import IndexEntry, ModelMetadata, ModelStats, ServerMetadata, TensorMetadata
from stepwell.addons.oip.statistics import ModelCounts, counts_by_model
from stepwell.addons.oip.tensors import DATATYPES
from stepwell.models.served import ServedModel
from stepwell.requests.auth.api_keys import Caller
from stepwell.requests.context import AppContext
from stepwell_export.runtime.manifest import TensorSpec

EXTENSIONS: Final = [
    "sequence", "sequence(string_id)", "binary_tensor_data", "parameters",
    "model_configuration", "model_repository", "statistics",
]  # fmt: skip


def server_metadata(version: str) -> ServerMetadata:
    """Return the server's name, its version, and the supported extensions of the protocol."""
    return ServerMetadata("stepwell", version, EXTENSIONS)


def model_metadata(context: AppContext, served: ServedModel, *, one_version: bool) -> ModelMetadata:
    """Return the inputs and outputs of a model; `one_version`: that was requested, so the others are not listed."""

    def tensors(specs: Sequence[TensorSpec]) -> list[TensorMetadata]:
        return [TensorMetadata(spec.name, DATATYPES[spec.dtype], [-1, *spec.shape]) for spec in specs]

    versions = [served.version] if one_version else context.engine.models.versions(served.name)
    inputs, outputs = tensors(served.manifest.inputs), tensors(served.manifest.answered)
    return ModelMetadata(served.name, [str(version) for version in versions], "onnx_onnxv1", inputs, outputs)


def model_config(context: AppContext, served: ServedModel) -> dict[str, Any]:
    """Return the parts of a model's configuration that apply to this service, as Triton's clients expect them."""
    config: dict[str, Any] = {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": context.settings.max_batch_size,
        "input": [_config_tensor(spec) for spec in served.manifest.inputs],
        "output": [_config_tensor(spec) for spec in served.manifest.answered],
        "model_transaction_policy": {"decoupled": False},
    }
    if served.stateful:
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": int(context.settings.stream_ttl_s * 1_000_000),
            "direct": {},
            "state": [
                {
                    "input_name": state.input,
                    "output_name": state.output,
                    "data_type": f"TYPE_{DATATYPES[state.dtype]}",
                    "dims": state.shape,
                }
                for state in served.manifest.states
            ],
        }
    return config


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": spec.shape}


async def model_stats(context: AppContext, served: Iterable[ServedModel] | None = None) -> ModelStats:
    """Return the statistics of models; None: of every model."""
    metrics, models = context.metrics, context.engine.models
    chosen = [models.get(name) for name in models.names()] if served is None else served
    metrics.refresh()
    counts = await asyncio.to_thread(counts_by_model, metrics)
    return ModelStats([_stats_of(model, counts.get(model.name, ModelCounts())) for model in chosen])


def repository_index(context: AppContext, *, ready_only: bool = False) -> list[IndexEntry]:
    """Return every version that is served, and the models that were unloaded unless `ready_only`."""
    models = context.engine.models
    served = [
        IndexEntry(name, str(version), "READY", "") for name in models.names() for version in models.versions(name)
    ]
    unloaded = [] if ready_only else sorted(models.unloaded)
    return [*served, *(IndexEntry(name, "", "UNAVAILABLE", "unloaded") for name in unloaded)]


async def load_model(
    context: AppContext, name: str, caller: Caller, request_id: bytes, *, has_parameters: bool
) -> None:
    """Read the models folders again, in every worker; the model, also if it was unloaded, must be served then.

    Raises:
        TritonError: The model is not served, or there were parameters.
    """
    if has_parameters:
        raise TritonError(
            "bad_request",
            f"load of {quote(name)} with parameters is not supported: put files into the folder",
            status=501,
        )
    with context.audit.operation("reload", caller, request_id) as audit:
        report = await context.reloads.set_unloaded(name, unloaded=False)
        audit.update(loaded=", ".join(report.loaded) or None, failed=len(report.failed) or None)
    failed = next((reason for reason in report.failed if reason.startswith((f"{name}.onnx:", f"{name}/"))), None)
    if failed is not None or name not in context.engine.models.names():
        reason = failed or "there is no such file in the models folders"
        raise TritonError("bad_request", f"failed to load {quote(name)}, {reason}")


async def unload_model(context: AppContext, name: str, caller: Caller, request_id: bytes) -> None:
    """Stop serving a model in every worker of every replica, until it is loaded; its streams are kept.

    Raises:
        TritonError: There is no such model, or files that are in the folders are served (`watch_models`).
        StoreUnavailableError: The store did not reply.
    """
    if context.settings.watch_models:
        raise TritonError("bad_request", "explicit model load / unload is not allowed if polling is enabled")
    models = context.engine.models
    if name in models.unloaded:
        return
    if name not in models.names():
        raise unknown_model(name, None)
    with context.audit.operation("unload", caller, request_id, model=name):
        await context.reloads.set_unloaded(name, unloaded=True)


def _stats_of(served: ServedModel, counts: ModelCounts) -> dict[str, Any]:
    """Return a model's statistics. Queue time is all but the model run: waiting for a batch, and the store."""
    count, queue_seconds = counts.answers, max(counts.answer_seconds - counts.row_seconds, 0.0)
    return {
        "name": served.name,
        "version": str(served.version),
        "inference_count": counts.timesteps,
        "execution_count": counts.runs,
        "inference_stats": {
            "success": _duration(counts.answers, counts.answer_seconds),
            "fail": _duration(counts.refusals, counts.refusal_seconds),
            "queue": _duration(count, queue_seconds),
            "compute_input": _duration(count, 0),
            "compute_infer": _duration(count, counts.row_seconds),
            "compute_output": _duration(count, 0),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
