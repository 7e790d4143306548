"""`Pending`: a timestep on its way through a batcher, with what was seen of its stream so far."""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import Struct
from msgspec.structs import replace

from service.engine.decide import NO_STEP, Intent
from service.engine.tenants import Reservation
from service.engine.types import BEGINS, Done, Timestep
from service.store import keys
from service.store.record import KeyEntry, Record


class Pending(Struct, eq=False, gc=False):
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
        fresh: `view` came from the store during this request.
        view: With `fresh`, the stream's record; None: the stream is missing.
        stored: The bytes of `view`.
        entry: The answer that it had been given, as far as one is remembered beside the stream and was read.
        confirmed: A replica has what was seen, where the durability asks for that.
        answered: `done` was called, or another batcher took the request over.
        room: Of its tenant, for the stream that it may begin; None: it begins none, or there is no limit.
    """

    timestep: Timestep
    done: Done
    received: float
    name: str
    shape: Hashable
    op_id: bytes
    comes_after: int = NO_STEP
    peeks: bool = False
    fresh: bool = False
    view: Record | None = None
    stored: bytes = b""
    entry: KeyEntry | None = None
    confirmed: bool = False
    answered: bool = False
    room: Reservation | None = None

    @property
    def entry_key(self) -> str | None:
        """Where the store remembers the answer to this request beside the stream: by its key, or as last words."""
        ask = self.timestep
        if ask.idempotency_key is not None:
            return keys.entry_key(self.name, ask.idempotency_key)
        return keys.last_words_key(self.name) if ask.life == "last" else None

    def intent(self, fingerprint: bytes) -> Intent:
        """Return what the decision needs of the request."""
        ask = self.timestep
        return Intent(self.op_id, ask.length, ask.seq, ask.after, ask.create, fingerprint, ask.life in BEGINS)

    def seen(self, stored: bytes | None, view: Record | None) -> None:
        """Take what the store has as the truth."""
        self.fresh, self.view, self.stored, self.confirmed = True, view, stored or b"", False

    def recall(self, entry: KeyEntry) -> None:
        """Take what stands at `entry_key`; last words count where the stream is gone, for the request that ended it."""
        if self.timestep.idempotency_key is not None or (self.view is None and entry.op_id == self.op_id):
            self.entry = entry

    def forget_view(self) -> None:
        """Look at the store again before the next decision."""
        self.fresh, self.view, self.stored, self.entry, self.confirmed = False, None, b"", None, False

    def moved(self) -> Pending:
        """Return the same request for another model version, nothing seen yet."""
        return replace(self, fresh=False, view=None, stored=b"", entry=None, confirmed=False, answered=False)
