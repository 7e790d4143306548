"""`DoneOffsets`: which messages are done, where a broker keeps one position and a short text, not a mark of each."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable
from typing import Final

from stepwell_client.wire.texts import counted

MOST_CHARACTERS: Final = 4000
"""Of the text: brokers of Kafka keep 4,096 bytes beside an offset, unless they are set otherwise."""

_VERSION: Final = "stepwell1:"


class DoneOffsets:
    """Messages that were delivered, in their order, and those of them that are done.

    Attributes:
        floor: All before it is done.
    """

    def __init__(self, floor: int, text: str = "") -> None:
        """Create it.

        Args:
            floor: What was committed.
            text: What was committed beside it.
        """
        self.floor = floor
        self._open: dict[int, None] = {}  # delivered and not done, in order
        self._done = set(_decoded(floor, text))  # at or above the floor
        self._end = floor  # behind what was delivered

    def __repr__(self) -> str:
        return f"from {self.floor}: {counted(len(self._open), 'open message')}"

    @property
    def n_open(self) -> int:
        """Messages that were delivered and are not done."""
        return len(self._open)

    @property
    def span(self) -> int:
        """Offsets from the first one that is not done to the last one that was delivered."""
        return self._end - self.floor

    def deliver(self, offset: int) -> bool:
        """Note that a message was delivered; return False if it is done."""
        self._end = max(self._end, offset + 1)
        if offset < self.floor or offset in self._done:
            return False
        self._open[offset] = None
        return True

    def finish(self, offsets: Iterable[int]) -> None:
        """Note that messages are done."""
        for offset in offsets:
            if self._open.pop(offset, 0) is None:
                self._done.add(offset)
        floor = next(iter(self._open), self._end)
        if floor > self.floor:
            self.floor = floor
            self._done = {one for one in self._done if one >= floor}

    def text(self) -> str:
        """Return what is to be committed beside the floor: the offsets above it that are done."""
        if not self._done:
            return _VERSION  # which shows that the broker keeps it
        bits = bytearray((max(self._done) - self.floor) // 8 + 1)
        for offset in self._done:
            place = offset - self.floor
            bits[place // 8] |= 1 << place % 8
        return _VERSION + base64.b64encode(zlib.compress(bytes(bits), 9)).decode()


def is_marked(text: str) -> bool:
    """Whether a text is one of `DoneOffsets`."""
    return text.startswith(_VERSION)


def _decoded(floor: int, text: str) -> list[int]:
    if not text.startswith(_VERSION) or text == _VERSION:
        return []
    try:
        bits = zlib.decompress(base64.b64decode(text.removeprefix(_VERSION)))
    except (binascii.Error, zlib.error, ValueError):
        return []  # of someone else
    return [floor + 8 * i + k for i, byte in enumerate(bits) if byte for k in range(8) if byte >> k & 1]
