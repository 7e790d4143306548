"""`QueuedStep`: a timestep in a batcher, with what was loaded of its stream so far."""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import Struct
from msgspec.structs import replace

from service.engine.protocol.decide import NO_STEP, StepIntent
from service.engine.tenant_limits import Reservation
from service.store import keys
from service.store.record import IdempotencyEntry, Record
from service.types import STARTS, ReplyCallback, Timestep


class QueuedStep(Struct, eq=False, gc=False):
    """A timestep in a batcher.

    Attributes:
        timestep: The request.
        done: Called with the result.
        received: When it was received, on the monotonic clock. The loop's clock has the same zero, but under uvloop it
            counts whole milliseconds, and is read once per iteration.
        name: Key of the stream's record.
        shape: Equal for timesteps that may be in one batch.
        op_id: Identifies the operation, the same for every retry of it, 16 bytes.
        expected_step: It certainly applies to a record of the running model at this step, whatever else the record
            holds; `NO_STEP`: there is no such step, or other fields matter, too.
        dry_run: Only the prediction is requested; nothing is committed.
        is_loaded: `record` was loaded from the store during this request.
        record: With `is_loaded`, the stream's record; None: the stream is missing.
        stored: The bytes of `record`; empty: the stream is missing.
        entry: The idempotency or end entry of this request, if one was loaded.
        confirmed: A Redis replica has what was loaded, if the durability requires that.
        answered: `done` was called, or another batcher is responsible for the request.
        reservation: Of the tenant's quota, for the stream that it may create; None: it creates none, or there is no
            limit.
    """

    timestep: Timestep
    done: ReplyCallback
    received: float
    name: str
    shape: Hashable
    op_id: bytes
    expected_step: int = NO_STEP
    dry_run: bool = False
    is_loaded: bool = False
    record: Record | None = None
    stored: bytes = b""
    entry: IdempotencyEntry | None = None
    confirmed: bool = False
    answered: bool = False
    reservation: Reservation | None = None

    @property
    def entry_key(self) -> str | None:
        """Key of the idempotency entry, or of the end entry if the request ends its stream; None: it has neither."""
        timestep = self.timestep
        if timestep.idempotency_key is not None:
            return keys.idempotency_key_of(self.name, timestep.idempotency_key)
        return keys.end_entry_key(self.name) if timestep.lifecycle == "last" else None

    def intent(self, fingerprint: bytes) -> StepIntent:
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
        )

    def set_stored(self, stored: bytes | None, record: Record | None) -> None:
        """Set the stream's record as the store has it; None: the stream is missing."""
        self.is_loaded, self.record, self.stored, self.confirmed = True, record, stored or b"", False

    def set_idempotency_entry(self, entry: IdempotencyEntry) -> None:
        """Set the loaded entry. An end entry counts only if the stream is missing and this request ended it."""
        if self.timestep.idempotency_key is not None or (self.record is None and entry.op_id == self.op_id):
            self.entry = entry

    def invalidate(self) -> None:
        """Discard what was loaded, so that the next attempt loads it again."""
        self.is_loaded, self.record, self.stored, self.entry, self.confirmed = False, None, b"", None, False

    def for_other_version(self) -> QueuedStep:
        """Return the same request for another model version, with nothing loaded."""
        return replace(self, is_loaded=False, record=None, stored=b"", entry=None, confirmed=False, answered=False)
