"""The answer to a request that had been applied before, from what the store kept of its first answer. Pure."""

from __future__ import annotations

from model_export.manifest import Array, Manifest
from service.engine.packing import prediction_bytes, unpack_outputs
from service.errors import CorruptRecordError, ServiceError
from service.types import BatchOutput, Prediction, Timestep


def replay_prediction(manifest: Manifest, ask: Timestep, packed: bytes, step: int, chain: bytes) -> Prediction:
    """Return the first answer to a request again.

    Args:
        manifest: Of the model that gave it.
        ask: The request.
        packed: The predictions that were kept.
        step: Where the stream stood after it.
        chain: Its history after it.

    Raises:
        ServiceError: `seq_passed`: fewer predictions were kept than are asked for now. `state_corrupt`: they are
            none of this model's.
    """
    if ask.keep == "none":
        return Prediction(BatchOutput({}, [step], [chain]), 0, replayed=True)
    size = prediction_bytes(manifest.answered)
    if size and len(packed) % size:
        raise CorruptRecordError(f"{len(packed)} bytes of predictions are kept; one of this model's has {size}.")
    if size and len(packed) < size * (ask.length if ask.keep == "all" else 1):
        raise ServiceError(
            "seq_passed",
            f"These timesteps were applied with fewer predictions kept; the stream stands at step {step}.",
            fix="Treat it as done, and go on from `expected`.",
            applied="yes",
            step=step,
            state_id=chain,
            expected=step + 1,
        )
    outputs: dict[str, Array] = unpack_outputs(manifest, packed)
    if ask.keep == "last":
        outputs = {name: array[-1:] for name, array in outputs.items()}
    made = BatchOutput({name: array[None] for name, array in outputs.items()}, [step], [chain])
    return Prediction(made, 0, replayed=True)
