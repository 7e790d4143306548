"""`StreamService`: operations on whole streams: status, list, reset, deletion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from stepwell.engine.packing import last_prediction
from stepwell.engine.streams.deletions import delete_stream
from stepwell.engine.streams.new_states import NewState, no_stream, responding_part
from stepwell.engine.streams.resets import ReplacedPosition, replace_state, reset_op_id
from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.store.listing import count_by_tenant, page
from stepwell.store.record import Kind, SourcePosition, decode, sources_of, step_of
from stepwell.types import ConsumedSource, StreamKey, StreamList, StreamStatus

if TYPE_CHECKING:
    from stepwell.engine.placing import Placing
    from stepwell.engine.streams.transaction import StreamOpDeps

StateOfSnapshot = Callable[[StreamKey, str, int | None, float], Awaitable[NewState]]
"""Returns the state in a snapshot: of a stream, by its name, for the requested version or None, before a deadline."""


class StreamService:
    """Reads, replaces and deletes whole streams. Each state is replaced in one commit; so is a corrupt record.

    Attributes:
        deps: What an operation on streams works on; for those of add-ons.
        placing: Places streams on versions.
        state_of_snapshot: Set by the add-on that keeps snapshots of streams; None: there is none.
    """

    def __init__(self, deps: StreamOpDeps, placing: Placing) -> None:
        """Create the service."""
        self.deps = deps
        self.placing = placing
        self.state_of_snapshot: StateOfSnapshot | None = None

    # ---------------------------------------------------------------- reading

    async def status(self, key: StreamKey) -> StreamStatus:
        """Return a stream's position, version, times and last prediction.

        Raises:
            ServiceError: `stream_not_found`, `model_not_found`, `state_corrupt`, or an error of the store.
        """
        models, admission = self.deps.models, self.deps.admission
        models.get(key.model)
        raw, ttl = await self.deps.store.load_with_ttl(keys.record_key(*key), deadline=admission.deadline())
        if raw is None:
            raise no_stream(key)
        record = decode(raw)
        served, _ = await responding_part(models, key.model, record)
        return StreamStatus(
            key,
            None if served is None else served.version,
            record.step,
            record.history_hash,
            record.created_ms,
            record.updated_ms,
            max(ttl, 0),
            {} if served is None else last_prediction(served.manifest, record.outputs),
            (await self._sources_by_id([record.sources], admission.deadline()))[0],
        )

    async def list(
        self,
        tenant: str,
        model: str,
        *,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        with_sources: bool = False,
    ) -> StreamList:
        """Return one page of a model's streams with their steps, and on request with the positions of their sources.

        Raises:
            ServiceError: `model_not_found`; `bad_request`: the cursor was not returned by an earlier page; or an error
                of the store.
        """
        store, deadline = self.deps.store, self.deps.admission.deadline()
        self.deps.models.get(model)
        names, next_cursor = await page(store.transport, tenant, model, prefix, cursor, limit=limit, deadline=deadline)
        records = [keys.record_key(tenant, model, name) for name in names]
        heads = await store.heads(records, deadline=deadline)
        found = [(name, heads[record]) for name, record in zip(names, records, strict=True) if record in heads]
        streams = [(name, None if head is None else step_of(head)) for name, head in found]
        if not with_sources:
            return StreamList(streams, next_cursor)
        positions = [() if head is None else sources_of(head) for _, head in found]
        by_id = await self._sources_by_id(positions, deadline)
        return StreamList(streams, next_cursor, {name: own for (name, _), own in zip(found, by_id, strict=True)})

    async def _sources_by_id(
        self, streams: Sequence[Sequence[SourcePosition]], deadline: float
    ) -> Sequence[Sequence[ConsumedSource]]:
        """Return the positions of each stream's sources with their ids."""
        digests = {source.digest for sources in streams for source in sources}
        ids = await self.deps.source_ids.read(digests, deadline=deadline)
        return [[ConsumedSource(ids.get(digest), at) for digest, at in sources] for sources in streams]

    async def count(self) -> None:
        """Count every tenant's streams in the store, if their number is limited and may have changed."""
        quota = self.deps.quota
        if quota is None or not quota.needs_recount:
            return
        quota.begin_count()
        try:
            transport, deadline = self.deps.store.transport, self.deps.admission.deadline
            quota.set_counts(await count_by_tenant(transport, deadline=deadline))
        except ServiceError:
            quota.needs_recount = True
            raise

    # ---------------------------------------------------------------- changing

    async def reset(
        self,
        key: StreamKey,
        *,
        snapshot: str | None = None,
        version: int | None = None,
        after: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> ReplacedPosition:
        """Set a stream to its model's initial state, step 0, or to one of its snapshots.

        Args:
            key: The stream. Without `after` it may be missing.
            snapshot: The snapshot's name; None: the initial state.
            version: The model version that continues the stream; None: the default, or the one that wrote the snapshot.
            after: The state id that the stream must have; None: any.
            idempotency_key: The client's, if any.

        Raises:
            ServiceError: `stream_not_found` or `state_changed`, `idempotency_key_reused`,
                `snapshot_not_found`; `model_changed`: `version` has other states than the snapshot; or an error of the
                store.
        """
        op_id = reset_op_id(snapshot, after, idempotency_key)
        if snapshot is None:
            served = self.deps.models.get(key.model, version)
            moved = 0 if version is None else self.placing.pinned(served.name)
            initial = NewState(Kind.RESET, 0, served.fingerprint, served.step_model.initial_state, moved=moved)
            return await replace_state(self.deps, key, initial, op_id, after=after, idempotency_key=idempotency_key)

        async def of_snapshot(deadline: float) -> NewState:
            if self.state_of_snapshot is None:
                raise ServiceError("snapshot_not_found", "No add-on keeps snapshots.", fix="Install one that does.")
            return await self.state_of_snapshot(key, snapshot, version, deadline)

        return await replace_state(self.deps, key, of_snapshot, op_id, after=after, idempotency_key=idempotency_key)

    async def delete(self, key: StreamKey, *, idempotency_key: str | None = None) -> bytes | None:
        """Delete a stream, its snapshots and its event log; see `delete_stream`."""
        return await delete_stream(self.deps, key, idempotency_key=idempotency_key)
