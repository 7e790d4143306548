"""`DerivedStates`: the sources of a stream's state besides its own timesteps: other streams, and snapshots."""

from __future__ import annotations

from stepwell.addons.copies.snapshots import SnapshotStore, StoredSnapshot
from stepwell.engine.placing import Placing
from stepwell.engine.streams.new_states import NewState, last_prediction_of, no_stream, responding_part
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell.store import keys
from stepwell.store.record import Kind, Record, decode
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey


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
        outputs, moved = await last_prediction_of(self._models, model, record), record.moved
        fingerprint, state = record.fingerprint, record.state
        if version is not None:
            target, moved = self._models.get(model, version), self._placing.pinned(model, record.moved)
            writer, half = await responding_part(self._models, model, record)
            fingerprint, state = half.fingerprint, half.state
            if target.fingerprint != fingerprint:
                _check_same_states(writer, target, half)
                fingerprint, outputs = target.fingerprint, b""  # another version may have other outputs
        return NewState(kind, record.step, fingerprint, state, outputs, source_digest=record.history_hash, moved=moved)


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
