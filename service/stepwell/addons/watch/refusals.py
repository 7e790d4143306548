"""`RefusalLog`: which streams had timesteps that were refused, kept in the store for `stepwell alert`.

A refused timestep is not committed, so neither a watch nor an event log has it. Each worker collects what it refuses
and writes it a few times a second, so a client that sends nothing but wrong timesteps costs the store no more than
these writes. What a worker has collected is lost if it is killed before the next write. A write that has no reply is
repeated as it is, and the store applies it once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from stepwell.background import run_forever
from stepwell.engine.observer import EngineObserver
from stepwell.errors import ServiceError
from stepwell.store.scripts import Script
from stepwell.store.transport.retry import deadline
from stepwell_client.wire.ids import STREAM_ID

if TYPE_CHECKING:
    from stepwell.store.state_store import StateStore
    from stepwell.store.transport.connection import Argument

_CODES: Final = frozenset({"bad_json", "bad_input", "non_finite", "non_finite_state"})
"""The codes of timesteps that were refused because of what is in them."""

_WRITE: Final = Script.of("refusals.lua", "stepwell.addons.watch")
_WRITE_EVERY_S: Final = 0.25
_MAX_STREAMS: Final = 2000  # of a model, until they are written; those beyond it are left out
_MAX_TIMES: Final = 32  # of a stream, until they are written; those beyond it count for the last one
_SAME_US: Final = 100  # no timestep is applied between two that are refused within so many microseconds
_MAX_WRITES: Final = 1000  # in the log of a model, about: older ones are deleted
_READ_AT_ONCE: Final = 100
_BEGINNING: Final = "0-0"


class Refusals(NamedTuple):
    """Timesteps of a stream that were refused at one time.

    Attributes:
        stream: The stream's id.
        at_us: When, microseconds since 1970 by the clock of the worker.
        n: How many.
        code: The error's code, of the newest one of its write.
    """

    stream: str
    at_us: int
    n: int
    code: str


class _Collected(msgspec.Struct, array_like=True):
    """What a worker has refused of a stream since its last write: the newest code; times, and how many at each."""

    stream: str
    code: str
    times: list[tuple[int, int]]

    def add(self, code: str, at_us: int) -> None:
        self.code = code
        last_us, n = self.times[-1] if self.times else (0, 0)
        if at_us - last_us < _SAME_US or len(self.times) == _MAX_TIMES:
            self.times[-1] = at_us, n + 1
        else:
            self.times.append((at_us, 1))


_Owner = tuple[str, str]
"""A tenant and a model."""

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(list[_Collected]).decode


def refusals_key(tenant: str, model: str) -> str:
    """Return the key of the log of refused timesteps of a tenant's streams of a model.

    Its entries have the time of each refusal; those without are under a key that ends in `:log`, in stores of before.
    """
    return f"swl:refused:{{{tenant}/{model}}}:times"


class RefusalLog(EngineObserver):
    """The refused timesteps of a worker, of the models whose history is kept."""

    def __init__(self, store: StateStore, history: Mapping[str, int]) -> None:
        """Create it; `flush` writes.

        Args:
            store: Keeps the log.
            history: By model, the number of events that are kept of each stream; `*`: all other models.
        """
        self._store = store
        self._history = history
        self._worker = secrets.token_hex(8)
        self._n_writes = 0
        self._flushing = asyncio.Lock()
        self._collected: dict[_Owner, dict[str, _Collected]] = {}
        self._unconfirmed: dict[_Owner, tuple[int, bytes]] = {}  # the number of a write and its content

    def refused(self, tenant: str, model: str, stream: str | None, error: ServiceError) -> None:
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
            one = streams[stream] = _Collected(stream, "", [])
        one.add(error.code, time.time_ns() // 1000)

    async def run(self) -> None:
        """Write a few times a second, until the task is cancelled; return at once if no history is kept."""
        if self._history:
            await run_forever(self.flush, every_s=_WRITE_EVERY_S, name="Storing which timesteps were refused")

    async def flush(self) -> None:
        """Write what was collected until now; what cannot be written is written by the next call.

        Raises:
            ServiceError: The store does not reply.
        """
        async with self._flushing:  # while it is repeated, the drain calls it as well
            for owner in [*self._unconfirmed]:
                await self._write(owner)
            for owner in [*self._collected]:  # not those that are collected again meanwhile
                self._n_writes += 1
                self._unconfirmed[owner] = self._n_writes, _ENCODE([*self._collected.pop(owner).values()])
                await self._write(owner)

    async def _write(self, owner: _Owner) -> None:
        number, body = self._unconfirmed[owner]
        log = refusals_key(*owner)
        ttl_ms = int(self._store.stream_ttl_s * 1000)
        arguments: list[Argument] = [2, log, f"{log}:{self._worker}", number, body, _MAX_WRITES, ttl_ms]
        await self._store.run(_WRITE, arguments, deadline=deadline())
        del self._unconfirmed[owner]


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
        self._key = refusals_key(tenant, model)

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
                found += [
                    Refusals(one.stream, at_us, n, one.code) for one in _DECODE(fields[1]) for at_us, n in one.times
                ]
        self.position = position
        return sorted(found, key=attrgetter("at_us"))

    async def _execute(self, command: str, *words: Any) -> Any:
        return await self._store.execute(deadline(), command, self._key, *words)
