"""The responses to requests that were applied before, from the stored predictions. Pure."""

from __future__ import annotations

import numpy as np

from stepwell.engine.packing import prediction_bytes, unpack_outputs
from stepwell.engine.protocol.positions import overlap_of, position_of
from stepwell.errors import CorruptRecordError, ServiceError
from stepwell.store.record import Record
from stepwell.types import BatchOutput, Prediction, Timestep
from stepwell_export.runtime.manifest import Array, Manifest


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


def skipped_prediction(manifest: Manifest, timestep: Timestep, record: Record, packed: bytes) -> Prediction:
    """Return the response to a request whose timesteps were all applied before, by the positions in their source.

    Args:
        manifest: The manifest of the model that computed the stored predictions.
        timestep: The request.
        record: The stream's record.
        packed: The predictions in it, or nothing if another model computed them.

    Raises:
        ServiceError: `source_passed`: no prediction of these timesteps is stored any more. `seq_conflict`: `seq` does
            not number these timesteps.
    """
    assert timestep.source is not None
    known = overlap_of(record, timestep.source).known
    n_stored = len(record.answered_at)
    if timestep.keep != "none" and len(packed) != prediction_bytes(manifest.answered) * n_stored:
        known = ()
    if not known:
        at = position_of(record.sources, timestep.source)
        raise ServiceError(
            "source_passed",
            f"These timesteps were applied before: the stream is at position {at} of this source. Their predictions "
            "are no longer stored.",
            fix="Treat them as done, and go on behind `at`.",
            applied="yes",
            step=record.step,
            state_id=record.history_hash,
            at=at,
        )
    step = record.step - (n_stored - 1 - known[-1])
    if timestep.seq is not None and timestep.seq + timestep.length - 1 != step:
        raise ServiceError(
            "seq_conflict",
            f"`seq` is {timestep.seq}, but by their source these timesteps were applied from "
            f"{step - timestep.length + 1} on.",
            fix="Read the stream, then decide whether `seq` or `source` is right.",
            step=record.step,
            state_id=record.history_hash,
            expected=record.step + 1,
        )
    outputs: dict[str, Array] = {} if timestep.keep == "none" else unpack_outputs(manifest, packed)
    rows = known if timestep.keep == "all" else known[-1:]
    unknown = timestep.length - len(known) if timestep.keep == "all" else 0
    batch = BatchOutput(
        {name: after_unknown(unknown, array[list(rows)])[None] for name, array in outputs.items()},
        [step],
        [record.history_hash if step == record.step else b""],
    )
    versions = tuple([record.versions[i] for i in rows])
    return Prediction(
        batch,
        0,
        replayed=True,
        version=versions[-1],
        skipped=timestep.length,
        unknown=unknown,
        shows_version=True,
        versions=versions_if_several((*(0,) * unknown, *versions)) if timestep.keep == "all" else (),
    )


def versions_if_several(versions: tuple[int, ...]) -> tuple[int, ...]:
    """Return the versions of predictions unless all that are known are the same one; 0: not known."""
    return versions if len({*versions} - {0}) > 1 else ()


def after_unknown(unknown: int, known: Array) -> Array:
    """Return predictions, `(T, *row)`, behind zeros for those that are not stored any more."""
    return np.concatenate([np.zeros((unknown, *known.shape[1:]), known.dtype), known]) if unknown else known
