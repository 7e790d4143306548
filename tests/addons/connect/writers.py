"""Writers of brokers and messages that some of them cannot write."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.addons.connect.messages import OutMessage, Undeliverable
from stepwell.addons.connect.urls import BrokerUrl


def out_message(stream: str, n: int = 0, padding: str = "") -> OutMessage:
    document = {
        "stream": stream,
        "step": n,
        "outputs": {"y": [n]},
        "source": {"id": "log", "at": n},
        "padding": padding,
    }
    return OutMessage(stream, "log", n, document)


async def write(url: str, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
    """Write messages, and return those that cannot be written."""
    writer = BrokerUrl.parse(url).writer("json")
    await writer.open()
    try:
        return await writer.write(messages)
    finally:
        await writer.close()
