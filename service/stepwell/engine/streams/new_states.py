"""`NewState`: the state that replaces a stream's; and what operations on whole streams read of a record."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from msgspec.structs import replace

from stepwell.engine.packing import prediction_bytes
from stepwell.errors import ServiceError, wrong_state_size
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell.store.record import HAD_KEY, Kind, Record, SourcePosition, blake2b_128, extend_history
from stepwell.types import StreamKey


@dataclass(frozen=True, slots=True)
class NewState:
    """The new state of a stream.

    Attributes:
        kind: The operation.
        step: The stream's step afterwards.
        fingerprint: The model version that continues the stream, 8 bytes.
        state: One packed state row.
        outputs: The last stored prediction before that state, packed; empty: none.
        source_digest: Digest of the source state, mixed into the history hash if `op_id` does not identify it; else
            empty.
        moved: The field `moved` of the record.
    """

    kind: Kind
    step: int
    fingerprint: bytes
    state: bytes
    outputs: bytes = b""
    source_digest: bytes = b""
    moved: int = 0

    def record(
        self,
        op_id: bytes,
        history_hash: bytes,
        *,
        created_ms: int | None = None,
        had_key: bool = False,
        sources: tuple[SourcePosition, ...] = (),
    ) -> Record:
        """Return the record of a stream with this state, in a new epoch.

        Args:
            op_id: Identifies the operation, 16 bytes.
            history_hash: The history that the record continues, 16 bytes.
            created_ms: When the stream was created, Unix time in milliseconds; None: now.
            had_key: The request has an idempotency key.
            sources: The positions of sources that it keeps.
        """
        now = int(time.time() * 1000)
        mixed_op_id = blake2b_128(op_id, self.source_digest) if self.source_digest else op_id
        [after] = extend_history([history_hash], self.kind, [mixed_op_id], self.fingerprint)
        return Record(
            epoch=secrets.randbits(64),
            step=self.step,
            length=0,
            flags=self.kind | (HAD_KEY if had_key else 0),
            op_id=op_id,
            history_hash=after,
            fingerprint=self.fingerprint,
            updated_ms=now,
            created_ms=now if created_ms is None else created_ms,
            outputs=self.outputs,
            state=self.state,
            sources=sources,
            moved=self.moved,
        )


async def responding_part(models: ModelRegistry, model: str, record: Record) -> tuple[ServedModel | None, Record]:
    """Return the version that responded last to a stream, None if it cannot be loaded, and the stream's record of it.

    Args:
        models: The loaded models.
        model: The model's name.
        record: The stream's record; that of joined versions is returned as the record of one of them.
    """
    served = await models.find(model, record.fingerprint, record.state)
    if served is None or (joined := served.joined) is None:
        return served, record
    part = served.responding_part(record.state)
    if part is None:
        raise wrong_state_size(len(record.state), joined.state_bytes)
    state = joined.part(record.state, served.parts.index(part))
    return part, replace(record, fingerprint=part.fingerprint, state=state)


async def last_prediction_of(models: ModelRegistry, model: str, record: Record) -> bytes:
    """Return the bytes of the last prediction in a record; empty if it has none."""
    served = await models.find(model, record.fingerprint, record.state)
    size = 0 if served is None else prediction_bytes(served.manifest.answered)
    return record.outputs[-size:] if 0 < size <= len(record.outputs) else b""


def no_stream(key: StreamKey) -> ServiceError:
    """Return the error for a request that needs an existing stream."""
    return ServiceError(
        "stream_not_found", f"There is no stream {key.stream!r} of this model.", fix="Its first step creates it."
    )
