"""`Together`: the way of blocks, whose timesteps go through in columns as long as nothing about them is unusual."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import numpy as np

from model_export.manifest import Array
from service.engine.batch import all_true, kept, pack_outputs
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

    # What is left of a block comes round again as a list. Asking whether something is one is cheap, unlike whether it
    # is a `Block`.

    def _oldest(self, rows: Sequence[Pending]) -> float:
        return super()._oldest(rows) if isinstance(rows, list) else cast("Block", rows).oldest

    async def _round(self, rows: Sequence[Pending], deadline: float) -> Sequence[Pending]:
        if isinstance(rows, list):
            return await super()._round(rows, deadline)
        return await self._whole(cast("Block", rows), deadline)

    async def _whole(self, block: Block, deadline: float) -> Sequence[Pending]:
        """Take a block whose records are all here, or read, and surely what it follows; return what is left to do."""
        names, served = block.names, self._served
        slots = self._cache.find(names)
        heads, states, refreshed = self._cache.heads(slots), self._cache.states(slots), self._cache.refreshed(slots)
        sure = block.follows(heads)
        if begins := block.begins:
            sure &= slots != MISSING  # where nothing is cached, the header is that of a stream without a step
        unsure: list[int] = [] if all_true(sure) else np.flatnonzero(~sure).tolist()
        if unsure:
            read = None if begins else await self._read(block, unsure, deadline)
            if read is None:
                return list(block)
            heads[unsure], states[unsure], refreshed[unsure] = *read, -np.inf
            if not block.follows(heads).all():
                return list(block)  # it is decided row by row, on what the store has at that time
        self._observer.cache(len(names) - len(unsure), len(unsure))
        ran = await self._runner.run(block.inputs(self._runner.inputs), states)
        if ran.rows is not None or self._audience.hears(served.name):  # asked at the last moment: none may be missed
            return await self._go_on(list(block), heads, refreshed, ran, deadline)
        outputs, states = kept(block.keep, ran.outputs), ran.states
        packed = pack_outputs(self._specs, outputs, len(names))
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
        self._answered(len(names), len(names) * block.length * self._timestep_bytes)
        self._observer.answered(served.name, block.waited(self._time()))
        for door, rows in block.doors.items():
            self._observer.applied(served.name, door, rows * block.length)
        return []

    async def _read(self, block: Block, places: Sequence[int], deadline: float) -> tuple[Array, Array] | None:
        """Return headers and states of some records from the store; None: one is not what one goes on from."""
        began = time.perf_counter()
        found = await self._store.load_each([block.names[at] for at in places], deadline=deadline)
        self._observer.store("load", time.perf_counter() - began)
        return decode_rows(found, self._served.fingerprint, self._model.state_bytes)
