"""WebSocket frames as most of them are: a whole message each (RFC 6455, section 5.2)."""

from __future__ import annotations

from collections.abc import Iterable

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the library comes without its C extension
    from websockets.utils import apply_mask

MAX_HEAD_BYTES = 14
"""Most bytes in front of a client's payload."""

CONTROL = 0x08
"""The bit of a frame's first byte that its opcode has where it is a ping, a pong or a close."""

_WHOLE_TEXT, _WHOLE_BINARY = 0x81, 0x82
_WHOLE = frozenset({_WHOLE_TEXT, _WHOLE_BINARY})
_MASKED = 0x80


def next_frame(data: bytes, at: int) -> tuple[bytes | None, int]:
    """Look at the frame that begins at a place.

    Returns:
        Its message and its end, where it is a client's whole message and all of it is there; else None and where it
        ends, maybe beyond what is there; 0: its length cannot be told yet.
    """
    there = len(data) - at
    if there < 2:
        return None, 0
    first, second = data[at], data[at + 1]
    length, body = second & 0x7F, at + 2
    if length > 125:
        width = 2 if length == 126 else 8
        if there < 2 + width:
            return None, 0
        length = int.from_bytes(data[body : body + width])
        body += width
    if not second & _MASKED:
        return None, body + length
    body += 4
    end = body + length
    if end > len(data) or first not in _WHOLE:
        return None, end
    return apply_mask(data[body:end], data[body - 4 : body]), end


def encode_frames(messages: Iterable[bytes], *, text: bool) -> bytes:
    """Return messages of a server as frames, one behind the other."""
    first = _WHOLE_TEXT if text else _WHOLE_BINARY
    parts: list[bytes] = []
    for message in messages:
        size = len(message)
        if size < 126:
            parts.append(bytes((first, size)))
        elif size < 65536:
            parts.append(b"%c\x7e%b" % (first, size.to_bytes(2)))
        else:
            parts.append(b"%c\x7f%b" % (first, size.to_bytes(8)))
        parts.append(message)
    return b"".join(parts)
