"""`QueuedStep`: a timestep in a batcher, with what was loaded of its stream so far."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from stepwell.engine.placing import Placed
from stepwell.engine.protocol.decide import StepIntent
from stepwell.engine.protocol.positions import advanced, overlap_of
from stepwell.engine.tenant_limits import Reservation
from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import Record, SourcePosition
from stepwell.types import STARTS, Prediction, ReplyCallback, StreamKey, Timestep

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel

_log = logging.getLogger(__name__)


def call_back(done: ReplyCallback, result: Prediction | ServiceError, key: StreamKey) -> None:
    """Call the callback of a row; a fault in it must not fail the other rows, so it is logged."""
    try:
        done(result)
    except Exception:  # noqa: BLE001 - see above
        _log.exception("The callback of a step failed (model=%s, stream=%s)", key.model, key.stream)


class QueuedStep(Struct, eq=False, gc=False):
    """A timestep in a batcher.

    Attributes:
        timestep: The request.
        done: Called with the result.
        received: When it was received, on the monotonic clock. The loop's clock has the same zero, but under uvloop it
            counts whole milliseconds, and is read once per iteration.
        name: Key of the stream's record.
        decoded_by: The model version that decoded the request.
        shape: Equal for timesteps that may be in one batch.
        op_id: Identifies the operation, the same for every retry of it, 16 bytes.
        dry_run: Only the prediction is requested; nothing is committed.
        is_loaded: `record` was loaded from the store during this request.
        record: With `is_loaded`, the stream's record; None: the stream is missing.
        stored: The bytes of `record`; empty: the stream is missing.
        is_exact: With `is_loaded`: a value that is not a record would have been an error, and no missing stream.
        entry: The idempotency or end entry of this request, if one was loaded.
        confirmed: A Redis replica has what was loaded, if the durability requires that.
        answered: `done` was called, or the row was handed over.
        handed_over: The row as another model version steps it, from the end of the batch on.
        stepped_by: Of a row that was handed over: the fingerprint of what steps it.
        reservation: Of the tenant's quota, for the stream that it may create; None: it creates none, or there is no
            limit.
        skipped: Number of its first timesteps that its stream's record shows to have been applied before.
        kept: The answers of the last of these that are known, packed; they become part of the new operation.
        kept_at: The position of each of those timesteps.
        kept_versions: The version that computed each of those answers, 0 if that is not known.
        cached_sources: The positions of sources of the cached record, if none was loaded.
        sources: The positions of sources after it; set by `advance_sources`.
        source_changed: Whether its source replaces another one; set likewise.
        placed: How its record continues if the stream was moved, or begins by a release.
        note: What places the stream keeps here from one attempt to the next.
    """

    timestep: Timestep
    done: ReplyCallback
    received: float
    name: str
    decoded_by: ServedModel
    shape: Hashable
    op_id: bytes
    dry_run: bool = False
    is_loaded: bool = False
    record: Record | None = None
    stored: bytes = b""
    is_exact: bool = False
    entry: IdempotencyEntry | None = None
    confirmed: bool = False
    answered: bool = False
    handed_over: QueuedStep | None = None
    stepped_by: bytes = b""
    reservation: Reservation | None = None
    skipped: int = 0
    kept: bytes = b""
    kept_at: tuple[int, ...] = ()
    kept_versions: tuple[int, ...] = ()
    cached_sources: tuple[SourcePosition, ...] = ()
    sources: tuple[SourcePosition, ...] = ()
    source_changed: bool = False
    placed: Placed | None = None
    note: str = ""

    @property
    def is_decided_by_position(self) -> bool:
        """Whether it certainly applies to a record at the right position; see `decide.applies_without_store`."""
        timestep = self.timestep
        return not (
            self.is_loaded
            or self.answered
            or self.dry_run
            or timestep.create == "must"
            or timestep.idempotency_key is not None
        )

    @property
    def moved_from(self) -> bytes:
        """Fingerprint of the version that responded to the stream before it moved; empty: it has not."""
        return b"" if self.placed is None else self.placed.responded_before

    @property
    def may_have_entry(self) -> bool:
        """Whether the store may have an entry of its idempotency key, or of the end of its stream."""
        return self.timestep.idempotency_key is not None or self.timestep.lifecycle == "last"

    @property
    def creates(self) -> bool:
        """Whether its stream is missing."""
        return self.is_loaded and self.record is None

    @property
    def is_plain(self) -> bool:
        """Whether its next record is one like those of most rows, without key and source."""
        return not (
            self.timestep.idempotency_key is not None
            or self.timestep.source is not None
            or (self.cached_sources if self.record is None else self.record.sources)
        )

    @property
    def applied(self) -> Timestep:
        """The part of the request that is applied."""
        return self.timestep.after_first(self.skipped)

    @property
    def unknown(self) -> int:
        """Number of its first timesteps whose answers are not known any more."""
        return self.skipped - len(self.kept_at) if self.timestep.keep == "all" else 0

    @property
    def answered_at(self) -> tuple[int, ...]:
        """The positions of the answers that the new record stores."""
        source = self.timestep.source
        if source is None:
            return ()
        return (*self.kept_at, *source.at[self.skipped :]) if self.timestep.keep == "all" else source.at[-1:]

    def skip_passed(self, answer_bytes: int, version: int) -> None:
        """Skip the timesteps that the loaded record shows to have been applied before, but keep their answers.

        Args:
            answer_bytes: Size of one timestep's packed answer.
            version: The version that steps the stream; it has computed the answers of a record that does not have
                their version, unless the stream was moved.
        """
        record, source = self.record, self.timestep.source
        if record is None or source is None:
            return
        self.skipped, known = overlap_of(record, source)
        if self.timestep.keep == "all" and len(record.outputs) == answer_bytes * len(record.answered_at):
            self.kept_at = tuple([record.answered_at[i] for i in known])
            default = 0 if self.moved_from else version
            self.kept_versions = tuple([record.versions[i] or default for i in known])
            self.kept = b"".join([record.outputs[i * answer_bytes : (i + 1) * answer_bytes] for i in known])

    def answer_versions(self, version: int, by_timestep: Sequence[int]) -> tuple[int, ...]:
        """Return the version that computed each answer of `answered_at`, 0 if that is not known.

        Args:
            version: The version that has responded now.
            by_timestep: That of each timestep that was applied now, if they are several.
        """
        if self.timestep.keep != "all":
            return (version,)
        return (*self.kept_versions, *(by_timestep or (version,) * self.applied.length))

    def advance_sources(self) -> None:
        """Set the positions of sources after this request; a stream without any has none."""
        before = self.cached_sources if self.record is None else self.record.sources
        source = self.timestep.source
        self.sources, self.source_changed = (before, False) if source is None else advanced(before, source)

    @property
    def entry_key(self) -> str | None:
        """Key of the idempotency entry, or of the end entry if the request ends its stream; None: it has neither."""
        timestep = self.timestep
        if timestep.idempotency_key is not None:
            return keys.idempotency_key_of(self.name, timestep.idempotency_key)
        return keys.end_entry_key(self.name) if timestep.lifecycle == "last" else None

    def intent(self, fingerprint: bytes | None) -> StepIntent:
        """Return the request as `decide` needs it."""
        timestep = self.timestep
        return StepIntent(
            self.op_id,
            timestep.length,
            timestep.seq,
            timestep.after,
            timestep.create,
            fingerprint,
            timestep.lifecycle in STARTS,
            timestep.source,
        )

    def set_stored(self, stored: bytes | None, record: Record | None, *, exact: bool = False) -> None:
        """Set the stream's record as the store has it; None: the stream is missing.

        Args:
            stored: Its bytes.
            record: The record.
            exact: See `is_exact`.
        """
        self.is_exact = exact
        self.is_loaded, self.record, self.stored, self.confirmed = True, record, stored or b"", False
        self.skipped, self.kept, self.kept_at, self.kept_versions, self.cached_sources = 0, b"", (), (), ()
        self.placed = None

    def set_idempotency_entry(self, entry: IdempotencyEntry) -> None:
        """Set the loaded entry. An end entry counts only if the stream is missing and this request ended it."""
        if self.timestep.idempotency_key is not None or (self.record is None and entry.op_id == self.op_id):
            self.entry = entry

    def invalidate(self) -> None:
        """Discard what was loaded, so that the next attempt loads it again."""
        self.set_stored(None, None)
        self.is_loaded, self.entry = False, None

    def reject(self, error: ServiceError) -> None:
        """Reply with an error to a timestep that waits, and end its reservation."""
        if self.reservation is not None:
            self.reservation.end(begun=error.applied != "no")
        self.done(error)

    def for_version(self, fingerprint: bytes) -> QueuedStep:
        """Return the row as another model version steps it, with the record that was loaded; this one is answered.

        Args:
            fingerprint: Of that version, 8 bytes.
        """
        other = replace(self, stepped_by=fingerprint)
        self.answered = True
        return other
