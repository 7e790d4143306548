"""`Pending`: a timestep on its way through a batcher, with what was seen of its stream so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

from service.engine.decide import Intent
from service.engine.types import Done, StreamKey, Timestep
from service.store import keys
from service.store.record import KeyEntry, Record


@dataclass(slots=True, eq=False)
class Pending:
    """A timestep on its way through a batcher.

    Attributes:
        timestep: The request.
        intent: What the decision needs of it.
        done: Takes the answer.
        received: When it came, on the loop's clock.
        deadline: When it must be answered, on the loop's clock.
        record_key: Where the store has the stream.
        view: The stream's record as last seen; None: missing, or not yet seen.
        seen: Whether `view` says anything.
        fresh: `view` came from the store during this request.
        must_read: The cached record was not enough to decide on.
        entry: The answer that its idempotency key had given, as far as read.
        answered: `done` was called, or another batcher took the request over.
    """

    timestep: Timestep
    intent: Intent
    done: Done
    received: float
    deadline: float
    record_key: str
    view: Record | None = None
    seen: bool = False
    fresh: bool = False
    must_read: bool = False
    entry: KeyEntry | None = None
    answered: bool = False

    @property
    def queue_key(self) -> StreamKey:
        """The stream."""
        return self.timestep.key

    @property
    def length(self) -> int:
        """Timesteps."""
        return self.timestep.length

    @property
    def entry_key(self) -> str | None:
        """Where the store remembers this request's idempotency key."""
        key = self.timestep.idempotency_key
        return None if key is None else keys.entry_key(self.record_key, key)

    def moved(self, fingerprint: bytes) -> Pending:
        """Return the same request for another model version, nothing seen yet."""
        intent = replace(self.intent, fingerprint=fingerprint)
        return replace(self, intent=intent, view=None, seen=False, fresh=False)
