"""Redis Streams: a consumer group is read by one connector at a time, and each prediction is written exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError, ResponseError

from stepwell.addons.between_workers.lease import LEASE_SCRIPT, Lease
from stepwell.addons.connect.brokers.interface import MarksEach, ReaderOptions
from stepwell.addons.connect.brokers.redis_connection import connect, redis_errors, tagged
from stepwell.addons.connect.brokers.redis_writer import RedisStreamWriter
from stepwell.addons.connect.mapping.decoding import DATA_FIELD
from stepwell.addons.connect.messages import (
    BrokerMessage,
    ConnectUsageError,
    MessageColumns,
)
from stepwell.addons.connect.urls import BrokerUrl

_GROUP: Final = "stepwell"
_CONSUMER: Final = "stepwell"
"""The consumer of every connector: entries that one has not acknowledged belong to the next one."""

_LEASE_S: Final = 5.0
_BLOCK_MS: Final = 500
_STAND_BY_S: Final = 0.1
_SEQUENCE_BITS: Final = 20
_SEQUENCE_LIMIT: Final = 1 << _SEQUENCE_BITS
_MILLISECONDS_LIMIT: Final = 1 << (63 - _SEQUENCE_BITS)
_EXPECTED_ID: Final = (
    "expected milliseconds below 2^43 and a number below 2^20; let Redis choose ids (XADD .. *), or name a field that "
    "grows with --position"
)
_decode_integers = msgspec.json.Decoder(list[int]).decode

_Entry = tuple[bytes, list[bytes]]
"""The id of an entry and its fields, names and values in turn; no fields: it was deleted."""

# New entries belong to whoever has the lease. A connector that was paused, and has lost it meanwhile, must not get any:
# the one that has it now would never see them, and would apply the entries behind them.
_READ_NEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[2], '>')
"""
# All ids are one argument: redis-py needs longer for a command of many arguments than for everything else.
_ACKNOWLEDGE = """
local ids = cmsgpack.unpack(ARGV[2])
for first = 1, #ids, 1000 do
  redis.call('XACK', KEYS[1], ARGV[1], unpack(ids, first, math.min(first + 999, #ids)))
end
"""


def open_reader(url: BrokerUrl, options: ReaderOptions) -> RedisStreamReader:
    """Return the reader of a stream."""
    return RedisStreamReader(url, options)


def open_writer(url: BrokerUrl, body_format: str) -> RedisStreamWriter:
    """Return the writer of a stream.

    Raises:
        ConnectUsageError: The format is not JSON.
    """
    if body_format != "json":
        raise ConnectUsageError(f"{url.text} has entries with fields; found the format {body_format!r}.")
    return RedisStreamWriter(url)


