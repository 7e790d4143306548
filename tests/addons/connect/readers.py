"""Readers of brokers that lose what they own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from stepwell.addons.connect.brokers.interface import MessageReader
from stepwell.addons.connect.messages import BrokerMessage, BrokerUnavailableError
from tests.addons.connect.connectors import WAIT_S, wait_for
from tests.faults.proxy import Proxy


async def until_lost(reader: MessageReader) -> None:
    """Wait until another reader owns what a reader has read."""
    loop = asyncio.get_running_loop()

    def is_lost() -> bool:
        return not asyncio.run_coroutine_threadsafe(reader.is_current(), loop).result()

    await asyncio.to_thread(wait_for, is_lost)


async def next_messages(reader: MessageReader, limit: int) -> Sequence[BrokerMessage]:
    """Return the next messages of a reader, once there are any."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await reader.poll(limit)):
            pass
    return found


async def first_messages_around_a_loss(reader: MessageReader, proxy: Proxy, add: Callable[[], None]) -> list[bytes]:
    """Lose the connection of a reader with a poll that is open and messages that wait.

    Args:
        reader: Connects through the proxy; it is opened and closed here.
        proxy: Loses the connection.
        add: Adds 20 messages.

    Returns:
        The first message before the loss, and the first one after it.
    """
    await reader.open()
    await asyncio.to_thread(add)
    first = await next_messages(reader, 5)
    await asyncio.to_thread(wait_for, lambda: reader.lag() == 20 - len(first))
    proxy.reset_all()
    with pytest.raises(BrokerUnavailableError, match=r"the connection to .* was lost"):  # no other one has taken over
        await until_lost(reader)
    with pytest.raises(BrokerUnavailableError):
        await reader.poll(5)
    await reader.close()
    await reader.open()
    again = await next_messages(reader, 1)
    await reader.close()
    return [first[0].body, again[0].body]
