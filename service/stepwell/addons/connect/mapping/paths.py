"""`FieldPath`: a value inside a decoded message, such as `data.temp` or `values[2]`."""

from __future__ import annotations

import re
from typing import Any, Final

from stepwell.addons.connect.messages import ConnectUsageError

_PREVIEW: Final = 60
MISSING: Final = object()
"""The value of a field that is not there."""

_INDEX = re.compile(r"\[([0-9]+)\]")


def is_index(part: str) -> bool:
    """Whether a part of a path is an index of a list."""
    return part.isascii() and part.isdigit()


class FieldPath:
    """The path of a field: names separated by dots, and indices of lists; `$` is the whole message.

    Attributes:
        text: The path as it was given.
        parts: Its names and indices; empty: it is the whole message.
    """

    __slots__ = ("parts", "text")

    def __init__(self, text: str) -> None:
        """Parse a path.

        Raises:
            ConnectUsageError: The path is empty or has an empty part.
        """
        self.text = text
        bare = text.removeprefix("$.")
        self.parts = [] if bare == "$" else _INDEX.sub(r".\1", bare).removeprefix(".").split(".")
        if not all(self.parts) and self.parts:
            raise ConnectUsageError(f"The path {text!r} has an empty part; expected a form such as data.values[2].")

    def missing_in(self, document: Any) -> str:
        """Return the reason for a dead letter whose message has no such field, with the fields that it has."""
        has = ""
        if type(document) is dict and document:
            has = f"; the message has {', '.join(map(str, document))[:_PREVIEW]}"
        elif type(document) is list:
            has = f"; the message is a list, whose fields are 0 to {len(document) - 1}" if document else ""
        return f"the field {self.text!r} is missing{has}"

    def read(self, document: Any) -> Any:
        """Return the value, or `MISSING`. A field whose name has dots is found by its whole name."""
        if type(document) is dict and self.text in document:
            return document[self.text]
        for part in self.parts:
            if type(document) is dict:
                document = document.get(part, MISSING)
            elif type(document) is list and is_index(part) and int(part) < len(document):
                document = document[int(part)]
            else:
                return MISSING
        return document
