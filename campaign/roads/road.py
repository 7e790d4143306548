"""`Road`: a broker with an incoming and an outgoing place, as the campaign fills and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec


@dataclass(frozen=True, slots=True)
class Sent:
    """A message to publish.

    Attributes:
        stream: The stream's id: the key, a segment of the topic, or nothing that the broker uses.
        body: The bytes of the message.
    """

    stream: str
    body: bytes


class Origin(msgspec.Struct, frozen=True):
    """Where a timestep came from: a source and a position in it."""

    id: str
    at: int


class Prediction(msgspec.Struct, frozen=True):
    """A message of the outgoing place.

    Attributes:
        stream: The stream's id.
        step: The step that it is the prediction of.
        outputs: By output, its values.
        source: Where the timestep came from.
    """

    stream: str
    step: int
    outputs: dict[str, list[int]]
    source: Origin

    @property
    def y(self) -> int:
        """The only number of the model's only output."""
        return self.outputs["y"][0]


class Road(Protocol):
    """A broker with the places `in`, `out` and `dead`. All reading is incremental and in the broker's order.

    Attributes:
        name: Its name in the results.
        may_double: Whether docs/connecting.md allows a prediction to be there twice after a kill.
        needs_reader_first: Whether messages are kept only once a connector has subscribed.
        shares_work: Whether two connectors of a group read at the same time.
        accepts_large: Whether the broker accepts messages of 10 MB.
    """

    name: str
    may_double: bool
    needs_reader_first: bool
    shares_work: bool
    accepts_large: bool

    def flags(self, *, alone: bool) -> list[str]:
        """Return the connector's words: what it reads, and where it writes.

        Args:
            alone: It is the only one of its group.
        """

    def partition_of(self, stream: str) -> int:
        """Return the partition with the messages of a stream; 0 where a broker has none."""

    async def publish(self, messages: Sequence[Sent]) -> None:
        """Publish messages, in order, and wait until the broker has confirmed them."""

    async def read(self, place: str) -> list[bytes]:
        """Return the messages that are new in `out` or `dead`; none if there are none within about half a second."""


OpenRoad = Callable[[Path], AbstractAsyncContextManager[Road]]
"""Starts a broker in a folder, and stops it at the end of the block."""

decode_prediction = msgspec.json.Decoder(Prediction).decode


def read_dead_letters(bodies: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return dead letters as documents."""
    return [msgspec.json.decode(body) for body in bodies]
