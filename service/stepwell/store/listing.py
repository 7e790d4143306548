"""`page`: stream ids, page by page, with a cursor that any worker can continue from; `count_by_tenant`."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stepwell.errors import ServiceError, StoreUnavailableError
from stepwell.store import keys
from stepwell.store.transport.connection import NotSentError
from stepwell.store.transport.retry import replies_of
from stepwell.store.transport.transport import RedisTransport
from stepwell_client.wire.ids import is_stream_id

_MIN_SCAN: Final = 10  # fewest keys that one SCAN inspects
_MAX_SCAN: Final = 10_000
_COUNTED_AT_ONCE: Final = 1000
_CURSOR: Final = re.compile(r"[0-9a-f]{1,8}-[0-9]{1,4}-[0-9]{1,20}|start|end")


async def page(
    transport: RedisTransport, tenant: str, model: str, prefix: str, cursor: str | None, *, limit: int, deadline: float
) -> tuple[list[str], str | None]:
    """Return up to `limit` stream ids and the cursor of the next page, None at the end.

    A stream that exists throughout the listing is listed at least once, whatever streams are created or deleted
    meanwhile. In a Cluster a stream may be missed while its slot is migrated.

    Args:
        transport: The store transport.
        tenant: The owner of the streams.
        model: The model's name.
        prefix: Start of the stream ids.
        cursor: The cursor that the previous page returned; None for the first page.
        limit: Most ids to return.
        deadline: On the running loop's clock.

    Raises:
        ServiceError: `bad_request`: the cursor was not returned by an earlier page; or an error of the store.
    """
    position, pending = _read_cursor(cursor)
    pattern = keys.records_pattern(tenant, model, prefix)
    streams = dict.fromkeys(pending)  # a scan may return a key twice
    keys_per_stream = 1.0  # inspected keys; as measured by the last scan
    while (missing := limit - len(streams)) > 0 and position != "end":
        # Not many more than are missing: the cursor has the ids that are left over, and a URL has little room.
        count = min(max(int(missing * keys_per_stream), _MIN_SCAN), _MAX_SCAN)
        position, batch = await scan(transport, position, pattern, count, deadline)
        streams.update(dict.fromkeys(map(keys.stream_of, batch)))
        keys_per_stream = count / len(batch) if batch else 2 * count / missing  # larger scans while few keys match
    names = list(streams)
    rest = names[limit:]
    done = position == "end" and not rest
    text = json.dumps([position, *rest], separators=(",", ":"))
    return names[:limit], None if done else base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


async def count_by_tenant(transport: RedisTransport, *, deadline: Callable[[], float]) -> dict[str, int]:
    """Return the number of streams of each tenant; reads every key, a page at a time.

    Args:
        transport: The store transport.
        deadline: Returns the deadline of the next page, on the running loop's clock.

    Raises:
        ServiceError: An error of the store.
    """
    counts: Counter[str] = Counter()
    position = "start"
    while position != "end":
        position, batch = await scan(transport, position, keys.ALL_RECORDS, _COUNTED_AT_ONCE, deadline())
        counts.update(map(keys.tenant_of, batch))
    return dict(counts)


@dataclass(frozen=True, slots=True)
class _ScanCursor:
    """The position of a listing: a server of the store, and the SCAN cursor of that server.

    Attributes:
        layout: Name of the assignment of slots to servers. If it has changed the listing starts over, since a stream
            may have moved from a server that is not listed yet to one that is.
        server: Index of the server, from 0.
        cursor: The server's SCAN cursor.
    """

    layout: str
    server: int
    cursor: str

    @classmethod
    def read(cls, text: str, layout: str, servers: int) -> _ScanCursor:
        previous, server, cursor = text.split("-") if text != "start" else (layout, "0", "0")
        return cls(layout, int(server), cursor) if previous == layout and int(server) < servers else cls(layout, 0, "0")

    def following(self, cursor: str, servers: int) -> str:
        if cursor != "0":
            return f"{self.layout}-{self.server}-{cursor}"
        return f"{self.layout}-{self.server + 1}-0" if self.server + 1 < servers else "end"


async def scan(
    transport: RedisTransport, position: str, pattern: str, count: int, deadline: float
) -> tuple[str, list[str]]:
    """Return keys, some perhaps twice, and the position of the next page; `end`: there is none.

    Args:
        transport: The store transport.
        position: `start`, or the position that the previous page returned.
        pattern: What the keys match.
        count: Keys to inspect.
        deadline: On the running loop's clock.

    Raises:
        ServiceError: An error of the store.
    """
    try:
        layout, servers = await transport.primaries()
    except NotSentError as exc:
        raise StoreUnavailableError(f"The store did not reply: {exc.public_reason}.") from exc
    scan = _ScanCursor.read(position, layout, len(servers))
    command = ("SCAN", scan.cursor, "MATCH", pattern, "COUNT", count)
    [(cursor, batch)] = await replies_of(servers[scan.server], [command], deadline=deadline)
    return scan.following(cursor.decode(), len(servers)), [key.decode() for key in batch]


def _is_position(text: str) -> bool:
    """Whether a text is a position that `_ScanCursor` may have returned; SCAN's cursors have 64 bits."""
    return _CURSOR.fullmatch(text) is not None and (text in {"start", "end"} or int(text.rsplit("-", 1)[1]) < 2**64)


def _read_cursor(cursor: str | None) -> tuple[str, list[str]]:
    if cursor is None:
        return "start", []
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        position, *rest = (str(part) for part in parts)
        if not _is_position(position) or not all(is_stream_id(stream) for stream in rest):
            raise ValueError(position)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ServiceError(
            "bad_request",
            f"`cursor` is {cursor[:64]!r}; expected the `cursor` that the previous page returned.",
            fix="Leave it out to start from the first page.",
        ) from exc
    return position, rest
