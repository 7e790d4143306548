"""`UnseenFields`: the fields of a mapping that no message has had so far: most likely they are misspelled.

A model that takes missing values would be stepped by NaN for ever, without a dead letter.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.paths import MISSING
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, ConnectError
from stepwell_client.wire.texts import counted

ENOUGH: Final = 100
"""Messages after which a field that none of them has is an error."""

_MOST_NAMES: Final = 1000
_SHOWN: Final = 12


class UnseenFields:
    """Looks for the fields of a mapping in messages, until each was there.

    Attributes:
        is_reported: Whoever uses it has reported the fields that are missing so far.
    """

    def __init__(self, mapper: MessageMapper) -> None:
        self.is_reported = False
        self._mapper = mapper
        others = (mapper.position, mapper.seq, None if mapper.time is None else mapper.time.path)
        paths = [
            *mapper.place.paths,
            *filter(None, others),
            *(path for column in mapper.columns.values() for path in column.paths),
        ]
        self._unseen = {path.text: path for path in paths}
        self._names: dict[str, None] = {}
        self._n_messages = 0

    def look_in(self, messages: Iterable[BrokerMessage]) -> None:
        """Look in messages; those that are not of the format have no fields."""
        for message in messages:
            if not self._unseen or self._n_messages >= ENOUGH:
                return
            try:
                document = self._mapper.decode(message)
            except BadMessageError:
                continue
            self._n_messages += 1
            for text, path in list(self._unseen.items()):
                if path.read(document) is not MISSING:
                    del self._unseen[text]
            for name in _names_in(document):
                if len(self._names) < _MOST_NAMES:
                    self._names[name] = None

    @property
    def is_decided(self) -> bool:
        """Whether each field was there, or enough messages had none of it."""
        return not self._unseen or self._n_messages >= ENOUGH

    def error(self) -> ConnectError | None:
        """Return the error about the fields that no message had; None: there is none, or no message at all."""
        if not self._unseen or not self._n_messages:
            return None
        near = {text: difflib.get_close_matches(text, self._names, n=1, cutoff=0.5) for text in self._unseen}
        fields = ", ".join(f"{text!r} (nearest: {found[0]!r})" if found else repr(text) for text, found in near.items())
        shown = list(self._names)[:_SHOWN]
        more = f" and {len(self._names) - len(shown)} more" if len(self._names) > len(shown) else ""
        return ConnectError(
            f"{counted(self._n_messages, 'message')} had no field {fields}; the fields are {', '.join(shown)}{more}.",
            fix="Correct the name in the mapping (--input, --stream, --position, --seq, --time, or the file).",
        )


def _names_in(document: Any, prefix: str = "") -> Iterator[str]:
    """Yield the paths of a message's fields, but not those of the elements of lists inside it."""
    if type(document) is dict:
        for name, value in document.items():
            yield f"{prefix}{name}"
            yield from _names_in(value, f"{prefix}{name}.")
    elif type(document) is list and not prefix:
        yield from map(str, range(len(document)))
