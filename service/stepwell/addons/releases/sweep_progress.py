"""Sweeps: the request to move the sleeping streams of a model to where its release places them, and its progress.

One hash per model, `keys.sweep_key`: `requested_at` (identifies the sweep), `revision` (of the document when it was
requested), `limit_per_s` (0: no limit), `moved`, `left` (streams that are still to be moved).
"""

from __future__ import annotations

from typing import NamedTuple

from stepwell.addons.releases import keys
from stepwell.store.state_store import StateStore
from stepwell.store.transport.retry import deadline


class SweepProgress(NamedTuple):
    """The newest sweep of a model.

    Attributes:
        requested_at: When it was requested, seconds since 1970; 0: there was none.
        revision: The document's revision when it was requested.
        limit_per_s: Most streams to move in a second; 0: no limit.
        moved: Streams that it has moved.
        left: Streams that it has still to move.
    """

    requested_at: float = 0.0
    revision: int = 0
    limit_per_s: int = 0
    moved: int = 0
    left: int = 0


async def request_sweep(store: StateStore, model: str, sweep: SweepProgress) -> None:
    """Replace a model's sweep by a new one.

    Raises:
        ServiceError: An error of the store.
    """
    fields = [part for name, value in sweep._asdict().items() for part in (name, repr(value))]
    await store.execute(deadline(), "HSET", keys.sweep_key(model), *fields)


async def read_sweep(store: StateStore, model: str) -> SweepProgress:
    """Return the newest sweep of a model.

    Raises:
        ServiceError: An error of the store.
    """
    flat = await store.execute(deadline(), "HGETALL", keys.sweep_key(model))
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return SweepProgress(
        float(fields.get(b"requested_at", 0)),
        *(int(fields.get(name, 0)) for name in (b"revision", b"limit_per_s", b"moved", b"left")),
    )
