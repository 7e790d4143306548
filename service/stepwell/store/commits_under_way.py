"""`CommitsUnderWay`: the commits that were sent and have no reply yet, for what has to wait for them."""

from __future__ import annotations

import asyncio
from types import TracebackType


class CommitsUnderWay:
    """The commits of this worker that are under way, in groups: one for the time between two calls of `wait`.

    Attributes:
        newest: The group that a commit joins as it begins.
    """

    def __init__(self) -> None:
        self.newest = CommitGroup()
        self._groups = {self.newest}

    async def wait(self) -> None:
        """Wait until all commits that have begun so far have ended."""
        earlier = [*self._groups]
        self.newest = CommitGroup()
        self._groups.add(self.newest)
        for group in earlier:
            await group.ended()
            self._groups.discard(group)


class CommitGroup:
    """The commits that began between two calls of `CommitsUnderWay.wait`.

    As a context it is one of them, which begins before its records are sent: when its events are decided. Enter it at
    once: a context that is entered after a later `wait` has begun is not waited for.

    Attributes:
        n: Number of its commits that have not ended.
        all_ended: Set when there is none left; None: nothing waits for them.
    """

    __slots__ = ("all_ended", "n")

    def __init__(self) -> None:
        self.n = 0
        self.all_ended: asyncio.Event | None = None

    def __enter__(self) -> None:
        self.n += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.n -= 1
        if not self.n and self.all_ended is not None:
            self.all_ended.set()

    async def ended(self) -> None:
        """Wait until all of its commits have ended; none may begin any more."""
        if self.n:
            self.all_ended = self.all_ended or asyncio.Event()
            await self.all_ended.wait()
