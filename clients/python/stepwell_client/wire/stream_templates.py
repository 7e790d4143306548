"""`StreamTemplate`: stream ids that are made of fields or columns, such as `pump-{id}`, and their escape."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
_ESCAPED: Final = re.compile(rb"@([0-9A-F]{2})")
_PARTS: Final = re.compile(r"\{([^{}]*)\}")
_LITERAL: Final = re.compile(r"[A-Za-z0-9._:@-]*")


def escaped(text: str) -> str:
    """Return a text in the characters of a stream id: each byte of UTF-8 that no id has, and `@`, is `@` and its hex.

    `pump 7` is `pump@207`, and `é` is `@C3@A9`. `unescaped` returns the text again, so different texts stay different.
    """
    return "".join(chr(byte) if byte in _PLAIN else f"@{byte:02X}" for byte in text.encode())


def unescaped(text: str) -> str:
    """Return the text of which `escaped` has made this."""
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()).decode(errors="replace")


def is_template(text: str) -> bool:
    """Whether a text has placeholders: an id and the name of a place have no braces."""
    return "{" in text or "}" in text


class StreamTemplate:
    """A text with placeholders of fields or columns.

    Attributes:
        text: The template as it was given.
        names: What stands in its placeholders, in order.
    """

    def __init__(self, text: str) -> None:
        """Parse a template.

        Raises:
            ValueError: A brace is not closed, a placeholder is empty, or the rest has characters that no id has.
        """
        parts = _PARTS.split(text)
        self.text = text
        self.names = parts[1::2]
        self._literals = parts[::2]
        if not self.names or not all(self.names):
            raise ValueError(f"{text!r} is no template of stream ids; expected placeholders such as pump-{{id}}")
        if wrong := next((one for one in self._literals if not _LITERAL.fullmatch(one)), None):
            raise ValueError(f"{text!r} has {wrong!r} beside its placeholders; a stream id has A-Z a-z 0-9 . _ : @ -")

    def fill(self, values: Iterable[str]) -> str:
        """Return the id for the values of its placeholders, which are escaped; it may be too long for an id.

        Raises:
            ValueError: A value is empty.
        """
        filled = [self._literals[0]]
        for name, value, literal in zip(self.names, values, self._literals[1:], strict=True):
            if not value:
                raise ValueError(f"{name!r} of {self.text!r} is empty")
            filled += (escaped(value), literal)
        return "".join(filled)
