"""Numbers and stream ids of texts: fields of Redis entries, cells of CSV, headers, keys and topics.

One rule for every command that reads them, so that `connect`, `replay` and `backfill` step the same streams. Python's
`int` and `float` accept more than a number that a person wrote: `4_2`, `+42`, full-width digits. A stream's id is never
converted: `0042` and `42` are two streams.
"""

from __future__ import annotations

import re

from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id

_TRUTHS = {"true": 1, "false": 0}
_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none"))
_JSON_NUMBER = re.compile(r"[ \t\r\n]*(-?(?:0|[1-9][0-9]*))((?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)[ \t\r\n]*")
_LONGEST_INTEGER = 4300  # digits that Python converts
_LONGEST_ID_BITS = 512  # more than 128 digits have; `str` refuses very long ones
_PREVIEW_CHARACTERS = 60


def number_of(text: str) -> int | float | None:
    """Return the number that a text has in JSON's grammar, with spaces around it or not; None: it has none.

    `1e999` is infinite, as it is for `float`; whoever uses the number checks that it is finite.

    Source: RFC 8259, 6.
    """
    found = _JSON_NUMBER.fullmatch(text)
    if found is None:
        return None
    integer, rest = found.groups()
    return float(integer + rest) if rest or len(integer) > _LONGEST_INTEGER else int(integer)


def value_of(text: str) -> int | float | None:
    """Return the value of a cell or field: its number, as `number_of`; of `true` and `false`, in any case, 1 and 0."""
    number = number_of(text)
    return _TRUTHS.get(text.strip(" \t").lower()) if number is None else number


def is_missing(text: str) -> bool:
    """Whether a text stands for a value that is not there: an empty cell, `NA`, `n/a`, `nan`, `null` or `None`."""
    return text.strip(" \t").lower() in _MISSING


def stream_id_of(value: object) -> str:
    """Return the stream's id that a value is: a text as it stands, an integer as its decimal text.

    Args:
        value: A decoded value; bytes are text in UTF-8.

    Raises:
        ServiceError: `bad_request`: it is neither, or not a valid id. `1.0` is no id: JSON writes it as `1`, `1.0` or
            `1e0`.
    """
    return check_stream_id(id_text_of(value))


def id_text_of(value: object) -> str:
    """Return the text that a value is in a stream's id, which is not checked; raises as `stream_id_of` does."""
    if type(value) is bytes:
        try:
            value = value.decode()
        except UnicodeDecodeError as exc:
            raise ServiceError(
                "bad_request",
                f"The stream id is {preview(value)}, which is not UTF-8.",
                fix="Use a text of A-Z a-z 0-9 . _ : @ -.",
            ) from exc
    if type(value) is int:
        value = str(value) if value.bit_length() <= _LONGEST_ID_BITS else hex(value)  # which is too long for an id
    if not isinstance(value, str):
        raise ServiceError(
            "bad_request",
            f"The stream id is {preview(value)}; expected a text or an integer.",
            fix="Write it as a text.",
        )
    return str(value)  # not a subclass, which encoders refuse


def preview(value: object) -> str:
    """Return a value as Python writes it, for a message, without what goes beyond a line."""
    return repr(value[:_PREVIEW_CHARACTERS]) if isinstance(value, (str, bytes)) else repr(value)[:_PREVIEW_CHARACTERS]
