"""`ServerWire`: the way to one server, telling apart what was surely not sent from what may have been done.

redis-py finds the server, opens the connection and authenticates (also through Sentinel and TLS); then a `Link` takes
the connection over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.store.link import Argument, Link, NoReplyError, NotSentError, RefusalError

_log = logging.getLogger(__name__)
_MANY_LATE = 3  # exchanges in a row without a reply in time, after which the server counts as away
_LONG_SHARE = 0.4  # of `timeout`; who waited shorter than that for a connection cannot tell
_PROBE_S = 1.0  # a server that does not answer a PING within it stays away
_PROBE_PAUSE_S = 0.1
_DENIED = (AuthenticationError, NoPermissionError)  # redis-py wraps them, or not


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A reply to a write that no replica confirmed in time.

    Attributes:
        reply: The primary's.
    """

    reply: Any


class ServerWire:
    """Connections to one server, or to the primary that Sentinels name.

    A server that was late several times in a row counts as away: calls then fail at once, until it answers a PING.
    A server that refuses connections does not: it may be restarting, and a call is tried again until its deadline.

    Attributes:
        timeout: Seconds that connecting, and one exchange, may take.
        away: Calls fail at once.
        closed: `close` was called: connections are opened no more.
    """

    one_stream = False

    def __init__(self, pool: ConnectionPool, *, timeout: float) -> None:
        """Prepare connections; none is opened yet.

        Args:
            pool: redis-py's way to make them.
            timeout: Seconds that connecting, and one exchange, may take.
        """
        self.timeout = timeout
        self.away = False
        self.closed = False
        self._pool = pool
        self._late = 0
        self._probe: asyncio.Task[None] | None = None
        self._shared: Link | None = None
        self._idle: list[Link] = []
        self._confirming: set[Link] = set()  # in use by one caller each
        self._opening = asyncio.Lock()
        self._complaint = ""  # why no connection was had, as it was logged

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send commands in one write on one connection, and read their replies; see `Wire`."""
        if self.away:
            raise NotSentError("it has not answered for a while", hopeless=True)
        limit = self.timeout if timeout is None else timeout
        if confirm:
            return await self._confirmed(commands, limit)
        link = self._shared
        if link is None or not link.is_open:
            link = await self._shared_link(limit)
        replies = await link.call(commands, limit)
        self._note(link, replies)
        return replies

    async def parts(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerWire]]:
        """Return this server alone."""
        return "0", [self]

    async def close(self) -> None:
        """Close every connection; none is opened any more."""
        self.closed = True
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probe
        for link in [*self._idle, *self._confirming, *([self._shared] if self._shared else [])]:
            link.cut("closed")
        await self._pool.aclose()

    # ---------------------------------------------------------------- exchanges

    def _note(self, link: Link, replies: Sequence[Any]) -> None:
        """Read from the replies to an exchange how the server is."""
        self._late = 0
        if any([isinstance(reply, RefusalError) and reply.code == "READONLY" for reply in replies]):  # noqa: C419 - see settle
            link.cut("the server is a replica now")  # the next connection finds the primary

    async def _confirmed(self, commands: Sequence[Sequence[Argument]], limit: float) -> list[Any]:
        """Send writes and `WAIT` on a connection that nobody else waits on.

        `WAIT` is about the writes of its own connection, so it says nothing where none of the commands was one.
        """
        link = await self._own_link(limit)
        self._confirming.add(link)
        # Half of the time, so that "no replica confirmed" is an answer and not a missing one.
        wait = ("WAIT", 1, int(limit * 500))
        try:
            *replies, confirmed = await link.call([*commands, wait], limit)
        except BaseException as exc:  # a cancelled caller, too: the next one would wait for the replies to this one
            link.cut(str(exc) or "its caller was cancelled")
            raise
        finally:
            self._confirming.discard(link)
        self._note(link, replies)
        if link.is_open:
            self._idle.append(link)
        if isinstance(confirmed, int) and confirmed >= 1:
            return replies
        return [reply if isinstance(reply, RefusalError) else Unconfirmed(reply) for reply in replies]

    # ---------------------------------------------------------------- connections

    async def _shared_link(self, limit: float) -> Link:
        if self._shared is not None and self._shared.is_open:
            return self._shared
        began = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit), self._opening:
                if self._shared is None or not self._shared.is_open:
                    began = loop.time()
                    self._shared = await self._open_link()
                return self._shared
        except TimeoutError as exc:
            if began is not None and loop.time() - began > _LONG_SHARE * self.timeout:
                self._was_late()
            raise NotSentError("no connection in time") from exc

    async def _own_link(self, limit: float) -> Link:
        while self._idle:
            if (link := self._idle.pop()).is_open:
                return link
        try:
            async with asyncio.timeout(limit):
                return await self._open_link()
        except TimeoutError as exc:
            raise NotSentError("no connection in time") from exc

    async def _open_link(self) -> Link:
        return Link(await self.open(), self.timeout, on_overdue=self._was_late)

    async def open(self) -> asyncio.StreamWriter:
        """Return a connection of the caller's own; see `Wire`."""
        if self.closed:
            raise _closed()
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
        try:
            async with asyncio.timeout(self.timeout):  # redis-py limits connecting, and not the greeting behind it
                await connection.connect()
            if self.closed:
                raise _closed()
        except (NotSentError, TimeoutError, asyncio.CancelledError):
            await connection.disconnect(nowait=True)
            raise
        except RedisTimeoutError as exc:
            raise TimeoutError from exc
        except (RedisError, OSError) as exc:
            refused = isinstance(exc, _DENIED) or isinstance(exc.__cause__, _DENIED)
            why = str(exc) or "no connection"
            if why != self._complaint:  # told once
                self._complaint = why
                _log.warning("The store cannot be reached: %s", why)
            raise NotSentError(why, hopeless=refused, told="no connection") from exc
        self._complaint = ""
        # From here on the connection is ours, and redis-py's object may go. The writer must stay: it closes its
        # transport when it is collected.
        writer: asyncio.StreamWriter = connection._writer
        connection._reader = connection._writer = None
        return writer

    # ---------------------------------------------------------------- being away

    def _was_late(self) -> None:
        self._late += 1
        if self._late >= _MANY_LATE and not self.away:
            _log.warning("The store was late %d times in a row; it counts as away until it answers", self._late)
            self.away = True
            self._probe = asyncio.create_task(self._until_it_answers())

    async def _until_it_answers(self) -> None:
        while True:
            link: Link | None = None
            try:
                async with asyncio.timeout(_PROBE_S):
                    link = await self._open_link()
                    await link.call([("PING",)], _PROBE_S)
                break
            except (TimeoutError, NotSentError, NoReplyError):
                if link is not None:
                    link.cut("no reply in time")
                await asyncio.sleep(_PROBE_PAUSE_S)
        if self._shared is not None:
            self._shared.cut("replaced")
        self._shared, self._late, self.away = link, 0, False
        _log.warning("The store answers again")


def _closed() -> NotSentError:
    return NotSentError("its connections are closed", hopeless=True)
