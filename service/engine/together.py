"""`Together`: the way of blocks, whose timesteps go through in columns as long as nothing about them is unusual."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from model_export.manifest import Array
from service.engine.batch import kept, pack_outputs
from service.engine.block import Block
from service.engine.cache import MISSING
from service.engine.pending import Pending
from service.engine.rounds import Moved, Rounds
from service.engine.types import Made
from service.store.commits import RowCommits
from service.store.record import HEADER_BYTES
from service.store.record_rows import decode_rows, encode_rows, guard_rows


class Together(Rounds):
    """Takes blocks in one go, and whatever is unusual about one of them row by row."""

    def _oldest(self, rows: Sequence[Pending]) -> float:
        return rows.oldest if isinstance(rows, Block) else super()._oldest(rows)

    async def _round(self, rows: Sequence[Pending], deadline: float) -> Sequence[Pending]:
        if isinstance(rows, Block):
            return await self._whole(rows, deadline)
        return await super()._round(rows, deadline)

    async def _whole(self, block: Block, deadline: float) -> Sequence[Pending]:
        """Take a block whose records are all here, or read, and surely what it follows; return what is left to do."""
        names, served = block.names, self._served
        if self._audience.hears(served.name):
            return list(block)
        slots, heads, unsure = self._find(block)
        if unsure:
            if not await self._read(block, unsure, deadline):
                return list(block)
            slots, heads, still = self._find(block)
            if still:
                return list(block)
        self._observer.cache(len(names) - len(unsure), len(unsure))
        states, refreshed = self._cache.states(slots), self._cache.refreshed(slots)
        ran = await self._runner.run(block.inputs(self._runner.inputs), states)
        if ran.rows is not None:
            return await self._go_on(list(block), heads, refreshed, ran, deadline)
        outputs, states = kept(block.keep, ran.outputs), ran.states
        packed = pack_outputs(served.manifest.answered, outputs, len(names))
        commits = RowCommits(names, HEADER_BYTES + packed.shape[1] + states.shape[1])
        commits.guards[:] = guard_rows(heads)
        chains = self._step_on(block.op_ids, block.length, heads)
        encode_rows(commits.records, heads, packed, states)
        began = time.perf_counter()
        answers = await self._store.commit(commits, deadline=deadline, refreshed=float(refreshed.min()))
        self._observer.store("commit", time.perf_counter() - began)
        moved = Moved(names, heads, states, refreshed, outputs, chains)
        if answers.others:
            return self._settle(list(block), moved, [], answers)
        self._remember(moved, answers)
        block.answer(Made(outputs, heads["step"].tolist(), chains), served.version)
        self._answered(len(names))
        self._observer.answered(served.name, block.waited(self._time()))
        for door, rows in block.doors.items():
            self._observer.applied(served.name, door, rows * block.length)
        return []

    def _find(self, block: Block) -> tuple[Array, Array, list[int]]:
        """Return the slots and headers of a block's records, and the places of those that it does not surely follow."""
        slots = self._cache.find(block.names)
        heads = self._cache.heads(slots)
        sure = block.follows(heads)
        sure &= slots != MISSING
        return slots, heads, [] if np.count_nonzero(sure) == len(sure) else np.flatnonzero(~sure).tolist()

    async def _read(self, block: Block, places: Sequence[int], deadline: float) -> bool:
        """Read some of a block's records into the cache; False: not all of them are what one goes on from.

        What is then still unsure is decided on row by row, on what the store has at that time.
        """
        if block.begins(places):
            return False
        names = [block.names[at] for at in places]
        began = time.perf_counter()
        found = await self._store.load_each(names, deadline=deadline)
        self._observer.store("load", time.perf_counter() - began)
        read = decode_rows(found, self._served.fingerprint, self._model.state_bytes)
        if read is None:
            return False
        self._cache.put(names, *read, -np.inf)
        return True
