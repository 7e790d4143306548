"""Decodes and encodes unfragmented WebSocket frames (RFC 6455, section 5.2)."""

from __future__ import annotations

from collections.abc import Iterable

try:
    from websockets.speedups import apply_mask
except ImportError:  # if the library was installed without its C extension
    from websockets.utils import apply_mask

MAX_HEAD_BYTES = 14
"""Maximum length of a client frame's header, in bytes."""

CONTROL = 0x08
"""The bit of a frame's first byte that marks a control frame: ping, pong or close."""

_WHOLE_TEXT, _WHOLE_BINARY = 0x81, 0x82
_WHOLE = frozenset({_WHOLE_TEXT, _WHOLE_BINARY})
_MASKED = 0x80


def next_frame(data: bytes, offset: int) -> tuple[bytes | None, int]:
    """Decode the frame at an offset.

    Returns:
        The message and the end of the frame, if the frame is a client's whole message and is complete. Otherwise None
        and the end of the frame, which may be beyond the data; 0: too little of the frame is there to read its length.
    """
    n_available = len(data) - offset
    if n_available < 2:
        return None, 0
    first, second = data[offset], data[offset + 1]
    length, body = second & 0x7F, offset + 2
    if length > 125:
        width = 2 if length == 126 else 8
        if n_available < 2 + width:
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
    """Return a server's messages as consecutive frames."""
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
