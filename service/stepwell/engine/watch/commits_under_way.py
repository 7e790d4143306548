"""`CommitsUnderWay`: the commits that were sent and have no reply yet, so that a new watch can wait for them."""

from __future__ import annotations

import asyncio
from types import TracebackType


class CommitsUnderWay:
    """The commits of this worker that are under way, in groups: one for the time between two calls of `wait`."""

    def __init__(self) -> None:
        self._newest = CommitGroup()
        self._groups = {self._newest}

    def begin(self) -> CommitGroup:
        """Return a context for one commit: enter it when its events are decided, leave it when the store has replied.

        Enter it at once: a context that is entered after a later `wait` has begun is not waited for.
        """
        return self._newest

    async def wait(self) -> None:
        """Wait until all commits that have begun so far have ended."""
        earlier = [*self._groups]
        self._newest = CommitGroup()
        self._groups.add(self._newest)
        for group in earlier:
            await group.ended()
            self._groups.discard(group)


class CommitGroup:
    """The commits that began between two calls of `CommitsUnderWay.wait`."""

    __slots__ = ("_ended", "_n")

    def __init__(self) -> None:
        self._n = 0
        self._ended: asyncio.Event | None = None

    def __enter__(self) -> None:
        self._n += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._n -= 1
        if not self._n and self._ended is not None:
            self._ended.set()

    async def ended(self) -> None:
        """Wait until all of its commits have ended; none may begin any more."""
        if self._n:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()
