"""`ServerTransport`: sends commands to one server; its errors separate "not sent" from "may have been executed".

redis-py finds the server, opens the connection and authenticates (also with Sentinel and TLS). From then on a
`PipelinedConnection` uses the connection.
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

from stepwell.store.transport.connection import Argument, CommandError, NoReplyError, NotSentError, PipelinedConnection
from stepwell.store.transport.shard_channels import ShardListener

_log = logging.getLogger(__name__)
_LATE_TO_TRIP = 3  # timeouts in a row that open the circuit breaker
_LONG_TIMEOUT_SHARE = 0.4  # of `timeout`; a shorter wait for a connection does not count as a timeout of the server
_PROBE_S = 1.0  # limit for the reply to the PING of a probe
_PROBE_PAUSE_S = 0.1
_DENIED = (AuthenticationError, NoPermissionError)  # redis-py raises them, or another error caused by them


@dataclass(frozen=True, slots=True)
class NotReplicated:
    """A reply to a write that no replica confirmed in time.

    Attributes:
        reply: The reply of the primary.
    """

    reply: Any


class ServerTransport:
    """Connections to one server, or to the primary that Sentinels report.

    Several timeouts in a row open the circuit breaker: calls then fail at once, until the server replies to a PING.
    Refused connections do not open it: the server may be restarting, and a call is retried until its deadline.

    Attributes:
        timeout: Seconds for connecting, and for one exchange.
        circuit_open: Calls fail at once.
        closed: `close` was called: no connections are opened any more.
    """

    is_cluster = False

    def __init__(self, pool: ConnectionPool, *, timeout: float) -> None:
        """Create it unconnected.

        Args:
            pool: The redis-py pool that creates the connections.
            timeout: Seconds for connecting, and for one exchange.
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
        self._last_logged = ""  # the last logged reason why connecting failed

    async def call(
        self, *commands: Sequence[Argument], timeout: float | None = None, confirm: bool = False
    ) -> list[Any]:
        """Send commands in one write on one connection, and return their replies; see `RedisTransport`."""
        if self.circuit_open:
            raise NotSentError("it has not replied for a while", is_permanent=True)
        limit = self.timeout if timeout is None else timeout
        if confirm:
            return await self._confirmed(commands, limit)
        connection = self._shared
        if connection is None or not connection.is_open:
            connection = await self._shared_connection(limit)
        replies = await connection.call(commands, limit)
        self._late_count = 0
        return replies

    async def primaries(self, *, fresh: bool = True) -> tuple[str, Sequence[ServerTransport]]:
        """Return this server alone."""
        return "0", [self]

    async def close(self) -> None:
        """Close every connection; no new one is opened afterwards."""
        self.closed = True
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probe
        for connection in [*self._idle, *self._confirming, *([self._shared] if self._shared else [])]:
            connection.abort("closed")
        await self._pool.aclose()

    # ---------------------------------------------------------------- exchanges

    async def _confirmed(self, commands: Sequence[Sequence[Argument]], limit: float) -> list[Any]:
        """Send writes and `WAIT` on a connection that no other caller uses.

        `WAIT` covers the writes of its own connection only, so it confirms nothing if none of the commands was a write.
        """
        connection = await self._dedicated_connection(limit)
        self._confirming.add(connection)
        # Half of the time, so that "no replica confirmed" arrives as a reply and not as a timeout.
        wait = ("WAIT", 1, int(limit * 500))
        try:
            *replies, confirmed = await connection.call([*commands, wait], limit)
        except BaseException as exc:  # also if the caller is cancelled: the next one would get the replies of this one
            connection.abort(str(exc) or "its caller was cancelled")
            raise
        finally:
            self._confirming.discard(connection)
        self._late_count = 0
        if connection.is_open:
            self._idle.append(connection)
        if isinstance(confirmed, int) and confirmed >= 1:
            return replies
        return [reply if isinstance(reply, CommandError) else NotReplicated(reply) for reply in replies]

    # ---------------------------------------------------------------- connections

    async def _shared_connection(self, limit: float) -> PipelinedConnection:
        started_at = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit), self._opening:
                if self._shared is None or not self._shared.is_open:
                    started_at = loop.time()
                    self._shared = await self._open_connection()
                return self._shared
        except TimeoutError as exc:
            if started_at is not None and loop.time() - started_at > _LONG_TIMEOUT_SHARE * self.timeout:
                self._record_timeout()
            raise NotSentError("no connection in time") from exc

    async def _dedicated_connection(self, limit: float) -> PipelinedConnection:
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        try:
            async with asyncio.timeout(limit):
                return await self._open_connection()
        except TimeoutError as exc:
            raise NotSentError("no connection in time") from exc

    async def _open_connection(self) -> PipelinedConnection:
        return PipelinedConnection(await self.open_dedicated(), self.timeout, on_overdue=self._record_timeout)

    def shard_channels(self, listener: ShardListener) -> None:
        """Return None: one server's topics suffice."""

    async def open_dedicated(self) -> asyncio.StreamWriter:
        """Return a connection of the caller's own; see `RedisTransport`."""
        if self.closed:
            raise _closed()
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py has no types here
        try:
            async with asyncio.timeout(self.timeout):  # redis-py limits the connect, but not the handshake after it
                await connection.connect()
            if self.closed:
                raise _closed()
        except (NotSentError, TimeoutError, asyncio.CancelledError):
            await connection.disconnect(nowait=True)
            raise
        except RedisTimeoutError as exc:
            raise TimeoutError from exc
        except (RedisError, OSError) as exc:
            denied = isinstance(exc, _DENIED) or isinstance(exc.__cause__, _DENIED)
            reason = str(exc) or "no connection"
            if reason != self._last_logged:  # logged once, not for every attempt
                self._last_logged = reason
                _log.warning("The store cannot be reached: %s", reason)
            raise NotSentError(reason, is_permanent=denied, public_reason="no connection") from exc
        self._last_logged = ""
        # From here on the connection is ours, and redis-py's object is not needed. The writer must be kept: it closes
        # its transport when it is garbage-collected.
        writer: asyncio.StreamWriter = connection._writer
        connection._reader = connection._writer = None
        return writer

    # ---------------------------------------------------------------- circuit breaker

    def _record_timeout(self) -> None:
        self._late_count += 1
        if self._late_count >= _LATE_TO_TRIP and not self.circuit_open:
            _log.warning(
                "The store did not reply in time %d times in a row; requests fail at once until it replies",
                self._late_count,
            )
            self.circuit_open = True
            self._probe = asyncio.create_task(self._probe_until_reply())

    async def _probe_until_reply(self) -> None:
        while True:
            connection: PipelinedConnection | None = None
            try:
                async with asyncio.timeout(_PROBE_S):
                    connection = await self._open_connection()
                    await connection.call([("PING",)], _PROBE_S)
                break
            except (TimeoutError, NotSentError, NoReplyError):
                if connection is not None:
                    connection.abort("no reply in time")
                await asyncio.sleep(_PROBE_PAUSE_S)
        if self._shared is not None:
            self._shared.abort("replaced")
        self._shared, self._late_count, self.circuit_open = connection, 0, False
        _log.warning("The store replies again")


def _closed() -> NotSentError:
    return NotSentError("its connections are closed", is_permanent=True)
