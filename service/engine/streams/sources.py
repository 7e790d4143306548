"""`StateSources`: where the state of a stream can come from, besides its own timesteps: other streams, and snapshots."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from service.engine.packing import prediction_bytes
from service.errors import ServiceError
from service.models.registry import ModelRegistry, ServedModel
from service.store import keys
from service.store.record import HAD_KEY, Kind, Record, blake2b_128, decode, extend_history
from service.store.snapshots import SnapshotStore, StoredSnapshot
from service.store.state_store import StateStore
from service.types import StreamKey


@dataclass(frozen=True, slots=True)
class NewState:
    """What a stream is to hold.

    Attributes:
        kind: What brought it there.
        step: Timesteps that it counts.
        fingerprint: The model that goes on with it, 8 bytes.
        state: One packed state row.
        outputs: The last prediction that was kept on the way to that state, packed; empty: none.
        origin: Names what the state is, where the operation's name does not; its history has to cover that.
    """

    kind: Kind
    step: int
    fingerprint: bytes
    state: bytes
    outputs: bytes = b""
    source_digest: bytes = b""

    def record(self, op_id: bytes, chain: bytes, *, created_ms: int | None = None, had_key: bool = False) -> Record:
        """Return the record of a stream that holds it, in a new life.

        Args:
            op_id: Names the operation, 16 bytes.
            chain: The history that it continues.
            created_ms: When the stream was created; None: now.
            had_key: The request had an idempotency key.
        """
        now = int(time.time() * 1000)
        name = blake2b_128(op_id, self.source_digest) if self.source_digest else op_id
        [after] = extend_history([chain], self.kind, [name], self.fingerprint)
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
        )


class StateSources:
    """Finds streams and snapshots, and says what goes on from them."""

    def __init__(self, store: StateStore, shelf: ModelRegistry, snapshots: SnapshotStore) -> None:
        """Put the parts together.

        Args:
            store: Where records live.
            shelf: The models.
            snapshots: Where snapshots live.
        """
        self._store = store
        self._models = shelf
        self._snapshots = snapshots

    async def from_stream(self, key: StreamKey, *, deadline: float) -> Record:
        """Return a stream's record.

        Raises:
            ServiceError: `stream_not_found`, `state_corrupt`, `record_version`, or the store's.
        """
        [raw] = await self._store.load([keys.record_key(*key)], deadline=deadline)
        if raw is None:
            raise no_stream(key)
        return decode(raw)

    async def from_snapshot(self, key: StreamKey, name: str, *, deadline: float, use: bool = True) -> StoredSnapshot:
        """Return a snapshot of a stream.

        Args:
            key: The stream.
            name: The snapshot's.
            deadline: On the running loop's clock.
            use: A stream goes on from it, so that it lives on.

        Raises:
            ServiceError: `snapshot_not_found`, `state_corrupt`, `record_version`, or the store's.
        """
        found = await self._snapshots.get(keys.record_key(*key), name, deadline=deadline, renew_ttl=use)
        if found is None:
            raise ServiceError(
                "snapshot_not_found",
                f"Stream {key.stream!r} has no snapshot {name[:100]!a}.",
                fix="GET its `snapshots` lists them.",
            )
        return found

    def new_state_from(self, kind: Kind, model: str, record: Record, version: int | None) -> NewState:
        """Return what a stream holds that goes on from a record.

        Args:
            kind: What brings it there.
            model: The model's name.
            record: Where it goes on from.
            version: The model version that goes on with it; None: the one that wrote it.

        Raises:
            ServiceError: `model_not_found`, or `model_changed`: that version does not carry the same states.
        """
        fingerprint, outputs = record.fingerprint, self.last_prediction(model, record)
        if version is not None:
            wanted = self._models.get(model, version)
            if wanted.fingerprint != fingerprint:
                _check_same_states(self._models.by_fingerprint(model, fingerprint), wanted, record)
                fingerprint, outputs = wanted.fingerprint, b""  # another version may answer otherwise
        return NewState(kind, record.step, fingerprint, record.state, outputs, source_digest=record.history_hash)

    def last_prediction(self, model: str, record: Record) -> bytes:
        """Return the bytes of the last prediction that a record keeps, none where none is kept."""
        served = self._models.by_fingerprint(model, record.fingerprint)
        size = 0 if served is None else prediction_bytes(served.manifest.answered)
        return record.outputs[-size:] if 0 < size <= len(record.outputs) else b""


def no_stream(key: StreamKey) -> ServiceError:
    """Return the refusal of what needs a stream that is there."""
    return ServiceError(
        "stream_not_found", f"There is no stream {key.stream!r} of this model.", fix="Its first step makes it."
    )


def _check_same_states(own: ServedModel | None, wanted: ServedModel, record: Record) -> None:
    if own is not None and _states(own) == _states(wanted):
        return
    carried = "is not loaded here" if own is None else f"carries {_states(own)}"
    raise ServiceError(
        "model_changed",
        f"The state was written by model {record.fingerprint.hex()}, which {carried}; version {wanted.version} is "
        f"{wanted.fingerprint.hex()} and carries {_states(wanted)}.",
        fix="A state goes on only with a version that carries the same states: names, types and shapes.",
        step=record.step,
        state_id=record.history_hash,
    )


def _states(served: ServedModel) -> list[str]:
    return [
        f"{field.name}: {field.dtype}{list(field.shape)} stored as {field.store_dtype}"
        for field in served.step_model.fields
    ]
