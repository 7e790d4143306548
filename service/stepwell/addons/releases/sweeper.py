"""`Sweeper`: moves streams that sleep to where the release of their model places them."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.between_workers.store_lease import StoreLease
from stepwell.addons.releases import keys
from stepwell.addons.releases.pair_state import Standing
from stepwell.addons.releases.sweep_progress import read_sweep
from stepwell.addons.releases.takeover import TakeOverError
from stepwell.errors import ServiceError
from stepwell.store.commits import Commit, Outcome
from stepwell.store.keys import records_pattern, stream_of, tenant_of
from stepwell.store.listing import scan
from stepwell.store.record import decode
from stepwell.store.transport.retry import deadline
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.addons.releases.placing import ReleasePlacing
    from stepwell.engine.streams.transaction import StreamOpDeps

_PAGE: Final = 500
_LEASE_S: Final = 15.0


class Sweeper:
    """Runs the sweeps that were requested; one worker of all replicas runs that of a model at a time.

    A sweep changes neither step nor state id nor the newest prediction of a stream, so that `after` and retries hold.
    """

    def __init__(self, deps: StreamOpDeps, placing: ReleasePlacing, *, lease_s: float = _LEASE_S) -> None:
        """Create it.

        Args:
            deps: Store, models and quota.
            placing: Places streams by the releases.
            lease_s: Seconds after which another worker sweeps if the one that did has ended.
        """
        self._deps = deps
        self._lease_s = lease_s
        self._placing = placing
        self._worker = secrets.token_hex(8)

    async def run(self) -> None:
        """Run the requested sweeps that no other worker runs.

        Raises:
            ServiceError: An error of the store; the sweep goes on at the next call.
        """
        for model in self._placing.documents.models():
            sweep = await read_sweep(self._deps.store, model)
            document = self._placing.documents.current(model)
            if sweep.left and document is not None and document.revision >= sweep.revision:
                entry = StoreLease(self._deps.store, keys.sweep_lease_key(model))
                lease = Lease(entry, self._worker, lease_s=self._lease_s)
                await lease.run(partial(self._sweep, model, sweep.requested_at, lease))

    async def _sweep(self, model: str, requested_at: float, lease: Lease) -> None:
        """Move all streams of a model, page by page, until none is left that can be moved.

        What another worker has moved since the sweep was read is counted on, not overwritten.
        """
        store, loop = self._deps.store, asyncio.get_running_loop()
        sweep = await read_sweep(store, model)
        if sweep.requested_at != requested_at or not sweep.left:
            return
        moved, position, left = sweep.moved, "start", 0
        pattern = records_pattern("*", model, "")
        while position != "end":
            started_at = loop.time()
            position, found = await scan(store.transport, position, pattern, _PAGE, deadline())
            if not lease.is_held:
                return
            n_moved, n_left = await self._move(model, [*dict.fromkeys(found)])
            moved, left = moved + n_moved, left + n_left
            is_current = (await read_sweep(store, model)).requested_at == requested_at
            if not is_current or not lease.is_held:
                return  # another one was requested, or another worker has the lease
            await self._report(model, moved, max(left, 1))
            if sweep.limit_per_s:
                await asyncio.sleep(max(0.0, n_moved / sweep.limit_per_s - (loop.time() - started_at)))
        await self._report(model, moved, left)

    async def _report(self, model: str, moved: int, left: int) -> None:
        await self._deps.store.execute(deadline(), "HSET", keys.sweep_key(model), "moved", moved, "left", left)

    async def _move(self, model: str, names: Sequence[str]) -> tuple[int, int]:
        """Move some streams, and return how many were moved, and how many are left because they were stepped."""
        deps, plan = self._deps, self._placing.plan(model)
        if plan is None or not names:
            return 0, 0
        commits = []
        loaded = await deps.store.load_with_errors(names, deadline=deadline())
        for name, raw in zip(names, loaded, strict=True):
            try:
                record = decode(raw) if isinstance(raw, bytes) else None
            except ServiceError:
                continue  # corrupt: its next step reports it
            if record is None:
                continue
            standing = Standing.of(record)
            if not (moves := plan.moves(standing, name)):
                continue
            try:
                await self._ensure_loaded(model, record.fingerprint, record.state, moves[-1].assignment.fingerprint)
                after = self._placing.moved(model, record, standing, moves)
            except TakeOverError:
                continue
            commits.append(Commit(name, record.guard, after.encode()))
        if not commits:
            return 0, 0
        # Moving a stream is no use of it: its expiry stays as it is.
        results = await deps.store.commit(commits, deadline=deadline(), expiry_set_at=math.inf)
        for commit in commits:
            deps.invalidate(StreamKey(tenant_of(commit.key), model, stream_of(commit.key)))
        n_left = sum(result.outcome is not Outcome.DUPLICATE for result in results.not_applied.values())
        return len(commits) - n_left, n_left

    async def _ensure_loaded(self, model: str, fingerprint: bytes, state: bytes, target: bytes) -> None:
        models = self._deps.models
        await models.find(model, fingerprint, state)
        if not models.joined.parts(model, target):
            await models.keep(model, target, deadline())
