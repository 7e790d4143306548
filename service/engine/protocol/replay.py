"""`replay_prediction`: the response to a request that was applied before, from its stored predictions. Pure."""

from __future__ import annotations

from model_export.manifest import Array, Manifest
from service.engine.packing import prediction_bytes, unpack_outputs
from service.errors import CorruptRecordError, ServiceError
from service.types import BatchOutput, Prediction, Timestep


def replay_prediction(
    manifest: Manifest, timestep: Timestep, packed: bytes, step: int, history_hash: bytes
) -> Prediction:
    """Return the response that was returned when a request was applied.

    Args:
        manifest: The manifest of the model that computed it.
        timestep: The request.
        packed: The stored predictions.
        step: The stream's step after it.
        history_hash: The stream's history hash after it.

    Raises:
        ServiceError: `seq_passed`: fewer predictions are stored than are requested now. `state_corrupt`: they are
            not predictions of this model.
    """
    if timestep.keep == "none":
        return Prediction(BatchOutput({}, [step], [history_hash]), 0, replayed=True)
    size = prediction_bytes(manifest.answered)
    if size and len(packed) % size:
        raise CorruptRecordError(
            f"{len(packed)} bytes of predictions are stored; expected a multiple of {size}, the size of one prediction."
        )
    if size and len(packed) < size * (timestep.length if timestep.keep == "all" else 1):
        raise ServiceError(
            "seq_passed",
            f"These timesteps were applied with fewer predictions stored; the stream is at step {step}.",
            fix="Treat it as done, and continue from `expected`.",
            applied="yes",
            step=step,
            state_id=history_hash,
            expected=step + 1,
        )
    outputs: dict[str, Array] = unpack_outputs(manifest, packed)
    if timestep.keep == "last":
        outputs = {name: array[-1:] for name, array in outputs.items()}
    batch = BatchOutput({name: array[None] for name, array in outputs.items()}, [step], [history_hash])
    return Prediction(batch, 0, replayed=True)
