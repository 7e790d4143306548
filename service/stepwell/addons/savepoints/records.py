"""`Savepoints`: the records of all streams of a model, read while they are stepped, and written back."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from stepwell.engine.tenant_limits import Reservation
from stepwell.errors import CorruptRecordError, ServiceError, not_a_record, stream_exists, wrong_state_size
from stepwell.store import keys
from stepwell.store.commits import Commit, Outcome
from stepwell.store.listing import page
from stepwell.store.record import decode, history_hash_of, op_id_of, step_of, with_epoch
from stepwell.store.record_arrays import are_records, with_epochs
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.engine.streams.transaction import StreamOpDeps
    from stepwell.models.served import ServedModel

_MAX_PAGE_STREAMS: Final = 1000
_MAX_PAGE_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, slots=True)
class RecordPage:
    """The records of some streams.

    Attributes:
        streams: Ids and records, as the store has them.
        unreadable: Ids of streams whose records could not be read.
        cursor: Of the next page; None: this is the last one.
    """

    streams: list[tuple[str, bytes]]
    unreadable: list[str]
    cursor: str | None


class Savepoints:
    """Exports and imports records. Each stream is consistent in itself, as of its own moment.

    Args:
        deps: Store, models, admission and quota.
    """

    def __init__(self, deps: StreamOpDeps) -> None:
        self._deps = deps

    async def pages(
        self, tenant: str, model: str, *, prefix: str = "", cursor: str | None = None
    ) -> AsyncIterator[RecordPage]:
        """Yield the records of a model's streams. A stream that exists all the time is in them, once.

        Args:
            tenant: The tenant.
            model: The model's name.
            prefix: Only streams whose id begins with it.
            cursor: Of an earlier page, to go on behind it; streams may then be in twice.

        Raises:
            ServiceError: `model_not_found`; `bad_request`: the cursor is not one of ours; `draining`; or an error of
                the store.
        """
        deps, seen = self._deps, set[int]()
        limit = self._page_limit(model)
        while True:
            deadline = deps.admission.start()
            names, cursor = await page(
                deps.store.transport, tenant, model, prefix, cursor, limit=limit, deadline=deadline
            )
            new_names = [name for name in names if hash(name) not in seen]  # a growing store lists some twice
            seen.update(map(hash, new_names))
            yield await self._load(tenant, model, new_names, cursor, deadline)
            if cursor is None:
                return

    def _page_limit(self, model: str) -> int:
        models = self._deps.models
        models.get(model)  # raises if there is none
        state_bytes = max(models.get(model, version).step_model.state_bytes for version in models.versions(model))
        return max(1, min(_MAX_PAGE_STREAMS, _MAX_PAGE_BYTES // (state_bytes + 256)))

    async def _load(
        self, tenant: str, model: str, names: Sequence[str], cursor: str | None, deadline: float
    ) -> RecordPage:
        streams, unreadable = [], []
        if names:
            store, records = self._deps.store, [keys.record_key(tenant, model, name) for name in names]
            loaded = await store.load_with_errors(records, deadline=deadline)
            missing = [i for i, raw in enumerate(loaded) if raw is None]
            if missing:  # or of another type, which the cheap way does not tell apart
                exact = await store.load_with_errors([records[i] for i in missing], deadline=deadline, exact=True)
                for i, raw in zip(missing, exact, strict=True):
                    loaded[i] = raw
            if are_records(loaded):
                return RecordPage(list(zip(names, cast("list[bytes]", loaded), strict=True)), [], cursor)
            for name, raw in zip(names, loaded, strict=True):
                if isinstance(raw, bytes) and _is_record(raw):
                    streams.append((name, raw))
                elif isinstance(raw, bytes | CorruptRecordError):
                    unreadable.append(name)
                elif raw is not None:
                    raise raw
        return RecordPage(streams, unreadable, cursor)

    async def load(
        self, tenant: str, model: str, streams: Sequence[tuple[str, bytes]], *, overwrite: bool
    ) -> list[tuple[str, ServiceError]]:
        """Create streams from records, and return those that were refused.

        A stream that is already at its record's state is left as it is, and is not refused.

        Args:
            tenant: The tenant.
            model: The model's name.
            streams: Ids and records.
            overwrite: Replace a live stream; otherwise it is refused.

        Returns:
            The ids and errors of the streams that were not loaded: `model_changed`, `stream_exists`, `stream_quota`,
            `state_corrupt` or `record_version`.

        Raises:
            ServiceError: `draining`, `overloaded`, or an error of the store; some streams may have been loaded.
        """
        deadline = self._deps.admission.start()
        refused: list[tuple[str, ServiceError]] = []
        found: dict[bytes, ServedModel] = {}
        rows = await self._rows_alike(tenant, model, dict(streams), found)
        if rows is None:
            rows = []
            for name, raw in dict(streams).items():
                try:
                    record = decode(raw)
                    await self._check(model, record.fingerprint, record.state, found)
                except ServiceError as exc:
                    refused.append((name, exc))
                else:
                    row = _Row(name, keys.record_key(tenant, model, name), with_epoch(raw, secrets.token_bytes(8)))
                    rows.append(row)
        for fingerprint in found:
            await self._deps.models.keep(model, fingerprint, deadline)
        if rows:
            refused += await self._commit_rows(tenant, model, rows, deadline, overwrite=overwrite)
        return refused

    async def _rows_alike(
        self, tenant: str, model: str, records: Mapping[str, bytes], found: dict[bytes, ServedModel]
    ) -> list[_Row] | None:
        """Return the rows to write for records of equal lengths that one version of the model wrote, all at once.

        None if they are not alike, or cannot be loaded here; they are then to be checked one by one.
        """
        # A new epoch: idempotency entries of what was applied after the record was saved must not replay. Revisions of
        # releases may be those of another store.
        renewed = with_epochs(list(records.values()), secrets.token_bytes(8 * len(records)))
        if renewed is None:
            return None
        headers, encoded = renewed
        first = headers[0]
        if any((headers[name] != first[name]).any() for name in ("fingerprint", "state_bytes")):
            return None
        state = encoded[0][len(encoded[0]) - int(first["state_bytes"]) :]
        try:
            await self._check(model, first["fingerprint"].tobytes(), state, found)
        except ServiceError:
            return None
        return [
            _Row(name, keys.record_key(tenant, model, name), record)
            for name, record in zip(records, encoded, strict=True)
        ]

    async def _check(self, model: str, fingerprint: bytes, state: bytes, found: dict[bytes, ServedModel]) -> None:
        """Check that the version of the model that wrote a state can be loaded here; it is added to `found`."""
        served = found.get(fingerprint)
        if served is None:
            served = await self._deps.models.find(model, fingerprint, state)
            if served is None:
                raise self._deps.models.changed_error(model, fingerprint)
        if len(state) != served.step_model.state_bytes:
            raise wrong_state_size(len(state), served.step_model.state_bytes)
        found[fingerprint] = served

    async def _commit_rows(
        self, tenant: str, model: str, rows: Sequence[_Row], deadline: float, *, overwrite: bool
    ) -> list[tuple[str, ServiceError]]:
        """Write records; repeat for streams that are there or are changed, until all are written or refused.

        Without a quota, each stream counts as missing at first: the commit returns what is stored instead.
        """
        store, quota, refused = self._deps.store, self._deps.quota, list[tuple[str, ServiceError]]()
        stored: Sequence[bytes | ServiceError | None] = [None] * len(rows)
        if quota is not None:
            stored = await store.load_with_errors([row.key for row in rows], deadline=deadline, exact=True)
        while rows:
            commits: list[Commit] = []
            written: list[_Row] = []
            with ExitStack() as stack:
                reservations = []
                for row, raw in zip(rows, stored, strict=True):
                    try:
                        guard = b"" if raw is None else _guard_to_replace(raw, row.record, overwrite=overwrite)
                        if guard is None:
                            continue
                        if quota is not None:
                            reservation = stack.enter_context(Reservation(quota, tenant))
                            if not guard:
                                reservation.take()
                            reservations.append(reservation)
                    except ServiceError as exc:
                        refused.append((row.stream, exc))
                        continue
                    commits.append(Commit(row.key, guard, row.record))
                    written.append(row)
                if not commits:
                    break
                results = await store.commit(commits, deadline=deadline)
                for i, reservation in enumerate(reservations):
                    reservation.end(begun=i not in results.not_applied)
            for row in written:
                self._deps.invalidate(StreamKey(tenant, model, row.stream))
            again: list[tuple[_Row, bytes | None]] = []
            for i, result in results.not_applied.items():
                if result.error is not None:
                    refused.append((written[i].stream, result.error))
                elif result.outcome is Outcome.WRONG_TYPE:
                    refused.append((written[i].stream, not_a_record()))
                elif result.outcome is not Outcome.DUPLICATE:
                    again.append((written[i], result.stored))
            rows, stored = [row for row, _ in again], [raw for _, raw in again]
        return refused


class _Row(NamedTuple):
    """A record to write: its stream, its key, and its bytes."""

    stream: str
    key: str
    record: bytes


def _guard_to_replace(raw: bytes | ServiceError, record: bytes, *, overwrite: bool) -> bytes | None:
    """Return the guard of the stored record that a record may replace; None: they are equal.

    Raises:
        ServiceError: `stream_exists`, or the stored record cannot be read.
    """
    if isinstance(raw, ServiceError):
        raise raw
    stored = decode(raw)
    if (stored.history_hash, stored.op_id, stored.step) == (
        history_hash_of(record), op_id_of(record), step_of(record)
    ):  # fmt: skip
        return None
    if overwrite:
        return stored.guard
    why, fix = "only a missing stream is loaded", "Send ?overwrite=true to replace it."
    raise stream_exists(stored.step, stored.history_hash, why, fix=fix)


def _is_record(raw: bytes) -> bool:
    try:
        decode(raw)
    except ServiceError:
        return False
    return True
