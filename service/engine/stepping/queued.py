"""`QueuedStep`: a timestep on its way through a batcher, with what was seen of its stream so far."""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import Struct
from msgspec.structs import replace

from service.engine.limits import Reservation
from service.engine.protocol.decide import NO_STEP, StepIntent
from service.store import keys
from service.store.record import IdempotencyEntry, Record
from service.types import STARTS, ReplyCallback, Timestep


class QueuedStep(Struct, eq=False, gc=False):
    """A timestep on its way through a batcher.

    Attributes:
        timestep: The request.
        done: Takes the answer.
        received: When it came, on the loop's clock.
        name: Where the store has the stream.
        shape: What it has in common with those that it may be run with.
        op_id: Names the operation: the same for every retry of it, 16 bytes.
        comes_after: The step on which it surely applies, whatever else a record of the model that would run holds;
            `NO_STEP`: there is none, or more to look at.
        peeks: It asks for the prediction alone: nothing is to be committed.
        fresh: `record` came from the store during this request.
        view: With `is_loaded`, the stream's record; None: the stream is missing.
        stored: The bytes of `record`.
        entry: The answer that it had been given, as far as one is remembered beside the stream and was read.
        confirmed: A replica has what was seen, where the durability asks for that.
        answered: `done` was called, or another batcher took the request over.
        room: Of its tenant, for the stream that it may begin; None: it begins none, or there is no limit.
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
    room: Reservation | None = None

    @property
    def entry_key(self) -> str | None:
        """Where the store remembers the answer to this request beside the stream: by its key, or as last words."""
        ask = self.timestep
        if ask.idempotency_key is not None:
            return keys.idempotency_key_of(self.name, ask.idempotency_key)
        return keys.end_entry_key(self.name) if ask.lifecycle == "last" else None

    def intent(self, fingerprint: bytes) -> StepIntent:
        """Return what the decision needs of the request."""
        ask = self.timestep
        return StepIntent(self.op_id, ask.length, ask.seq, ask.after, ask.create, fingerprint, ask.lifecycle in STARTS)

    def set_stored(self, stored: bytes | None, view: Record | None) -> None:
        """Take what the store has as the truth."""
        self.is_loaded, self.record, self.stored, self.confirmed = True, view, stored or b"", False

    def set_idempotency_entry(self, entry: IdempotencyEntry) -> None:
        """Take what stands at `idempotency_key_of`; last words count where the stream is gone, for the request that ended it."""
        if self.timestep.idempotency_key is not None or (self.record is None and entry.op_id == self.op_id):
            self.entry = entry

    def invalidate(self) -> None:
        """Look at the store again before the next decision."""
        self.is_loaded, self.record, self.stored, self.entry, self.confirmed = False, None, b"", None, False

    def for_other_version(self) -> QueuedStep:
        """Return the same request for another model version, nothing seen yet."""
        return replace(self, is_loaded=False, record=None, stored=b"", entry=None, confirmed=False, answered=False)
