"""Stream ids, state ids, positions and keys as texts in requests and responses."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections.abc import Sequence

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A model's or a snapshot's name."""
STREAM_ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
API_KEY = re.compile(r"[!-~]([ -~]*[!-~])?")
"""A key or token that a header can have: printable ASCII, without the line end that a key read from a file may have."""
SEQ_LIMIT = 2**53
"""`seq` is less than this: every JSON parser represents such integers exactly."""

POSITION_LIMIT = 2**63
"""A position in a source is less than this: logs count in signed integers of 64 bits."""

_PADDING = bytes(2)
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def is_stream_id(text: str) -> bool:
    """Whether a text is a valid stream id."""
    return STREAM_ID.fullmatch(text) is not None and text not in (".", "..")


def stream_id_problem(text: str) -> str:
    """Return what is wrong with an invalid stream id."""
    return (
        f"The stream id is {text[:140]!a} ({len(text)} characters); expected 1 to 128 of A-Z a-z 0-9 . _ : @ -, "
        "but not . or .."
    )


def snapshot_name_problem(text: str) -> str:
    """Return what is wrong with an invalid name of a snapshot."""
    return (
        f"The snapshot's name is {text[:70]!a} ({len(text)} characters); expected 1 to 64 of A-Z a-z 0-9 . _ -, "
        "the first a letter or digit."
    )


def encode_state_id(state_id: bytes) -> str:
    """Encode 16 bytes as 22 characters of base64url without padding."""
    return b2a_base64(state_id, newline=False).translate(_URL_SAFE)[:22].decode("ascii")


def encode_state_ids(state_ids: Sequence[bytes]) -> list[str]:
    """Encode each as `encode_state_id` does; one call takes less than half of the time of single calls."""
    encoded = _encode_all(state_ids).decode("ascii")
    return [encoded[i : i + 22] for i in range(0, 24 * len(state_ids), 24)]


def encode_state_ids_ascii(state_ids: Sequence[bytes]) -> list[bytes]:
    """Encode each as `encode_state_ids` does, to bytes."""
    encoded = _encode_all(state_ids)
    return [encoded[i : i + 22] for i in range(0, 24 * len(state_ids), 24)]


def _encode_all(state_ids: Sequence[bytes]) -> bytes:
    # With two bytes of padding, each encodes to 24 characters, and the first 22 are the same as without.
    return b2a_base64(_PADDING.join(state_ids) + _PADDING, newline=False).translate(_URL_SAFE)


def decode_state_id(text: str) -> bytes:
    """Decode the text of a state id, which must be 22 characters of base64url."""
    return urlsafe_b64decode(text + "==")
