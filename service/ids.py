"""The texts that name things on the wire: stream ids, state ids, positions."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections.abc import Sequence

from service.errors import ServiceError

STREAM_ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
SEQ_LIMIT = 2**53
"""`seq` stays below this: what every JSON reader keeps exactly."""

_PADDING = bytes(2)
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_STATE_ID = re.compile(r"[A-Za-z0-9_-]{22}")


def is_stream_id(text: str) -> bool:
    """Say whether a text may name a stream."""
    return STREAM_ID.fullmatch(text) is not None and text not in (".", "..")


def check_stream_id(text: str) -> str:
    """Return the stream id as given.

    Raises:
        ServiceError: `bad_request`: not 1 to 128 of `A-Z a-z 0-9 . _ : @ -`, or `.` or `..`.
    """
    if not is_stream_id(text):
        raise bad_stream_id(text)
    return text


def bad_stream_id(text: str) -> ServiceError:
    """Return the refusal of a stream id."""
    return ServiceError(
        "bad_request",
        f"The stream id is {text[:140]!a} ({len(text)} characters); expected 1 to 128 of A-Z a-z 0-9 . _ : @ -, "
        "but not . or ..",
        fix="Name the stream by such an id.",
    )


def encode_state_id(state_id: bytes) -> str:
    """Return 16 bytes as 22 characters of base64url without padding."""
    return b2a_base64(state_id, newline=False).translate(_URL_SAFE)[:22].decode("ascii")


def encode_state_ids(state_ids: Sequence[bytes]) -> list[str]:
    """Return what `encode_state_id` does of each; together they take less than half of the time."""
    whole = _all_encoded(state_ids).decode("ascii")
    return [whole[at : at + 22] for at in range(0, 24 * len(state_ids), 24)]


def encode_state_ids_ascii(state_ids: Sequence[bytes]) -> list[bytes]:
    """Return what `encode_state_ids` does, as bytes."""
    whole = _all_encoded(state_ids)
    return [whole[at : at + 22] for at in range(0, 24 * len(state_ids), 24)]


def _all_encoded(state_ids: Sequence[bytes]) -> bytes:
    # With two bytes behind it, each is 24 characters, and none of the first 22 is another than without.
    return b2a_base64(_PADDING.join(state_ids) + _PADDING, newline=False).translate(_URL_SAFE)


def is_state_id(text: str) -> bool:
    """Say whether a text is a state id, known or not."""
    return _STATE_ID.fullmatch(text) is not None


def decode_state_id(text: str) -> bytes:
    """Undo `encode_state_id`; ask `is_state_id` first."""
    return urlsafe_b64decode(text + "==")
