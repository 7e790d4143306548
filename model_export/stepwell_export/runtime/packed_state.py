"""The packed state of a stream: one text, which a model continues from wherever its graph runs.

The text is base64url, without padding, of the fingerprint of the model, the packed state row, and the CRC-32 of both,
little-endian.
"""

from __future__ import annotations

import binascii
from typing import NamedTuple

FINGERPRINT_BYTES = 8
_CHECKSUM_BYTES = 4
_TO_URL = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/???")


class DecodedState(NamedTuple):
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
    return _encode(content + checksum).decode()


def decode_packed_state(text: str) -> DecodedState:
    """Return what a text holds.

    Raises:
        ValueError: It is not the text of a packed state; the message has what was found.
    """
    encoded = text.encode("ascii", "replace")  # whose ? is no digit of base64
    digits = encoded.translate(_TO_STANDARD)
    try:
        raw = binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except ValueError as exc:
        raise ValueError(f"{len(text)} characters that are not base64url without padding") from exc
    rest = len(raw) % 3
    if rest and _encode(raw[-rest:]) != encoded[-rest - 1 :]:  # bits are left, or there is padding
        raise ValueError(f"{len(text)} characters that are not base64url without padding")
    if len(raw) < FINGERPRINT_BYTES + _CHECKSUM_BYTES:
        raise ValueError(f"{len(raw)} bytes, fewer than a fingerprint and a checksum have")
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if binascii.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError(f"{len(raw)} bytes whose checksum is that of others")
    return DecodedState(content[:FINGERPRINT_BYTES], content[FINGERPRINT_BYTES:])


def _encode(raw: bytes) -> bytes:
    """Return the base64url of some bytes, without padding. The functions of `base64` take twice as long."""
    return binascii.b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=")
