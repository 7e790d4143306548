"""`ServerTransport`: the way to one server, telling apart what was surely not sent from what may have been done.

redis-py finds the server, opens the connection and authenticates (also through Sentinel and TLS); then a `PipelinedConnection` takes
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

from service.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError, PipelinedConnection

_log = logging.getLogger(__name__)
_LATE_TO_TRIP = 3  # exchanges in a row without a reply in time, after which the server counts as away
_LONG_TIMEOUT_SHARE = 0.4  # of `timeout`; who waited shorter than that for a connection cannot tell
_PROBE_S = 1.0  # a server that does not answer a PING within it stays away
_PROBE_PAUSE_S = 0.1
_DENIED = (AuthenticationError, NoPermissionError)  # redis-py wraps them, or not


@dataclass(frozen=True, slots=True)
class NotReplicated:
    """A reply to a write that no replica confirmed in time.

    Attributes:
        reply: The primary's.
    """

    reply: Any


class ServerTransport:
    """Connections to one server, or to the primary that Sentinels name.

    A server that was late several times in a row counts as away: calls then fail at once, until it answers a PING.
    A server that refuses connections does not: it may be restarting, and a call is tried again until its deadline.

    Attributes:
        timeout: Seconds that connecting, and one exchange, may take.
        away: Calls fail at once.
        closed: `close` was called: connections are opened no more.
    """

    is_cluster = False

    def __init__(self, pool: ConnectionPool, *, timeout: float) -> None:
        """Prepare connections; none is opened yet.

        Args:
            pool: redis-py's way to make them.
            timeout: Seconds that connecting, and one exchange, may take.
        """
        self.timeout = timeout
        self.circuit_open = False
        self.closed = False
        self._pool = pool
        self._late_count = 0
        self._probe: asyncio.Task[None] | None = None
        self._shared: PipelinedConnection | None = None
        self._idle: list[PipelinedConnection] = []
        self._confirming: set[PipelinedConnection] = set()  # in use by one caller each
        self._opening = asyncio.Lock()
        self._last_logged = ""  # why no connection was had, as it was logged

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send commands in one write on one connection, and read their replies; see `RedisTransport`."""
        if self.circuit_open:
            raise NotSentError("it has not answered for a while", is_permanent=True)
        limit = self.timeout if timeout is None else timeout
        if confirm:
            return await self._confirmed(commands, limit)
        link = self._shared
        if link is None or not link.is_open:
            link = await self._shared_connection(limit)
        replies = await link.call(commands, limit)
        self._note(link, replies)
        return replies

    async def primaries(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerTransport]]:
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
            link.abort("closed")
        await self._pool.aclose()

    # ---------------------------------------------------------------- exchanges

    def _note(self, link: PipelinedConnection, replies: Sequence[Any]) -> None:
        """Read from the replies to an exchange how the server is."""
        self._late_count = 0
        if any([isinstance(reply, CommandError) and reply.code == "READONLY" for reply in replies]):  # noqa: C419 - see settle
            link.abort("the server is a replica now")  # the next connection finds the primary

    async def _confirmed(self, commands: Sequence[Sequence[Argument]], limit: float) -> list[Any]:
        """Send writes and `WAIT` on a connection that nobody else waits on.

        `WAIT` is about the writes of its own connection, so it says nothing where none of the commands was one.
        """
        link = await self._dedicated_connection(limit)
        self._confirming.add(link)
        # Half of the time, so that "no replica confirmed" is an answer and not a missing one.
        wait = ("WAIT", 1, int(limit * 500))
        try:
            *replies, confirmed = await link.call([*commands, wait], limit)
        except BaseException as exc:  # a cancelled caller, too: the next one would wait for the replies to this one
            link.abort(str(exc) or "its caller was cancelled")
            raise
        finally:
            self._confirming.discard(link)
        self._note(link, replies)
        if link.is_open:
            self._idle.append(link)
        if isinstance(confirmed, int) and confirmed >= 1:
            return replies
        return [reply if isinstance(reply, CommandError) else NotReplicated(reply) for reply in replies]

    # ---------------------------------------------------------------- connections

    async def _shared_connection(self, limit: float) -> PipelinedConnection:
        if self._shared is not None and self._shared.is_open:
            return self._shared
        began = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit), self._opening:
                if self._shared is None or not self._shared.is_open:
                    began = loop.time()
                    self._shared = await self._open_connection()
                return self._shared
        except TimeoutError as exc:
            if began is not None and loop.time() - began > _LONG_TIMEOUT_SHARE * self.timeout:
                self._record_timeout()
            raise NotSentError("no connection in time") from exc

    async def _dedicated_connection(self, limit: float) -> PipelinedConnection:
        while self._idle:
            if (link := self._idle.pop()).is_open:
                return link
        try:
            async with asyncio.timeout(limit):
                return await self._open_connection()
        except TimeoutError as exc:
            raise NotSentError("no connection in time") from exc

    async def _open_connection(self) -> PipelinedConnection:
        return PipelinedConnection(await self.open_dedicated(), self.timeout, on_overdue=self._record_timeout)

    async def open_dedicated(self) -> asyncio.StreamWriter:
        """Return a connection of the caller's own; see `RedisTransport`."""
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
            if why != self._last_logged:  # told once
                self._last_logged = why
                _log.warning("The store cannot be reached: %s", why)
            raise NotSentError(why, is_permanent=refused, public_reason="no connection") from exc
        self._last_logged = ""
        # From here on the connection is ours, and redis-py's object may go. The writer must stay: it closes its
        # transport when it is collected.
        writer: asyncio.StreamWriter = connection._writer
        connection._reader = connection._writer = None
        return writer

    # ---------------------------------------------------------------- being away

    def _record_timeout(self) -> None:
        self._late_count += 1
        if self._late_count >= _LATE_TO_TRIP and not self.circuit_open:
            _log.warning("The store was late %d times in a row; it counts as away until it answers", self._late_count)
            self.circuit_open = True
            self._probe = asyncio.create_task(self._probe_until_reply())

    async def _probe_until_reply(self) -> None:
        while True:
            link: PipelinedConnection | None = None
            try:
                async with asyncio.timeout(_PROBE_S):
                    link = await self._open_connection()
                    await link.call([("PING",)], _PROBE_S)
                break
            except (TimeoutError, NotSentError, NoReplyError):
                if link is not None:
                    link.abort("no reply in time")
                await asyncio.sleep(_PROBE_PAUSE_S)
        if self._shared is not None:
            self._shared.abort("replaced")
        self._shared, self._late_count, self.circuit_open = link, 0, False
        _log.warning("The store answers again")


def _closed() -> NotSentError:
    return NotSentError("its connections are closed", is_permanent=True)
