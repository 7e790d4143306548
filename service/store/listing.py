"""`page`: streams' names, page by page, with a cursor that any process can go on from."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from service.errors import ServiceError, StoreUnavailableError
from service.ids import is_stream_id
from service.store import keys
from service.store.transport.connection import NotSentError
from service.store.transport.retry import execute_with_retry
from service.store.transport.transport import RedisTransport

_MIN_SCAN: Final = 100  # keys looked at in one go, at least
_MAX_SCAN: Final = 10_000
_COUNTED_AT_ONCE: Final = 1000
_CURSOR: Final = re.compile(r"[0-9a-f]{1,8}-[0-9]{1,4}-[0-9]{1,20}|start|end")


async def page(
    wire: RedisTransport, pattern: str, cursor: str | None, limit: int, *, deadline: float
) -> tuple[list[str], str | None]:
    """Return up to `limit` stream ids and the cursor to go on from; None at the end.

    Args:
        wire: The way to the store.
        pattern: What the records' keys look like.
        cursor: The one that the page before gave; None to begin.
        limit: Most ids.
        deadline: On the running loop's clock.

    Raises:
        ServiceError: `bad_request`: the cursor is none of ours; or the store's.
    """
    at, kept = _read_cursor(cursor)
    found = dict.fromkeys(kept)  # a scan may bring a name twice
    count = max(limit, _MIN_SCAN)
    while len(found) < limit and at != "end":
        at, batch = await _scan(wire, at, pattern, count, deadline)
        found.update(dict.fromkeys(map(keys.stream_of, batch)))
        count = min(2 * count, _MAX_SCAN) if not batch else max(limit, _MIN_SCAN)  # hurry where few keys match
    names = list(found)
    rest = names[limit:]
    done = at == "end" and not rest
    return names[:limit], None if done else _write_cursor(at, rest)


async def every_key(wire: RedisTransport, pattern: str, *, deadline: Callable[[], float]) -> AsyncIterator[list[str]]:
    """Give every key of a pattern, a page at a time, some maybe twice.

    Args:
        wire: The way to the store.
        pattern: What the keys look like.
        deadline: Gives the time by which the next page has to be there.
    """
    at = "start"
    while at != "end":
        at, batch = await _scan(wire, at, pattern, _COUNTED_AT_ONCE, deadline())
        yield batch


@dataclass(frozen=True, slots=True)
class _ScanCursor:
    """How far a listing is: in which of the store's servers, and where there.

    Attributes:
        name: Who has what, as the store named it. When that changes the listing begins again, since a stream may
            have moved from a server that is still to come to one that is done.
        part: The server, from 0.
        at: Its own cursor.
    """

    name: str
    part: int
    at: str

    @classmethod
    def read(cls, text: str, name: str, parts: int) -> _ScanCursor:
        known, part, at = text.split("-") if text != "start" else (name, "0", "0")
        return cls(name, int(part), at) if known == name and int(part) < parts else cls(name, 0, "0")

    def following(self, at: str, parts: int) -> str:
        if at != "0":
            return f"{self.name}-{self.part}-{at}"
        return f"{self.name}-{self.part + 1}-0" if self.part + 1 < parts else "end"


async def _scan(wire: RedisTransport, at: str, pattern: str, count: int, deadline: float) -> tuple[str, list[str]]:
    try:
        name, parts = await wire.primaries()
    except NotSentError as exc:
        raise StoreUnavailableError(f"The store did not answer: {exc.public_reason}.") from exc
    place = _ScanCursor.read(at, name, len(parts))
    command = ("SCAN", place.at, "MATCH", pattern, "COUNT", count)
    [reply] = await execute_with_retry(parts[place.part], [command], deadline=deadline)
    if isinstance(reply, ServiceError):
        raise reply
    following, batch = reply
    return place.following(following.decode(), len(parts)), [key.decode() for key in batch]


def _write_cursor(at: str, rest: list[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([at, *rest], separators=(",", ":")).encode()).decode().rstrip("=")


def _read_cursor(cursor: str | None) -> tuple[str, list[str]]:
    if cursor is None:
        return "start", []
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        at, *rest = (str(part) for part in parts)
        if not _CURSOR.fullmatch(at) or not all(is_stream_id(r) for r in rest):
            raise ValueError(at)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ServiceError(
            "bad_request",
            f"`cursor` is {cursor[:64]!r}; expected the text that the page before gave.",
            fix="Leave it out to begin again.",
        ) from exc
    return at, rest
