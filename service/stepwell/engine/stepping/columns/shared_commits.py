"""`SharedCommits`: commits of several batches of a model, sent to the store in one command."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from stepwell.errors import OutcomeUnknownError, ServiceError
from stepwell.store.commits import ColumnarCommits, Commit, CommitResults, JoinedCommits, Notification

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore

_SAME_DEADLINE_S: Final = 0.05  # batches whose deadlines are so close are sent together


class _Part(NamedTuple):
    commits: ColumnarCommits
    deadline: float
    expiry_set_at: float
    results: asyncio.Future[CommitResults] | None  # None: the batch that sends the command


class SharedCommits:
    """Commits batches of all versions and pairs of one model.

    While streams move between versions, the streams of one request are in several batches, which run one after another
    in one iteration of the event loop. Their commits are sent together: a command to the store costs as much as
    dozens of timesteps.

    Attributes:
        is_on: Whether commits may be sent together; else each batch sends its own at once.
    """

    def __init__(self, store: StateStore) -> None:
        """Create it; it is off."""
        self.is_on = False
        self._store = store
        self._parts: list[_Part] = []  # those that are sent in the next iteration of the loop

    async def commit(
        self,
        commits: Sequence[Commit],
        *,
        deadline: float,
        expiry_set_at: float,
        notifications: Sequence[Notification] = (),
    ) -> CommitResults:
        """Commit a batch; arguments, result and errors are those of `StateStore.commit`."""
        if not self.is_on or notifications or type(commits) is not ColumnarCommits or not self._fits(commits, deadline):
            return await self._store.commit(
                commits, deadline=deadline, expiry_set_at=expiry_set_at, notifications=notifications
            )
        if self._parts:
            results: asyncio.Future[CommitResults] = asyncio.get_running_loop().create_future()
            self._parts.append(_Part(commits, deadline, expiry_set_at, results))
            return await results
        self._parts.append(_Part(commits, deadline, expiry_set_at, None))
        parts: Sequence[_Part] = ()
        try:
            try:
                await asyncio.sleep(0)  # until the other batches that run in this iteration have added theirs
            finally:
                parts, self._parts = self._parts, []
            return await self._send(parts)
        except BaseException as exc:
            error = exc if isinstance(exc, ServiceError) else OutcomeUnknownError("The service ended during a commit.")
            for part in parts:
                if part.results is not None and not part.results.done():
                    part.results.set_exception(error)
            raise

    async def _send(self, parts: Sequence[_Part]) -> CommitResults:
        """Commit all parts, and return the results of the first one."""
        together = [part.commits for part in parts]
        found = await self._store.commit(
            together[0] if len(parts) == 1 else JoinedCommits(together),
            deadline=max([part.deadline for part in parts]),
            expiry_set_at=min([part.expiry_set_at for part in parts]),
        )
        start = len(together[0])
        for part in parts[1:]:
            stop = start + len(part.commits)
            if part.results is not None and not part.results.done():
                part.results.set_result(found.part(start, stop))
            start = stop
        return found.part(0, len(together[0]))

    def _fits(self, commits: ColumnarCommits, deadline: float) -> bool:
        """Whether a batch can be sent with those that wait.

        It cannot if their deadlines differ, or if a stream is in one of them: a request that names a version is not
        submitted where others wait.
        """
        return all(
            abs(part.deadline - deadline) <= _SAME_DEADLINE_S and set(part.commits.names).isdisjoint(commits.names)
            for part in self._parts
        )
