"""`StreamCopies`: forks streams, creates and deletes snapshots, exports and imports states."""

from __future__ import annotations

import asyncio

import numpy as np
from msgspec.structs import replace

from stepwell.addons.copies.derived_states import DerivedStates
from stepwell.addons.copies.snapshots import IdempotencyWrite, SnapshotStore, StoredSnapshot, StreamChangedError
from stepwell.addons.copies.values import ImportedState, SnapshotStatus, StreamState
from stepwell.engine.engine import Engine
from stepwell.engine.packing import finite_rows
from stepwell.engine.protocol.decide import StepIntent
from stepwell.engine.streams.new_states import NewState, last_prediction_of, no_stream, responding_part
from stepwell.engine.streams.resets import ReplacedPosition, replace_state, replay_position
from stepwell.engine.streams.transaction import Loaded, Reply, Write, run_transaction
from stepwell.errors import ServiceError, state_changed, stream_exists, wrong_state_size
from stepwell.models.served import ServedModel
from stepwell.store import keys
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import Kind, Record, blake2b_128
from stepwell.store.state_store import decoded
from stepwell.types import StreamKey, StreamPosition
from stepwell_export.runtime.state_packing import DecodedState


class StreamCopies:
    """Copies streams. A record is never modified after it is written, so a copy needs no lock.

    Args:
        engine: The engine of the streams.
        snapshots: Stores snapshots; None: with the engine's options.
    """

    def __init__(self, engine: Engine, snapshots: SnapshotStore | None = None) -> None:
        options = engine.options
        self._deps = engine.streams.deps
        self._snapshots = snapshots or SnapshotStore(
            engine.store, ttl_s=options.snapshot_ttl_s, max_snapshots=options.max_snapshots
        )
        self._placing = engine.placing
        self._sources = DerivedStates(engine.store, engine.models, self._snapshots, engine.placing)

    # ---------------------------------------------------------------- forks

    async def fork(
        self,
        key: StreamKey,
        target: StreamKey,
        *,
        snapshot: str | None,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Create a stream with the state, the step and the last prediction of another, or of one of its snapshots.

        The source is not changed. A retry gets the first response as long as the new stream has not been changed; with
        an idempotency key, as long as its entry is stored.

        Args:
            key: The source stream.
            target: The stream to create; it must be missing.
            snapshot: The snapshot of `key` to copy; None: its current state.
            version: The model version that continues the new stream; None: that of the source.
            after: The state id that `key` must have; None: any.
            idempotency_key: The client's, if any.

        Raises:
            ServiceError: `stream_not_found`, `snapshot_not_found`, `state_changed`, `stream_exists`, `model_changed`,
                `idempotency_key_reused`, or an error of the store.
        """
        # The idempotency entry is stored with the new stream.
        request = blake2b_128(
            b"fork", key.stream.encode(), (snapshot or "").encode(), after or b"", _version_bytes(version)
        )

        async def fork(loaded: Loaded) -> Reply[StreamPosition] | Write[StreamPosition]:
            if loaded.entry is not None:
                return Reply(replay_position(loaded.entry, StepIntent(request, 0, None, after, "auto", None)))
            source, existing = decoded(loaded.others[0]), decoded(loaded.raw)
            if source is None:
                raise no_stream(key)
            record = source
            if snapshot is not None:
                record = (await self._sources.from_snapshot(key, snapshot, deadline=loaded.deadline)).record
            # A retry with `after` has the same op id, even if the source has been changed since.
            base_hash = after if after is not None and snapshot is None else record.history_hash
            op_id = blake2b_128(
                b"fork", base_hash, target.stream.encode(), _version_bytes(version), (idempotency_key or "").encode()
            )
            if existing is not None and existing.op_id == op_id:
                return Reply(StreamPosition(existing.step, existing.history_hash, replayed=True))
            if after is not None and source.history_hash != after:
                raise state_changed(source.step, source.history_hash)
            if existing is not None:
                why = f"`to` is {target.stream!r} and has to name a new one"
                fix = "Name another stream, or delete that one first."
                raise stream_exists(existing.step, existing.history_hash, why, fix=fix)
            content = await self._sources.new_state_from(Kind.FORK, key.model, record, version)
            new_record = content.record(
                op_id, record.history_hash, had_key=idempotency_key is not None, sources=record.sources
            )
            entry = IdempotencyEntry(request, new_record.epoch, new_record.step, new_record.history_hash, 0, b"")
            position = StreamPosition(new_record.step, new_record.history_hash)
            return Write(new_record, b"", entry, position, lambda _stored: position)

        source_key = keys.record_key(*key)
        return await run_transaction(self._deps, target, fork, idempotency_key=idempotency_key, other_keys=[source_key])

    # ---------------------------------------------------------------- snapshots

    async def create_snapshot(
        self, key: StreamKey, name: str, *, after: bytes | None, idempotency_key: str | None
    ) -> StreamPosition:
        """Store a copy of a stream's current state under a name; an older snapshot of that name is replaced.

        With `after`, a retry gets the first response as long as the snapshot has that state id; with an idempotency
        key, as long as its entry is stored.

        Raises:
            ServiceError: `stream_not_found`, `state_changed`, `stream_quota`, `idempotency_key_reused`, or an error of
                the store.
        """
        record_key, request = keys.record_key(*key), blake2b_128(b"snapshot", name.encode(), after or b"")
        intent = StepIntent(request, 0, None, after, "auto", None)

        async def snapshot_stream(loaded: Loaded) -> Reply[StreamPosition] | None:
            if loaded.entry is not None:
                return Reply(replay_position(loaded.entry, intent))
            record = decoded(loaded.raw)
            if record is None:
                raise no_stream(key)
            if after is not None and record.history_hash != after:
                existing = await self._snapshots.get(record_key, name, deadline=loaded.deadline)
                if existing is not None and existing.record.history_hash == after:
                    return Reply(StreamPosition(existing.record.step, after, replayed=True), is_replay=False)
                raise state_changed(record.step, record.history_hash)
            entry = IdempotencyEntry(request, record.epoch, record.step, record.history_hash, 0, b"")
            entry_write = _entry_write(record_key, idempotency_key, entry)
            # Of a chunk's predictions only the last is copied.
            last = await last_prediction_of(self._deps.models, key.model, record)
            await self._deps.models.keep(key.model, record.fingerprint, loaded.deadline)
            snapshot = replace(
                record, outputs=last, answered_at=record.answered_at[-1:], answer_versions=record.answer_versions[-1:]
            )
            try:
                stored_entry = await self._snapshots.put(
                    record_key, name, snapshot.encode(), deadline=loaded.deadline, idempotency=entry_write
                )
            except StreamChangedError:
                return None
            position = (
                StreamPosition(record.step, record.history_hash)
                if stored_entry is None
                else _replay(stored_entry, intent)
            )
            return Reply(position, is_replay=False)

        return await run_transaction(self._deps, key, snapshot_stream, idempotency_key=idempotency_key)

    async def state_of_snapshot(self, key: StreamKey, name: str, version: int | None, deadline: float) -> NewState:
        """Return the state of a stream that is reset to one of its snapshots.

        Args:
            key: The stream.
            name: The snapshot's name.
            version: The model version that continues the stream; None: the one that wrote the snapshot.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: `snapshot_not_found`; `model_changed`: `version` has other states; or an error of the store.
        """
        stored = await self._sources.from_snapshot(key, name, deadline=deadline)
        return await self._sources.new_state_from(Kind.RESET_TO_SNAPSHOT, key.model, stored.record, version)

    async def get_snapshot(self, key: StreamKey, name: str) -> tuple[SnapshotStatus, StreamState]:
        """Return a snapshot of a stream, and the state in it.

        Raises:
            ServiceError: `stream_not_found`, `snapshot_not_found`, `model_changed`, or an error of the store.
        """
        deadline = self._deps.admission.start()
        await self._sources.from_stream(key, deadline=deadline)
        snapshot = await self._sources.from_snapshot(key, name, deadline=deadline, renew_ttl=False)
        state = await self._state(key.model, snapshot.record, None)
        return await self._status(key.model, name, snapshot), state

    async def list_snapshots(self, key: StreamKey) -> list[SnapshotStatus]:
        """Return the snapshots of a stream, by name.

        Raises:
            ServiceError: `stream_not_found`, or an error of the store.
        """
        deadline = self._deps.admission.start()
        _, snapshots = await asyncio.gather(
            self._sources.from_stream(key, deadline=deadline),
            self._snapshots.all(keys.record_key(*key), deadline=deadline),
        )
        return [await self._status(key.model, name, snapshot) for name, snapshot in snapshots.items()]

    async def delete_snapshot(self, key: StreamKey, name: str, *, idempotency_key: str | None) -> None:
        """Delete a snapshot, if there is one.

        Raises:
            ServiceError: `idempotency_key_reused`, or an error of the store.
        """
        deadline, record_key = self._deps.admission.start(), keys.record_key(*key)
        request = blake2b_128(b"no snapshot", name.encode())
        entry_write = _entry_write(record_key, idempotency_key, IdempotencyEntry(request, 0, 0, bytes(16), 0, b""))
        stored_entry = await self._snapshots.delete(record_key, name, deadline=deadline, idempotency=entry_write)
        if stored_entry is not None:
            _replay(stored_entry, StepIntent(request, 0, None, None, "auto", None))

    # ---------------------------------------------------------------- states

    async def get_state(self, key: StreamKey, *, version: int | None) -> StreamState:
        """Return the state of a stream.

        Raises:
            ServiceError: `stream_not_found`; `model_changed`: it was written by another version than `version`, or by
                one that is not loaded here; or an error of the store.
        """
        record = await self._sources.from_stream(key, deadline=self._deps.admission.start())
        return await self._state(key.model, record, version)

    async def get_packed_state(self, key: StreamKey, *, version: int | None) -> tuple[DecodedState, int]:
        """Return the state of a stream as its record has it, and its step.

        Raises:
            ServiceError: As for `get_state`.
        """
        record = await self._sources.from_stream(key, deadline=self._deps.admission.start())
        _, record = await self._responding(key.model, record, version)
        return DecodedState(record.fingerprint, record.state), record.step

    async def model_for_import(self, model: str, fingerprint: bytes | None, version: int | None) -> ServedModel:
        """Return the model version that continues from an imported state.

        Args:
            model: The model's name.
            fingerprint: Of the version that wrote the state, if the request has it.
            version: The requested version, whose states must have the same names, types and shapes; None: the one that
                wrote the state, or the default if the request has no fingerprint.

        Raises:
            ServiceError: `model_not_found`; `model_changed`: the version that wrote the state is not loaded here, and
                the request names no other.
        """
        default = self._deps.models.get(model, version)
        if version is not None or fingerprint is None:
            return default
        served = await self._deps.models.find(model, fingerprint)
        if served is None:
            fix = f"If both have the same states, send ?version={default.version} to import it all the same."
            raise self._deps.models.changed_error(model, fingerprint, fix=fix)
        return served

    async def put_state(
        self,
        key: StreamKey,
        served: ServedModel,
        imported: ImportedState,
        *,
        is_named: bool = False,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> ReplacedPosition:
        """Set a stream to an imported state.

        A retry gets the first response as long as no other operation was applied to the stream since.

        Args:
            key: The stream.
            served: The model version that continues the stream.
            imported: The state, checked against the model's declarations.
            is_named: The request names that version, so no release of until now moves the stream from it.
            after: The state id that the stream must have; None: any.
            idempotency_key: The client's, if any.

        Raises:
            ServiceError: `stream_not_found` or `state_changed` with `after`, `idempotency_key_reused`; `non_finite`:
                the state is not finite in the type in which it is stored; or an error of the store.
        """
        packed = served.step_model.pack({name: array[None] for name, array in imported.states.items()}, rows=1)
        _, bad = finite_rows(served.step_model.unpack(packed)) if imported.states else (None, {})
        if bad:
            raise ServiceError(
                "non_finite",
                f"State {bad[0]!r} becomes infinite in the type in which it is stored.",
                fix="Send numbers that its `store_dtype` can hold.",
            )
        moved = self._placing.pinned(served.name) if is_named else 0
        state = NewState(Kind.PUT_STATE, imported.step, served.fingerprint, packed.tobytes(), moved=moved)
        digest = blake2b_128(state.state, imported.step.to_bytes(8, "little"), served.fingerprint)
        op_id = blake2b_128(b"state", digest, after or b"", (idempotency_key or "").encode())
        return await replace_state(self._deps, key, state, op_id, after=after, idempotency_key=idempotency_key)

    # ---------------------------------------------------------------- helpers

    async def _state(self, model: str, record: Record, version: int | None) -> StreamState:
        served, record = await self._responding(model, record, version)
        rows = served.step_model.unpack(np.frombuffer(record.state, np.uint8)[None])
        return StreamState({name: array[0] for name, array in rows.items()}, record.step, record.fingerprint)

    async def _responding(self, model: str, record: Record, version: int | None) -> tuple[ServedModel, Record]:
        """Return the version that responded last to a stream, which is `version` if that is given, and its record."""
        models = self._deps.models
        served, record = await responding_part(models, model, record)
        requested = None if version is None else models.get(model, version)
        if served is None or (requested is not None and requested.fingerprint != record.fingerprint):
            raise models.changed_error(
                model, record.fingerprint, requested, step=record.step, state_id=record.history_hash
            )
        if len(record.state) != served.step_model.state_bytes:
            raise wrong_state_size(len(record.state), served.step_model.state_bytes)
        return served, record

    async def _status(self, model: str, name: str, snapshot: StoredSnapshot) -> SnapshotStatus:
        record = snapshot.record
        served, _ = await responding_part(self._deps.models, model, record)
        version = None if served is None else served.version
        return SnapshotStatus(name, version, record.step, record.history_hash, snapshot.taken_ms)


def _replay(entry: bytes, intent: StepIntent) -> StreamPosition:
    return replay_position(IdempotencyEntry.decode(entry), intent)


def _entry_write(record_key: str, idempotency_key: str | None, entry: IdempotencyEntry) -> IdempotencyWrite | None:
    return (
        None
        if idempotency_key is None
        else IdempotencyWrite(keys.idempotency_key_of(record_key, idempotency_key), entry.encode())
    )


def _version_bytes(version: int | None) -> bytes:
    return b"" if version is None else version.to_bytes(8, "little")