class RedisStreamReader(MarksEach):
    """Reads a stream as a consumer group, one connector at a time: the others wait for the lease.

    The position of an entry `ms-n` is `ms << 20 | n`. Ids that are too large for that, such as those of a clock of
    microseconds, have none: their entries are dead letters unless a field is the position.
    """

    def __init__(self, url: BrokerUrl, options: ReaderOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Use `open_reader`."""
        self._url = url
        self._options = options
        self._name = url.options["stream"]
        self._group = url.options.get("group") or _GROUP
        self._source = f"redis:{url.path or '0'}/{self._name}"
        self._lease_key = f"{tagged(self._name)}:stepwell:{self._group}:lease"
        self._lease: Lease | None = None
        self._clock = clock
        self._client: Any = None  # redis-py's types allow texts where these are bytes
        self._cursor: bytes | str = "0"  # of the entries that were not acknowledged; `>` is behind them
        self._end: tuple[int, int] | None = None
        self._done = False
        self._open: list[bytes] = []  # entries of the last poll
        self._newest: bytes | str = "$"  # the id of the newest entry that it has seen; `$`: of those that are there
        self._lag: int | None = None
        self._lag_at = 0.0
        self.generation = 0

    async def open(self) -> None:
        """Connect."""
        self._client = await connect(self._url)
        # Entries as they are in the reply: dictionaries of them take longer than everything else
        self._client.set_response_callback("XREADGROUP", lambda reply, **_: reply)
        with redis_errors(self._url):
            if self._options.once or self._options.preview:
                last = await self._client.xrevrange(self._name, count=1)
                self._end, self._done = (_split(last[0][0]), False) if last else (None, True)
        self._lease = Lease(_RedisLease(self._client, self._lease_key), secrets.token_hex(16), lease_s=_LEASE_S)

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the next entries; none while another connector has the lease."""
        assert self._client is not None
        assert self._lease is not None
        if self._done:
            return []
        with redis_errors(self._url):
            if self._options.preview:
                return self._preview(await self._client.xrange(self._name, min=self._start(), count=limit))
            if not self._lease.is_held and not await self._begin(self._lease):
                await asyncio.sleep(_STAND_BY_S)
                return []
            entries = await self._read(limit, self._lease)
            await self._update_lag()
        return self._columns([entry for entry in entries if entry[1]])

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge the entries of the last poll in the group."""
        await self._acknowledge(self._open)

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Acknowledge entries of any polls in the group."""
        if messages:
            await self._acknowledge([one.handle for one in messages])

    @property
    def is_full(self) -> bool:
        """Return False: a group has any number of entries that are open."""
        return False

    async def _acknowledge(self, entry_ids: Sequence[bytes]) -> None:
        assert self._client is not None
        with redis_errors(self._url):
            ids = msgspec.msgpack.encode([entry_id.decode() for entry_id in entry_ids])
            await self._client.eval(_ACKNOWLEDGE, 1, self._name, self._group, ids)

    async def is_current(self) -> bool:
        """Return whether this connector still has the lease."""
        with redis_errors(self._url):
            return self._options.preview or (self._lease is not None and await self._lease.renew())

    @property
    def is_done(self) -> bool:
        """Whether everything was returned that was there at the start."""
        return self._done

    def lag(self) -> int | None:
        """Return the group's lag, about one second old."""
        return self._lag

    async def close(self) -> None:
        """Give the lease back and disconnect."""
        if self._lease is not None:
            await self._lease.release()
            self._lease = None
        if self._client is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._client.aclose()
            self._client = None

    async def _begin(self, lease: Lease) -> bool:
        """Acquire the lease, and begin with what was not acknowledged; False if another connector has it."""
        assert self._client is not None
        if not await lease.acquire():
            return False
        try:
            await self._client.xgroup_create(self._name, self._group, id="0", mkstream=True)
        except ResponseError as exc:
            if not str(exc).startswith("BUSYGROUP"):
                raise
        self._cursor = "0"
        self.generation += 1
        lease.hold()
        return True

    async def _read(self, limit: int, lease: Lease) -> list[_Entry]:
        assert self._client is not None
        while True:
            if self._cursor == ">":
                new = await self._read_new(limit, lease.name)
                if new is None:
                    await lease.renew()  # it reads that it is lost
                    return []
                return self._until_end(new)
            found = await self._client.xreadgroup(self._group, _CONSUMER, {self._name: self._cursor}, count=limit)
            entries = found[0][1] if found else []
            if not entries:
                self._cursor = ">"
                continue
            self._cursor = entries[-1][0]
            deleted = [entry_id for entry_id, fields in entries if not fields]
            if deleted:  # they were trimmed before they were acknowledged
                await self._client.xack(self._name, self._group, *deleted)
            if len(deleted) < len(entries):
                return entries

    async def _read_new(self, limit: int, token: str) -> list[_Entry] | None:
        """Return entries that no connector has got yet; after a moment, if there are none; None: the lease is lost."""
        for waits in (False,) if self._options.once else (True, False):
            found = await self._client.eval(
                _READ_NEW, 2, self._lease_key, self._name, token, self._group, _CONSUMER, limit
            )
            if found == 0:
                return None
            if found:
                new: list[_Entry] = found[0][1]
                self._newest = new[-1][0]
                return new
            if waits:
                await self._wait_for_new()
        return []

    async def _wait_for_new(self) -> None:
        """Wait until an entry is added behind those that this connector has got, for half a second at most."""
        found = await self._client.xread({self._name: self._newest}, count=1, block=_BLOCK_MS)
        for _, entries in found.items() if isinstance(found, dict) else found or ():
            self._newest = entries[-1][0]  # if another connector has got it, this one waits for the next

    def _until_end(self, entries: list[_Entry]) -> list[_Entry]:
        if not self._options.once:
            return entries
        end = self._end
        is_before = end is not None and entries and _split(entries[-1][0]) <= end  # entry ids grow
        kept = entries if is_before else [one for one in entries if end is not None and _split(one[0]) <= end]
        self._done = len(kept) < len(entries) or not entries  # what is behind the end is read by the next run
        return kept

    async def _update_lag(self) -> None:
        assert self._client is not None
        if self._clock() - self._lag_at < 1:
            return
        self._lag_at = self._clock()
        for group in await self._client.xinfo_groups(self._name):
            if group["name"] == self._group.encode():
                self._lag = group.get("lag")

    def _preview(self, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[BrokerMessage]:
        self._done = not entries
        if entries:
            self._cursor = entries[-1][0]
        return [self._message(entry_id, fields) for entry_id, fields in entries]

    def _start(self) -> bytes | str:
        return "-" if isinstance(self._cursor, str) else b"(%b" % self._cursor

    def _columns(self, entries: list[_Entry]) -> MessageColumns:
        self._open = [entry_id for entry_id, _ in entries]
        numbers = b",".join(self._open).replace(b"-", b",")  # decoded together: two calls of `int` an entry take longer
        parts = _decode_integers(b"[%b]" % numbers)
        at = list(map(_position, parts[::2], parts[1::2]))
        n = len(entries)

        def make(row: int) -> BrokerMessage:
            entry_id, flat = entries[row]
            return self._message(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)))

        return MessageColumns(
            make,
            bodies=[
                flat[1] if len(flat) == 2 and flat[0] == DATA_FIELD and place is not None else None
                for (_, flat), place in zip(entries, at, strict=True)
            ],
            at=at,
            sources=[self._source] * n,
            logs=[self._source] * n,
            keys=[None] * n,
            topics=[self._name] * n,
        )

    def _message(self, entry_id: bytes, fields: dict[bytes, bytes]) -> BrokerMessage:
        at = _position(*_split(entry_id))
        return BrokerMessage(
            b"", self._source, at, self._source, topic=self._name, fields=fields, handle=entry_id,
            unplaced="" if at is not None else f"the entry id {entry_id.decode()} has no position: {_EXPECTED_ID}",
        )  # fmt: skip


class _RedisLease:
    """The entry of the lease in the broker."""

    errors: tuple[type[Exception], ...] = (RedisError, OSError)

    def __init__(self, client: Any, key: str) -> None:
        self._client = client
        self._key = key

    async def put(self, holder: str, lease_ms: int, *, only_renew: bool, timeout_s: float) -> str:
        found, *_ = await self._client.eval(LEASE_SCRIPT, 1, self._key, holder, lease_ms, int(only_renew))
        name: str = found.decode()
        return name


def _position(milliseconds: int, number: int) -> int | None:
    """Return the position of an entry; None: it has none that no other entry has."""
    if milliseconds >= _MILLISECONDS_LIMIT or number >= _SEQUENCE_LIMIT:
        return None
    return milliseconds << _SEQUENCE_BITS | number


def _split(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
