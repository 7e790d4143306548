"""`PipelinedConnection`: one connection to the store on which commands are pipelined, their replies matched by their order.

redis-py's own connection costs several times as much for a command: a task switch, two timeouts and a stream reader.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast, overload

import hiredis

_LATE_REPLY = "no reply in time"
_OLD_SCRIPT_REFUSAL = re.compile(r"ERR Error running script .*?: -([A-Z]+) ")
_CLOCK_RESOLUTION_S = 0.01  # a timer may fire this much early

Argument = str | bytes | int


class PackedCommand(Sequence[Argument]):
    """A command that is packed already. Its arguments are made only if it has to be sent in another way.

    Attributes:
        packed: Itself as it goes over the wire.
    """

    __slots__ = ("_arguments", "packed")

    def __init__(self, packed: bytes, arguments: Callable[[], Sequence[Argument]]) -> None:
        """Take both."""
        self.packed = packed
        self._arguments = arguments

    def __len__(self) -> int:
        return len(self._arguments())

    @overload
    def __getitem__(self, at: int) -> Argument: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Argument]: ...

    def __getitem__(self, at: int | slice) -> Argument | Sequence[Argument]:
        return self._arguments()[at]


class NotSentError(Exception):
    """No connection: the command was surely not executed.

    Attributes:
        hopeless: The server has not answered for so long that trying again at once is in vain.
        told: Why, as clients may hear it: without the server's address.
    """

    def __init__(self, why: str, *, is_permanent: bool = False, public_reason: str = "") -> None:
        super().__init__(why)
        self.is_permanent = is_permanent
        self.public_reason = public_reason or why


class NoReplyError(Exception):
    """The command was sent and no reply came: it may have been executed."""


class CommandError(Exception):
    """The server's refusal of one command; a value among the replies, raised by nobody here.

    Attributes:
        code: Its first word, such as `NOSCRIPT`. Redis 6.2 puts it behind many others where a script was refused.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        in_script = _OLD_SCRIPT_REFUSAL.match(message)
        self.code = in_script[1] if in_script else message.partition(" ")[0]


class PipelinedConnection(asyncio.Protocol):
    """Sends commands and hands out replies, in order.

    A caller may give up sooner than others: its reply is then dropped when it comes. A link on which a reply is
    overdue is cut, and all that wait on it have no reply.
    """

    def __init__(
        self, writer: asyncio.StreamWriter, patience: float, *, on_overdue: Callable[[], None] | None = None
    ) -> None:
        """Take a connection over.

        Args:
            writer: Of a connection on which the greeting is done and nothing is under way.
            patience: Seconds after which a reply is overdue.
            on_overdue: Called once, when the link is cut for that reason.
        """
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call each time, before Python 3.12
        self._reply_timeout = patience
        self._on_overdue = on_overdue
        self._writer = writer  # kept, since it closes the connection when it is collected
        self._transport = writer.transport
        self._reader = hiredis.Reader(replyError=CommandError)
        self._pending: deque[_Exchange] = deque()
        self._abort_reason = ""
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return not self._abort_reason and not self._transport.is_closing()

    async def call(self, commands: Sequence[Sequence[Argument]], timeout: float) -> list[Any]:
        """Send commands in one write and return their replies, a refusal as a `CommandError` object.

        Args:
            commands: Each a command and its arguments.
            timeout: Seconds for all of them.

        Raises:
            NotSentError: The link was cut before.
            NoReplyError: A reply is missing.
        """
        if not self.is_open:
            raise NotSentError(self._abort_reason or "the connection was lost")
        loop = self._loop
        packed = [
            command.packed if isinstance(command, PackedCommand) else hiredis.pack_command(cast("Any", command))
            for command in commands
        ]
        exchange = _Exchange(len(commands), loop.create_future(), loop.time())
        self._pending.append(exchange)
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        timer = loop.call_later(timeout, self._on_timeout, exchange)
        try:
            await exchange.done
        finally:
            timer.cancel()
        return exchange.replies

    def abort(self, why: str) -> None:
        """Close the connection at once; all that wait on it have no reply."""
        self._abort_reason = self._abort_reason or why
        self._transport.abort()
        while self._pending:
            done = self._pending.popleft().done
            if not done.done():
                done.set_exception(NoReplyError(self._abort_reason))

    def _on_timeout(self, exchange: _Exchange) -> None:
        """End a caller's wait; and the link, if its oldest reply is overdue."""
        now = self._loop.time()
        if self._pending and now - self._pending[0].sent_at > self._reply_timeout - _CLOCK_RESOLUTION_S:
            self.abort(_LATE_REPLY)
            if self._on_overdue is not None:
                self._on_overdue()
        elif not exchange.done.done():
            exchange.done.set_exception(NoReplyError(_LATE_REPLY))

    # ---------------------------------------------------------------- what the transport calls

    def data_received(self, data: bytes) -> None:
        """Take bytes of replies."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                exchange = self._pending[0]
                exchange.replies.append(reply)
                if len(exchange.replies) == exchange.expected_replies:
                    self._pending.popleft()
                    if not exchange.done.done():  # its caller may have been cancelled
                        exchange.done.set_result(None)
        except (hiredis.ProtocolError, IndexError) as exc:  # no reply of the protocol, or one that nobody asked for
            self.abort(f"the store sent what it should not: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all that wait."""
        self.abort(str(exc or "") or "the connection was lost")


class _Exchange:
    """Commands that were sent, and the replies so far."""

    __slots__ = ("done", "expected_replies", "replies", "sent_at")

    def __init__(self, wanted: int, done: asyncio.Future[None], sent_at: float) -> None:
        self.expected_replies = wanted
        self.done = done
        self.sent_at = sent_at
        self.replies: list[Any] = []
