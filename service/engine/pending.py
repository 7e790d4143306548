"""`Pending`: a timestep on its way through a batcher, with what was seen of its stream so far."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from service.engine.decide import Intent
from service.engine.types import Done, Timestep
from service.store import keys
from service.store.record import KeyEntry, Record


@dataclass(slots=True, eq=False)
class Pending:
    """A timestep on its way through a batcher.

    Attributes:
        timestep: The request.
        done: Takes the answer.
        received: When it came, on the loop's clock.
        name: Where the store has the stream.
        shape: What it has in common with those that it may be run with.
        data: The bytes of each input, in the order of `RequestNames.inputs`.
        op_id: Names the operation: the same for every retry of it, 16 bytes.
        peeks: It asks for the prediction alone: nothing is to be committed.
        fresh: `view` came from the store during this request.
        view: With `fresh`, the stream's record; None: the stream is missing.
        stored: The bytes of `view`.
        entry: The answer that its idempotency key had given, as far as read.
        confirmed: A replica has what was seen, where the durability asks for that.
        answered: `done` was called, or another batcher took the request over.
    """

    timestep: Timestep
    done: Done
    received: float
    name: str
    shape: Hashable
    data: Sequence[bytes]
    op_id: bytes
    peeks: bool = False
    fresh: bool = False
    view: Record | None = None
    stored: bytes = b""
    entry: KeyEntry | None = None
    confirmed: bool = False
    answered: bool = False

    @property
    def entry_key(self) -> str | None:
        """Where the store remembers this request's idempotency key."""
        key = self.timestep.idempotency_key
        return None if key is None else keys.entry_key(self.name, key)

    def intent(self, fingerprint: bytes) -> Intent:
        """Return what the decision needs of the request."""
        ask = self.timestep
        return Intent(self.op_id, ask.length, ask.seq, ask.after, ask.create, fingerprint)

    def seen(self, stored: bytes | None, view: Record | None) -> None:
        """Take what the store has as the truth."""
        self.fresh, self.view, self.stored, self.confirmed = True, view, stored or b"", False

    def moved(self) -> Pending:
        """Return the same request for another model version, nothing seen yet."""
        return replace(self, fresh=False, view=None, stored=b"", entry=None, confirmed=False, answered=False)
