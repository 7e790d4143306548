"""The id that a client gives to a request: it is sent back with the response, and is in log lines about the request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stepwell.requests.tracer import RequestTracer

RESPONSE_HEADER: Final = b"x-request-id"
"""Name of the response header, and of the first of the two request headers."""

TRACEPARENT: Final = b"traceparent"
"""Name of the other one, of the W3C's Trace Context."""

# The first is printable and bounded: it is repeated in the response and in log lines.
REQUEST_ID_VALUES: Final = {
    RESPONSE_HEADER: rb"([!-~]{1,128}+)",
    TRACEPARENT: rb"((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})",
}
"""Patterns of valid values by header; the group is what `identify` needs."""

_VALID: Final = {name: re.compile(pattern + rb"[ \t]*") for name, pattern in REQUEST_ID_VALUES.items()}


SCOPE_KEY: Final = "stepwell.request_id"
"""Where the scope of a declared route's request has its id, if a tracer has chosen it."""


class TracedId(bytes):
    """The id of a request that is traced, empty if it has none, with the place of its span in a trace.

    Attributes:
        trace_id: 128 bits.
        parent_id: Id of the caller's span, 64 bits; 0: this request starts the trace.
    """

    trace_id: int
    parent_id: int

    @property
    def trace_hex(self) -> str:
        """The trace id as 32 hexadecimal digits."""
        return f"{self.trace_id:032x}"


def identify(own: bytes | None, traceparent: bytes | None, tracer: RequestTracer | None) -> bytes:
    """Return the id of a request, as a `TracedId` if it continues a trace; empty: it has none.

    Args:
        own: A valid `X-Request-Id`, or None or empty.
        traceparent: A valid `traceparent`, or None or empty.
        tracer: Decides what is traced; None: nothing is.
    """
    if not traceparent:
        return own or b""
    request_id = own or traceparent[3:35]
    return request_id if tracer is None else tracer.identify(request_id, traceparent)


def request_id_of(headers: Iterable[tuple[bytes, bytes]], tracer: RequestTracer | None = None) -> bytes:
    """Return the id of a request; empty: it has none.

    That is `X-Request-Id`, if it has 1 to 128 printable ASCII characters without spaces, or else the trace id of the
    W3C's `traceparent`. Invalid values are ignored.

    Args:
        headers: Names in lower case, and values; of several with one name the first counts.
        tracer: As for `identify`.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _VALID:
            found.setdefault(name, value)
    if not found:
        return b""
    matches = {name: match[1] for name, value in found.items() if (match := _VALID[name].fullmatch(value))}
    return identify(matches.get(RESPONSE_HEADER), matches.get(TRACEPARENT), tracer)


def log_fields(request_id: bytes) -> dict[str, str]:
    """Return the `extra` of a log line about a request."""
    fields = {"request_id": request_id.decode()} if request_id else {}
    return fields | {"trace_id": request_id.trace_hex} if isinstance(request_id, TracedId) else fields
