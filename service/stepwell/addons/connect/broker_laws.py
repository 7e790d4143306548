"""`BrokerLaws`: the laws of `MessageReader` and `MessageWriter`, as tests that the tests of every broker inherit.

Needs pytest. For a broker of your own:

    from stepwell import testing

    class TestMine(testing.BrokerLaws):
        @pytest.fixture
        def url(self, tmp_path):
            return f"spool://{tmp_path}"
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from stepwell.addons.connect.brokers.interface import MessageReader, ReaderOptions
from stepwell.addons.connect.messages import BrokerMessage, OutMessage
from stepwell.addons.connect.urls import BrokerUrl

_WAIT_S = 60.0


class BrokerLaws:
    """Inherit from it, and give the fixture `url`: an empty topic, stream, queue or file that can be written and read.

    Attributes:
        acknowledges: Whether the broker keeps what was acknowledged; if not, the service's positions are all there is.
    """

    acknowledges = True

    @pytest.fixture
    def url(self) -> str:
        """Return the URL of a place with nothing in it."""
        raise NotImplementedError

    def test_what_is_written_is_read_in_its_order_with_positions_that_grow(self, url: str) -> None:
        """Positions are there if the broker is registered with them."""

        async def law() -> None:
            await _subscribe(url)
            await _write(url, range(20))
            found = await _read_once(url, 20)

            assert [_number(message) for message in found] == list(range(20))
            places = [message.at for message in found if message.at is not None]
            assert places == sorted(set(places))
            assert len(places) == (20 if BrokerUrl.parse(url).broker.has_positions else 0)

        asyncio.run(law())

    def test_what_was_not_acknowledged_is_read_again_before_what_is_newer(self, url: str) -> None:
        """What was acknowledged is not read again."""

        async def law() -> None:
            await _subscribe(url)
            await _write(url, range(10))
            reader = BrokerUrl.parse(url).reader(ReaderOptions())
            await reader.open()
            first = await _next(reader, 4)
            await reader.acknowledge(first)
            open_ones = await _next(reader, 3)
            await reader.close()
            await _write(url, range(10, 12))
            await reader.open()
            again = [_number(message) for message in await _next(reader, 12 - len(first) * self.acknowledges)]
            await reader.close()

            begins = len(first) if self.acknowledges else 0
            assert open_ones
            assert again == list(range(begins, 12)), f"read again, of 0 to 11 from {begins} on: {again}"

        asyncio.run(law())

    def test_messages_may_be_acknowledged_in_any_order(self, url: str) -> None:
        """Those that stay open are read again in their order, before what is newer."""

        async def law() -> None:
            await _subscribe(url)
            await _write(url, range(10))
            reader: Any = BrokerUrl.parse(url).reader(ReaderOptions(most_open=100))
            if not hasattr(reader, "acknowledge_some"):
                pytest.skip("this reader keeps no single messages open, so it has no --order and no --every")
            await reader.open()
            before = reader.generation
            found = list(await _next(reader, 6))
            generation = reader.generation
            await reader.acknowledge_some([one for one in found if _number(one) in (1, 3, 4)])
            found += await _next(reader, 10 - len(found))
            await reader.acknowledge_some([one for one in found if _number(one) == 8])
            await reader.settle(found)
            await reader.close()
            await _write(url, range(10, 12))
            await reader.open()
            first = await _next(reader, 1)
            is_marked = self.acknowledges and not reader.was_settled(first[0])
            open_ones = [n for n in range(12) if not is_marked or n not in (1, 3, 4, 8)]
            again = [_number(message) for message in [*first, *await _next(reader, len(open_ones) - 1)]]
            grown = reader.generation
            await reader.close()

            assert again == open_ones
            assert before <= generation < grown, "what is open is read again in each generation"

        asyncio.run(law())

    def test_two_readers_never_hold_one_message(self, url: str) -> None:
        """The second one gets what the first one has not acknowledged, once that one is closed."""
        if not self.acknowledges:
            pytest.skip("the readers of such a place do not exclude each other: the positions in the service do")

        async def law() -> None:
            await _subscribe(url)
            await _write(url, range(10))
            first, second = (BrokerUrl.parse(url).reader(ReaderOptions()) for _ in "12")
            await first.open()
            held = {_number(message) for message in await _next(first, 3)}
            await second.open()
            others = [_number(message) for _ in range(4) for message in await second.poll(10)]

            assert not (held & set(others)) or not await first.is_current()
            await first.close()
            taken_over = set(others)
            async with asyncio.timeout(_WAIT_S):
                while not held <= taken_over:
                    taken_over |= {_number(message) for message in await second.poll(10)}
            await second.close()

        asyncio.run(law())


async def _subscribe(url: str) -> None:
    """Open a reader once: some brokers keep messages from the first reader on."""
    reader = BrokerUrl.parse(url).reader(ReaderOptions())
    await reader.open()
    await reader.poll(1)
    await reader.close()


async def _write(url: str, numbers: Sequence[int]) -> None:
    writer = BrokerUrl.parse(url).writer("json")
    await writer.open()
    try:
        documents = [
            {"stream": "s", "n": n, "step": n + 1, "outputs": {}, "source": {"id": "log", "at": n}} for n in numbers
        ]
        assert not await writer.write(
            [OutMessage("s", "log", n, one) for n, one in zip(numbers, documents, strict=True)]
        )
    finally:
        await writer.close()


async def _next(reader: MessageReader, limit: int) -> list[BrokerMessage]:
    """Return the next messages: as many as that, in as many polls as it takes."""
    found: list[BrokerMessage] = []
    async with asyncio.timeout(_WAIT_S):
        while len(found) < limit:
            found += await reader.poll(limit - len(found))
    return found


async def _read_once(url: str, n_messages: int) -> list[BrokerMessage]:
    """Return what a reader that ends returns, up to its end."""
    reader = BrokerUrl.parse(url).reader(ReaderOptions(once=True))
    await reader.open()
    found: list[BrokerMessage] = []
    async with asyncio.timeout(_WAIT_S):
        while (polled := await reader.poll(7)) or not reader.is_done:
            if polled:
                found += polled
                await reader.acknowledge(polled)
    await reader.close()
    assert len(found) == n_messages
    return found


def _number(message: BrokerMessage) -> int:
    return int(json.loads(message.body)["n"] if message.fields is None else message.fields[b"n"])
