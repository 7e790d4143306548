"""`Copies`: streams forked, snapshots taken and forgotten, and states handed out."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from service.engine.decide import Intent
from service.engine.models import ServedModel
from service.engine.origins import Origins, no_stream
from service.engine.resets import known_position
from service.engine.transaction import Loaded, Reply, Write, commit_when_decided
from service.engine.types import Position, SnapshotStatus, StreamKey, StreamState
from service.engine.ways import Ways
from service.errors import ServiceError, state_changed, stream_exists, wrong_state_size
from service.store import keys
from service.store.record import KeyEntry, Kind, Record, decode, digest16
from service.store.redis import checked
from service.store.snapshots import Remember, Snapshot, Snapshots


class Copies:
    """Makes copies of streams. A record never changes once it is written, so reading it is all the locking there is."""

    def __init__(self, ways: Ways, snapshots: Snapshots, origins: Origins) -> None:
        """Put the parts together.

        Args:
            ways: To the store and the models.
            snapshots: Where snapshots live.
            origins: Finds streams and snapshots.
        """
        self._ways = ways
        self._snapshots = snapshots
        self._origins = origins

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
    ) -> Position:
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
        request = digest16(b"fork", key.stream.encode(), (snapshot or "").encode(), after or b"", _number(version))

        async def fork(found: Loaded) -> Reply[Position] | Write[Position]:
            if found.entry is not None:
                return Reply(known_position(found.entry, Intent(request, 0, None, after, "auto", None)))
            present, existing = _decoded(found.others[0]), _decoded(found.raw)
            if present is None:
                raise no_stream(key)
            record = present
            if snapshot is not None:
                record = (await self._origins.snapshot(key, snapshot, deadline=found.deadline)).record
            # A retry names the history that it was about, wherever the stream is by now.
            about = after if after is not None and snapshot is None else record.chain
            op_id = digest16(b"fork", about, to.stream.encode(), _number(version), (idempotency_key or "").encode())
            if existing is not None and existing.op_id == op_id:
                return Reply(Position(existing.step, existing.chain, replayed=True))
            if after is not None and present.chain != after:
                raise state_changed(present.step, present.chain)
            if existing is not None:
                why, fix = "`to` has to name a new one", "Name another stream, or delete that one first."
                raise stream_exists(existing.step, existing.chain, why, fix=fix)
            content = self._origins.content(Kind.FORK, key.model, record, version)
            made = content.record(op_id, record.chain, had_key=idempotency_key is not None)
            entry = KeyEntry(request, made.epoch, made.step, made.chain, 0, b"")
            done = Position(made.step, made.chain)
            return Write(made, b"", entry, done, lambda _stored: done)

        source = keys.record_key(*key)
        return await commit_when_decided(self._ways, to, fork, idempotency_key=idempotency_key, also=[source])

    # ---------------------------------------------------------------- snapshots

    async def take_snapshot(
        self, key: StreamKey, name: str, *, after: bytes | None, idempotency_key: str | None
    ) -> Position:
        """Keep a copy of a stream as it is now under a name, in place of an older one.

        With `after`, the same again is answered as the first time as long as the snapshot is of that history; with an
        idempotency key for as long as that is remembered.

        Raises:
            ServiceError: `stream_not_found`, `state_changed`, `stream_quota`, `idempotency_key_reused`, or the store's.
        """
        stream, request = keys.record_key(*key), digest16(b"snapshot", name.encode(), after or b"")
        intent = Intent(request, 0, None, after, "auto", None)

        async def take(found: Loaded) -> Reply[Position]:
            if found.entry is not None:
                return Reply(known_position(found.entry, intent))
            record = _decoded(found.raw)
            if record is None:
                raise no_stream(key)
            if after is not None and record.chain != after:
                before = await self._snapshots.get(stream, name, deadline=found.deadline)
                if before is not None and before.record.chain == after:
                    return Reply(Position(before.record.step, after, replayed=True), is_replay=False)
                raise state_changed(record.step, record.chain)
            entry = KeyEntry(request, record.epoch, record.step, record.chain, 0, b"")
            remember = _remember(stream, idempotency_key, entry)
            kept = replace(
                record, outputs=self._origins.last_prediction(key.model, record)
            )  # of a chunk, one is enough
            known = await self._snapshots.put(stream, name, kept.encode(), deadline=found.deadline, remember=remember)
            done = Position(record.step, record.chain) if known is None else _known(known, intent)
            return Reply(done, is_replay=False)

        return await commit_when_decided(self._ways, key, take, idempotency_key=idempotency_key)

    async def snapshot(self, key: StreamKey, name: str) -> tuple[SnapshotStatus, StreamState]:
        """Return a snapshot of a stream, and the state in it.

        Raises:
            ServiceError: `stream_not_found`, `snapshot_not_found`, `model_changed`, or the store's.
        """
        deadline = self._ways.begin()
        await self._origins.stream(key, deadline=deadline)
        found = await self._origins.snapshot(key, name, deadline=deadline, use=False)
        return self._status(key.model, name, found), self._state(key.model, found.record, None)

    async def list_snapshots(self, key: StreamKey) -> list[SnapshotStatus]:
        """Return the snapshots of a stream, by name.

        Raises:
            ServiceError: `stream_not_found`, or the store's.
        """
        deadline = self._ways.begin()
        _, found = await asyncio.gather(
            self._origins.stream(key, deadline=deadline),
            self._snapshots.all(keys.record_key(*key), deadline=deadline),
        )
        return [self._status(key.model, name, snapshot) for name, snapshot in found.items()]

    async def delete_snapshot(self, key: StreamKey, name: str, *, idempotency_key: str | None) -> None:
        """Forget a snapshot; also where there is none.

        Raises:
            ServiceError: `idempotency_key_reused`, or the store's.
        """
        deadline, stream = self._ways.begin(), keys.record_key(*key)
        request = digest16(b"no snapshot", name.encode())
        remember = _remember(stream, idempotency_key, KeyEntry(request, 0, 0, bytes(16), 0, b""))
        known = await self._snapshots.delete(stream, name, deadline=deadline, remember=remember)
        if known is not None:
            _known(known, Intent(request, 0, None, None, "auto", None))

    # ---------------------------------------------------------------- states

    async def state(self, key: StreamKey, *, version: int | None) -> StreamState:
        """Return the state of a stream.

        Raises:
            ServiceError: `stream_not_found`; `model_changed`: another version than `version`, or one that is not
                loaded here, wrote it; or the store's.
        """
        return self._state(key.model, await self._origins.stream(key, deadline=self._ways.begin()), version)

    def taker(self, model: str, fingerprint: bytes | None, version: int | None) -> ServedModel:
        """Return the model that takes a given state.

        Args:
            model: The model's name.
            fingerprint: Names the model that wrote it, as far as that was told.
            version: The version that is to take it; it has to carry states of the same names, types and shapes.

        Raises:
            ServiceError: `model_not_found`; `model_changed`: the model that wrote it is not here, and no version is
                named to take it over.
        """
        default = self._ways.shelf.get(model, version)
        if version is not None or fingerprint is None:
            return default
        served = self._ways.shelf.by_fingerprint(model, fingerprint)
        if served is None:
            raise ServiceError(
                "model_changed",
                f"The state was written by model {fingerprint.hex()}; {model} is {default.fingerprint.hex()} here.",
                fix=f"If it carries the same states, say so with ?version={default.version}.",
            )
        return served

    # ---------------------------------------------------------------- helpers

    def _state(self, model: str, record: Record, version: int | None) -> StreamState:
        served = self._ways.shelf.by_fingerprint(model, record.fingerprint)
        wanted = None if version is None else self._ways.shelf.get(model, version)
        if served is None or (wanted is not None and wanted.fingerprint != record.fingerprint):
            other = self._ways.shelf.get(model, version)
            raise ServiceError(
                "model_changed",
                f"The state was written by model {record.fingerprint.hex()}; {model} {other.version} is "
                f"{other.fingerprint.hex()}.",
                fix="Ask a service that has the model which wrote it, without `version`.",
                step=record.step,
                state_id=record.chain,
            )
        if len(record.state) != served.step_model.state_bytes:
            raise wrong_state_size(len(record.state), served.step_model.state_bytes)
        rows = served.step_model.unpack(np.frombuffer(record.state, np.uint8)[None])
        return StreamState({name: array[0] for name, array in rows.items()}, record.step, record.fingerprint)

    def _status(self, model: str, name: str, snapshot: Snapshot) -> SnapshotStatus:
        record = snapshot.record
        served = self._ways.shelf.by_fingerprint(model, record.fingerprint)
        version = None if served is None else served.version
        return SnapshotStatus(name, version, record.step, record.chain, snapshot.taken_ms)


def _decoded(raw: bytes | ServiceError | None) -> Record | None:
    return None if (stored := checked(raw)) is None else decode(stored)


def _known(entry: bytes, intent: Intent) -> Position:
    return known_position(KeyEntry.decode(entry), intent)


def _remember(stream: str, idempotency_key: str | None, entry: KeyEntry) -> Remember | None:
    return None if idempotency_key is None else Remember(keys.entry_key(stream, idempotency_key), entry.encode())


def _number(version: int | None) -> bytes:
    return b"" if version is None else version.to_bytes(8, "little")
