"""`RefusalLog`: which streams had timesteps that were refused, kept in the store for `stepwell alert`.

A refused timestep is not committed, so neither a watch nor an event log has it. Each worker collects what it refuses
and writes it a few times a second, so a client that sends nothing but wrong timesteps costs the store no more than
these writes. What a worker has collected is lost if it is killed before the next write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from service.background import run_forever
from service.errors import ServiceError
from service.ids import STREAM_ID
from service.store import keys

if TYPE_CHECKING:
    from service.store.state_store import StateStore

_CODES: Final = frozenset({"bad_json", "bad_input", "non_finite", "non_finite_state"})
"""The codes of timesteps that were refused because of what is in them."""

_WRITE_EVERY_S: Final = 0.25
_MAX_STREAMS: Final = 2000  # of a model, until they are written; those beyond it are left out
_MAX_WRITES: Final = 1000  # in the log of a model, about: older ones are deleted
_READ_AT_ONCE: Final = 100
_TIMEOUT_S: Final = 5.0
_BEGINNING: Final = "0-0"


class Refusals(NamedTuple):
    """The timesteps of a stream that one worker has refused since its last write.

    Attributes:
        stream: The stream's id.
        n: How many.
        code: The error's code, of the newest one.
        at_ms: When the newest one was refused, milliseconds since 1970 by the store's clock.
    """

    stream: str
    n: int
    code: str
    at_ms: int


class _Collected(msgspec.Struct, array_like=True):
    """As `Refusals`; `at` is on the monotonic clock until it is written, and the age in milliseconds from then on."""

    stream: str
    n: int
    code: str
    at: float


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(list[_Collected]).decode


class RefusalLog:
    """The refused timesteps of a worker, of the models whose history is kept."""

    def __init__(
        self,
        store: StateStore,
        history: Mapping[str, int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it; `flush` writes.

        Args:
            store: Keeps the log.
            history: By model, the number of events that are kept of each stream; `*`: all other models.
            clock: Returns the time in seconds.
        """
        self._store = store
        self._history = history
        self._clock = clock
        self._collected: dict[tuple[str, str], dict[str, _Collected]] = {}

    def add(self, tenant: str, model: str, stream: str | None, error: ServiceError) -> None:
        """Note that a timestep was refused, if it was because of what is in it.

        Args:
            tenant: The owner of the stream.
            model: The model.
            stream: The stream's id, as the request has it; None: it has none, so nothing is noted.
            error: The error.
        """
        if error.code not in _CODES or not self._history.get(model, self._history.get("*", 0)):
            return
        if stream is None or not STREAM_ID.fullmatch(stream):
            return
        streams = self._collected.setdefault((tenant, model), {})
        one = streams.get(stream)
        if one is None:
            if len(streams) >= _MAX_STREAMS:
                return
            one = streams[stream] = _Collected(stream, 0, "", 0.0)
        one.n, one.code, one.at = one.n + 1, error.code, self._clock()

    async def run(self) -> None:
        """Write a few times a second, until the task is cancelled; return at once if no history is kept."""
        if self._history:
            await run_forever(self.flush, every_s=_WRITE_EVERY_S, name="Storing which timesteps were refused")

    async def flush(self) -> None:
        """Write what was collected until now; what cannot be written is written by the next call.

        Raises:
            ServiceError: The store does not reply.
        """
        for owner in list(self._collected):  # not those that are collected again meanwhile
            now, written = self._clock(), self._collected.pop(owner)
            body = _ENCODE([replace(one, at=round((now - one.at) * 1000)) for one in written.values()])
            key = keys.refusals_key(*owner)
            try:
                await self._execute("XADD", key, "MAXLEN", "~", _MAX_WRITES, "*", "r", body)
                await self._execute("PEXPIRE", key, int(self._store.stream_ttl_s * 1000))
            except ServiceError:
                streams = self._collected.setdefault(owner, {})
                for stream, one in written.items():
                    if (newer := streams.get(stream)) is not None:
                        newer.n += one.n
                    elif len(streams) < _MAX_STREAMS:
                        streams[stream] = one
                raise

    async def _execute(self, *command: Any) -> Any:
        return await self._store.execute(_deadline(), *command)


class RefusalReader:
    """Reads the log of one tenant's streams of a model.

    Attributes:
        position: The id of the last entry that was read; empty: none was.
    """

    def __init__(self, store: StateStore, tenant: str, model: str) -> None:
        """Create it.

        Args:
            store: The store of the service.
            tenant: The owner of the streams.
            model: The model's name.
        """
        self.position = ""
        self._store = store
        self._key = keys.refusals_key(tenant, model)

    async def read(self) -> list[Refusals]:
        """Return what was refused after the position, the oldest first, and move the position behind it.

        Without a position, it becomes the end of the log.

        Raises:
            ServiceError: The store does not reply.
        """
        if not self.position:
            newest = await self._execute("XREVRANGE", "+", "-", "COUNT", 1)
            self.position = newest[0][0].decode() if newest else _BEGINNING
            return []
        found: list[Refusals] = []
        position, entries = self.position, None
        while entries is None or len(entries) == _READ_AT_ONCE:
            entries = await self._execute("XRANGE", f"({position}", "+", "COUNT", _READ_AT_ONCE)
            for entry_id, fields in entries:
                position = entry_id.decode()
                written_ms = int(position.partition("-")[0])
                found += [Refusals(one.stream, one.n, one.code, written_ms - int(one.at)) for one in _DECODE(fields[1])]
        self.position = position
        return found

    async def _execute(self, command: str, *words: Any) -> Any:
        return await self._store.execute(_deadline(), command, self._key, *words)


def _deadline() -> float:
    return asyncio.get_running_loop().time() + _TIMEOUT_S
