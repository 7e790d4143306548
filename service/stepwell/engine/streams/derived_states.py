"""`DerivedStates`: the sources of a stream's state besides its own timesteps: other streams, and snapshots."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

from stepwell.engine.packing import prediction_bytes
from stepwell.engine.placing import Placing
from stepwell.errors import ServiceError, wrong_state_size
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell.store import keys
from stepwell.store.record import HAD_KEY, Kind, Record, SourcePosition, blake2b_128, decode, extend_history
from stepwell.store.snapshots import SnapshotStore, StoredSnapshot
from stepwell.store.state_store import StateStore
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


class DerivedStates:
    """Loads streams and snapshots, and derives new states from them.

    Args:
        store: Loads records.
        models: The loaded models.
        snapshots: Loads snapshots.
        placing: Places streams on versions.
    """

    def __init__(self, store: StateStore, models: ModelRegistry, snapshots: SnapshotStore, placing: Placing) -> None:
        self._store = store
        self._models = models
        self._snapshots = snapshots
        self._placing = placing

    async def from_stream(self, key: StreamKey, *, deadline: float) -> Record:
        """Return a stream's record.

        Raises:
            ServiceError: `stream_not_found`, `state_corrupt`, `record_version`, or an error of the store.
        """
        [raw] = await self._store.load([keys.record_key(*key)], deadline=deadline)
        if raw is None:
            raise no_stream(key)
        record = decode(raw)
        self._models.joined.announce(key.model, record.fingerprint, record.state)
        return record

    async def from_snapshot(
        self, key: StreamKey, snapshot_name: str, *, deadline: float, renew_ttl: bool = True
    ) -> StoredSnapshot:
        """Return a snapshot of a stream.

        Args:
            key: The stream.
            snapshot_name: The snapshot's name.
            deadline: On the running loop's clock.
            renew_ttl: Restart its time to live, because a stream continues from it.

        Raises:
            ServiceError: `snapshot_not_found`, `state_corrupt`, `record_version`, or an error of the store.
        """
        snapshot = await self._snapshots.get(
            keys.record_key(*key), snapshot_name, deadline=deadline, renew_ttl=renew_ttl
        )
        if snapshot is None:
            raise ServiceError(
                "snapshot_not_found",
                f"Stream {key.stream!r} has no snapshot {snapshot_name[:100]!a}.",
                fix="`GET .../snapshots` lists those that it has.",
            )
        self._models.joined.announce(key.model, snapshot.record.fingerprint, snapshot.record.state)
        if renew_ttl:
            await self._models.keep(key.model, snapshot.record.fingerprint, deadline)
        return snapshot

    async def new_state_from(self, kind: Kind, model: str, record: Record, version: int | None) -> NewState:
        """Return the state of a stream that continues from a record.

        Args:
            kind: The operation.
            model: The model's name.
            record: The record to continue from.
            version: The model version that continues the stream; None: the one that wrote the record.

        Raises:
            ServiceError: `model_not_found`, or `model_changed`: that version has other states.
        """
        outputs, moved = await self.last_prediction(model, record), record.moved
        fingerprint, state = record.fingerprint, record.state
        if version is not None:
            target, moved = self._models.get(model, version), self._placing.pinned(model, record.moved)
            writer, half = await responding_part(self._models, model, record)
            fingerprint, state = half.fingerprint, half.state
            if target.fingerprint != fingerprint:
                _check_same_states(writer, target, half)
                fingerprint, outputs = target.fingerprint, b""  # another version may have other outputs
        return NewState(kind, record.step, fingerprint, state, outputs, source_digest=record.history_hash, moved=moved)

    async def last_prediction(self, model: str, record: Record) -> bytes:
        """Return the bytes of the last prediction in a record; empty if it has none."""
        served = await self._models.find(model, record.fingerprint, record.state)
        size = 0 if served is None else prediction_bytes(served.manifest.answered)
        return record.outputs[-size:] if 0 < size <= len(record.outputs) else b""


def no_stream(key: StreamKey) -> ServiceError:
    """Return the error for a request that needs an existing stream."""
    return ServiceError(
        "stream_not_found", f"There is no stream {key.stream!r} of this model.", fix="Its first step creates it."
    )


def _check_same_states(writer: ServedModel | None, target: ServedModel, record: Record) -> None:
    if writer is not None and _states(writer) == _states(target):
        return
    writer_states = "is not loaded here" if writer is None else f"has the states {_states(writer)}"
    raise ServiceError(
        "model_changed",
        f"The state was written by model {record.fingerprint.hex()}, which {writer_states}; version {target.version} "
        f"is {target.fingerprint.hex()} and has the states {_states(target)}.",
        fix="Name a version whose states have the same names, types and shapes.",
        step=record.step,
        state_id=record.history_hash,
    )


def _states(served: ServedModel) -> list[str]:
    return [
        f"{field.name}: {field.dtype}{list(field.shape)} stored as {field.store_dtype}"
        for field in served.step_model.fields
    ]
