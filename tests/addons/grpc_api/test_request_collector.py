"""`RequestCollector`: requests that follow each other closely are submitted together, and one alone at once."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

pytest.importorskip("grpc", reason="grpcio is not installed: STEPWELL_EXTRAS=grpc")

from stepwell.addons.grpc_api.request_collector import RequestCollector


class Submitted:
    """Records in which turn of the loop each request was submitted."""

    def __init__(self) -> None:
        self.collector = RequestCollector()
        self.turns: dict[int, int] = {}
        self._turn = 0

    @property
    def names(self) -> list[int]:
        return list(self.turns)

    def add(self, *names: int) -> None:
        for name in names:
            self.collector.add(partial(self._submit, name))

    def _submit(self, name: int) -> None:
        self.turns[name] = self._turn

    async def next_turn(self) -> None:
        loop = asyncio.get_running_loop()
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned
        self._turn += 1

    async def until(self, count: int) -> None:
        while len(self.turns) < count:
            await self.next_turn()


async def test_one_alone_is_submitted_at_once() -> None:
    found = Submitted()
    for name in range(3):
        found.add(name)
        assert found.names[-1] == name
        found.collector.finished()


async def test_requests_that_follow_a_pending_one_are_submitted_together_in_order() -> None:
    found = Submitted()
    found.add(0, 1, 2, 3)
    assert found.names == [0]
    await found.until(4)

    assert found.names == [0, 1, 2, 3]
    assert found.turns[1] == found.turns[2] == found.turns[3]


async def test_requests_that_never_pause_do_not_wait_for_ever() -> None:
    found = Submitted()
    sent = 0
    while len(found.turns) < 2:
        found.add(*range(sent, sent + 10))
        sent += 10
        await found.next_turn()

    assert found.names == list(range(len(found.turns)))
    assert sent < 300


async def test_after_a_group_the_next_one_waits_for_the_others() -> None:
    """Clients that were answered together send their next timesteps together."""
    found = Submitted()
    found.add(0, 1, 2)
    await found.until(3)
    for _ in range(3):
        found.collector.finished()
    found.add(3)
    assert found.names == [0, 1, 2]
    found.add(4)
    await found.until(5)

    assert found.names == [0, 1, 2, 3, 4]
    assert found.turns[3] == found.turns[4]


async def test_after_one_alone_the_next_one_is_submitted_at_once() -> None:
    found = Submitted()
    found.add(0, 1, 2)
    await found.until(3)
    for _ in range(3):
        found.collector.finished()
    found.add(3)
    await found.until(4)
    found.collector.finished()
    found.add(4)

    assert found.names == [0, 1, 2, 3, 4]
