"""The packed state of a stream: one text, which a model continues from wherever its graph runs.

The text is base64url, without padding, of the fingerprint of the model, the packed state row, and the CRC-32 of both,
little-endian.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

FINGERPRINT_BYTES = 8
_CHECKSUM_BYTES = 4


class PackedState(NamedTuple):
    """A packed state, decoded.

    Attributes:
        fingerprint: Of the model that wrote it, 8 bytes.
        state: The packed state row; `state_packing` has its layout.
    """

    fingerprint: bytes
    state: bytes


def encode_packed_state(fingerprint: bytes, state: bytes) -> str:
    """Return the text of a packed state.

    Args:
        fingerprint: Of the model that wrote it, 8 bytes.
        state: The packed state row.
    """
    content = fingerprint + state
    checksum = binascii.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")
    return base64.urlsafe_b64encode(content + checksum).rstrip(b"=").decode()


def decode_packed_state(text: str) -> PackedState:
    """Return what a text holds.

    Raises:
        ValueError: It is not the text of a packed state; the message has what was found.
    """
    try:
        encoded = text.encode("ascii")
        raw = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except ValueError as exc:
        raise ValueError(f"{len(text)} characters that are not base64url") from exc
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != encoded:  # padding, bits that are left, or + and /
        raise ValueError(f"{len(text)} characters that are not base64url without padding")
    if len(raw) < FINGERPRINT_BYTES + _CHECKSUM_BYTES:
        raise ValueError(f"{len(raw)} bytes, fewer than a fingerprint and a checksum have")
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if binascii.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError(f"{len(raw)} bytes whose checksum is that of others")
    return PackedState(content[:FINGERPRINT_BYTES], content[FINGERPRINT_BYTES:])
