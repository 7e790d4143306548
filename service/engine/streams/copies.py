"""`StreamCopies`: streams forked, snapshots taken and forgotten, and states handed out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from service.engine.protocol.decide import StepIntent
from service.engine.streams.deps import StreamOpDeps
from service.engine.streams.resets import replay_position
from service.engine.streams.sources import StateSources, no_stream
from service.engine.streams.transaction import Loaded, Reply, Write, commit_when_decided
from service.errors import ServiceError, state_changed, stream_exists, wrong_state_size
from service.models.registry import ServedModel
from service.store import keys
from service.store.record import IdempotencyEntry, Kind, Record, blake2b_128, decode
from service.store.snapshots import IdempotencyWrite, SnapshotStore, StoredSnapshot
from service.store.state_store import checked
from service.types import SnapshotStatus, StreamKey, StreamPosition, StreamState


class StreamCopies:
    """Makes copies of streams. A record never changes once it is written, so reading it is all the locking there is."""

    def __init__(self, ways: StreamOpDeps, snapshots: SnapshotStore, origins: StateSources) -> None:
        """Put the parts together.

        Args:
            ways: To the store and the models.
            snapshots: Where snapshots live.
            origins: Finds streams and snapshots.
        """
        self._deps = ways
        self._snapshots = snapshots
        self._sources = origins

    # ---------------------------------------------------------------- forks

    async def fork(
        self,
        key: StreamKey,
        to: StreamKey,
        *,
        snapshot: str | None,
        version: int | None,
        after: bytes | None,
        idempotency_key: str | None,
    ) -> StreamPosition:
        """Begin a stream with the state, the step and the kept prediction of another, or of one of its snapshots.

        The other is left alone. The same fork again is answered as the first time as long as the new stream has not
        moved; with an idempotency key for as long as that is remembered.

        Args:
            key: The stream that there is.
            to: The stream to begin, which has to be missing.
            snapshot: The snapshot of `key` to go on from; None: where it is now.
            version: The model version to go on with; None: the same.
            after: The history that `key` must have.
            idempotency_key: The client's.

        Raises:
            ServiceError: `stream_not_found`, `snapshot_not_found`, `state_changed`, `stream_exists`, `model_changed`,
                `idempotency_key_reused`, or the store's.
        """
        # The idempotency key's entry lies with the new stream.
        request = blake2b_128(b"fork", key.stream.encode(), (snapshot or "").encode(), after or b"", _number(version))

        async def fork(found: Loaded) -> Reply[StreamPosition] | Write[StreamPosition]:
            if found.entry is not None:
                return Reply(replay_position(found.entry, StepIntent(request, 0, None, after, "auto", None)))
            present, existing = _decoded(found.others[0]), _decoded(found.raw)
            if present is None:
                raise no_stream(key)
            record = present
            if snapshot is not None:
                record = (await self._sources.from_snapshot(key, snapshot, deadline=found.deadline)).record
            # A retry names the history that it was about, wherever the stream is by now.
            about = after if after is not None and snapshot is None else record.history_hash
            op_id = blake2b_128(b"fork", about, to.stream.encode(), _number(version), (idempotency_key or "").encode())
            if existing is not None and existing.op_id == op_id:
                return Reply(StreamPosition(existing.step, existing.history_hash, replayed=True))
            if after is not None and present.history_hash != after:
                raise state_changed(present.step, present.history_hash)
            if existing is not None:
                why, fix = "`to` has to name a new one", "Name another stream, or delete that one first."
                raise stream_exists(existing.step, existing.history_hash, why, fix=fix)
            content = self._sources.new_state_from(Kind.FORK, key.model, record, version)
            made = content.record(op_id, record.history_hash, had_key=idempotency_key is not None)
            entry = IdempotencyEntry(request, made.epoch, made.step, made.history_hash, 0, b"")
            done = StreamPosition(made.step, made.history_hash)
            return Write(made, b"", entry, done, lambda _stored: done)

        source = keys.record_key(*key)
        return await commit_when_decided(self._deps, to, fork, idempotency_key=idempotency_key, also=[source])

    # ---------------------------------------------------------------- snapshots

    async def create_snapshot(
        self, key: StreamKey, name: str, *, after: bytes | None, idempotency_key: str | None
    ) -> StreamPosition:
        """Keep a copy of a stream as it is now under a name, in place of an older one.

        With `after`, the same again is answered as the first time as long as the snapshot is of that history; with an
        idempotency key for as long as that is remembered.

        Raises:
            ServiceError: `stream_not_found`, `state_changed`, `stream_quota`, `idempotency_key_reused`, or the store's.
        """
        stream, request = keys.record_key(*key), blake2b_128(b"snapshot", name.encode(), after or b"")
        intent = StepIntent(request, 0, None, after, "auto", None)

        async def take(found: Loaded) -> Reply[StreamPosition]:
            if found.entry is not None:
                return Reply(replay_position(found.entry, intent))
            record = _decoded(found.raw)
            if record is None:
                raise no_stream(key)
            if after is not None and record.history_hash != after:
                before = await self._snapshots.get(stream, name, deadline=found.deadline)
                if before is not None and before.record.history_hash == after:
                    return Reply(StreamPosition(before.record.step, after, replayed=True), is_replay=False)
                raise state_changed(record.step, record.history_hash)
            entry = IdempotencyEntry(request, record.epoch, record.step, record.history_hash, 0, b"")
            remember = _remember(stream, idempotency_key, entry)
            kept = replace(
                record, outputs=self._sources.last_prediction(key.model, record)
            )  # of a chunk, one is enough
            known = await self._snapshots.put(
                stream, name, kept.encode(), deadline=found.deadline, idempotency=remember
            )
            done = StreamPosition(record.step, record.history_hash) if known is None else _known(known, intent)
            return Reply(done, is_replay=False)

        return await commit_when_decided(self._deps, key, take, idempotency_key=idempotency_key)

    async def get_snapshot(self, key: StreamKey, name: str) -> tuple[SnapshotStatus, StreamState]:
        """Return a snapshot of a stream, and the state in it.

        Raises:
            ServiceError: `stream_not_found`, `snapshot_not_found`, `model_changed`, or the store's.
        """
        deadline = self._deps.start()
        await self._sources.from_stream(key, deadline=deadline)
        found = await self._sources.from_snapshot(key, name, deadline=deadline, use=False)
        return self._status(key.model, name, found), self._state(key.model, found.record, None)

    async def list_snapshots(self, key: StreamKey) -> list[SnapshotStatus]:
        """Return the snapshots of a stream, by name.

        Raises:
            ServiceError: `stream_not_found`, or the store's.
        """
        deadline = self._deps.start()
        _, found = await asyncio.gather(
            self._sources.from_stream(key, deadline=deadline),
            self._snapshots.all(keys.record_key(*key), deadline=deadline),
        )
        return [self._status(key.model, name, snapshot) for name, snapshot in found.items()]

    async def delete_snapshot(self, key: StreamKey, name: str, *, idempotency_key: str | None) -> None:
        """Forget a snapshot; also where there is none.

        Raises:
            ServiceError: `idempotency_key_reused`, or the store's.
        """
        deadline, stream = self._deps.start(), keys.record_key(*key)
        request = blake2b_128(b"no snapshot", name.encode())
        remember = _remember(stream, idempotency_key, IdempotencyEntry(request, 0, 0, bytes(16), 0, b""))
        known = await self._snapshots.delete(stream, name, deadline=deadline, idempotency=remember)
        if known is not None:
            _known(known, StepIntent(request, 0, None, None, "auto", None))

    # ---------------------------------------------------------------- states

    async def get_state(self, key: StreamKey, *, version: int | None) -> StreamState:
        """Return the state of a stream.

        Raises:
            ServiceError: `stream_not_found`; `model_changed`: another version than `version`, or one that is not
                loaded here, wrote it; or the store's.
        """
        return self._state(key.model, await self._sources.from_stream(key, deadline=self._deps.start()), version)

    def model_for_import(self, model: str, fingerprint: bytes | None, version: int | None) -> ServedModel:
        """Return the model that takes a given state.

        Args:
            model: The model's name.
            fingerprint: Names the model that wrote it, as far as that was told.
            version: The version that is to take it; it has to carry states of the same names, types and shapes.

        Raises:
            ServiceError: `model_not_found`; `model_changed`: the model that wrote it is not here, and no version is
                named to take it over.
        """
        default = self._deps.models.get(model, version)
        if version is not None or fingerprint is None:
            return default
        served = self._deps.models.by_fingerprint(model, fingerprint)
        if served is None:
            raise ServiceError(
                "model_changed",
                f"The state was written by model {fingerprint.hex()}; {model} is {default.fingerprint.hex()} here.",
                fix=f"If it carries the same states, say so with ?version={default.version}.",
            )
        return served

    # ---------------------------------------------------------------- helpers

    def _state(self, model: str, record: Record, version: int | None) -> StreamState:
        served = self._deps.models.by_fingerprint(model, record.fingerprint)
        wanted = None if version is None else self._deps.models.get(model, version)
        if served is None or (wanted is not None and wanted.fingerprint != record.fingerprint):
            other = self._deps.models.get(model, version)
            raise ServiceError(
                "model_changed",
                f"The state was written by model {record.fingerprint.hex()}; {model} {other.version} is "
                f"{other.fingerprint.hex()}.",
                fix="Ask a service that has the model which wrote it, without `version`.",
                step=record.step,
                state_id=record.history_hash,
            )
        if len(record.state) != served.step_model.state_bytes:
            raise wrong_state_size(len(record.state), served.step_model.state_bytes)
        rows = served.step_model.unpack(np.frombuffer(record.state, np.uint8)[None])
        return StreamState({name: array[0] for name, array in rows.items()}, record.step, record.fingerprint)

    def _status(self, model: str, name: str, snapshot: StoredSnapshot) -> SnapshotStatus:
        record = snapshot.record
        served = self._deps.models.by_fingerprint(model, record.fingerprint)
        version = None if served is None else served.version
        return SnapshotStatus(name, version, record.step, record.history_hash, snapshot.taken_ms)


def _decoded(raw: bytes | ServiceError | None) -> Record | None:
    return None if (stored := checked(raw)) is None else decode(stored)


def _known(entry: bytes, intent: StepIntent) -> StreamPosition:
    return replay_position(IdempotencyEntry.decode(entry), intent)


def _remember(stream: str, idempotency_key: str | None, entry: IdempotencyEntry) -> IdempotencyWrite | None:
    return (
        None
        if idempotency_key is None
        else IdempotencyWrite(keys.idempotency_key_of(stream, idempotency_key), entry.encode())
    )


def _number(version: int | None) -> bytes:
    return b"" if version is None else version.to_bytes(8, "little")
