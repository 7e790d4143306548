"""The id that a client gives to a request: it is sent back with the response, and is in log lines about the request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

RESPONSE_HEADER: Final = b"x-request-id"
"""Name of the response header, and of the first of the two request headers."""

# The first is printable and bounded: it is repeated in the response and in log lines.
REQUEST_ID_VALUES: Final = {
    RESPONSE_HEADER: rb"([!-~]{1,128}+)",
    b"traceparent": rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}",
}
"""Patterns of valid values by header, the first header that has one counts; the group is the request's id."""

_VALID: Final = {name: re.compile(pattern + rb"[ \t]*") for name, pattern in REQUEST_ID_VALUES.items()}


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the id of a request; empty: it has none.

    That is `X-Request-Id`, if it has 1 to 128 printable ASCII characters without spaces, or else the trace id of the
    W3C's `traceparent`. Invalid values are ignored.

    Args:
        headers: Names in lower case, and values; of several with one name the first counts.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _VALID:
            found.setdefault(name, value)
    for name, valid in _VALID.items():
        if name in found and (match := valid.fullmatch(found[name])):
            return match[1]
    return b""


def log_fields(request_id: bytes) -> dict[str, str]:
    """Return the `extra` of a log line about a request."""
    return {"request_id": request_id.decode()} if request_id else {}
