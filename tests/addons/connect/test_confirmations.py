"""`all_confirmed`: how long a writer waits for a broker that confirms slowly, or no more."""

from __future__ import annotations

import asyncio
import gc

import pytest

from stepwell.addons.connect.brokers.confirmations import all_confirmed


def confirmed_every(seconds: float, n: int) -> list[asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    confirmations = [loop.create_future() for _ in range(n)]
    for i, one in enumerate(confirmations, 1):
        loop.call_later(seconds * i, one.set_result, None)
    return confirmations


async def test_a_broker_that_confirms_slowly_is_waited_for_longer_than_for_one_message() -> None:
    confirmations = confirmed_every(0.3, 5)

    await all_confirmed(confirmations, 0.8)

    assert all(one.done() for one in confirmations)


async def test_a_broker_that_confirms_nothing_more_is_reported() -> None:
    confirmations = [*confirmed_every(0.01, 2), asyncio.get_running_loop().create_future()]

    with pytest.raises(TimeoutError, match="no message was confirmed"):
        await all_confirmed(confirmations, 0.2)

    assert confirmations[-1].cancelled()


async def test_the_error_of_a_message_is_raised_at_once() -> None:
    confirmations = [asyncio.get_running_loop().create_future() for _ in range(3)]
    confirmations[1].set_exception(ConnectionError("lost"))

    with pytest.raises(ConnectionError, match="lost"):
        await all_confirmed(confirmations, 60)

    assert confirmations[0].cancelled()


async def test_only_one_of_many_errors_is_reported() -> None:
    reports: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context["message"]))

    async def fail() -> None:
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError, match="lost"):
        await all_confirmed([asyncio.ensure_future(fail()) for _ in range(4)], 60)
    gc.collect()

    assert reports == []


async def test_an_error_of_one_message_alone_stops_no_other_one() -> None:
    """It stays in the confirmation of its message."""
    confirmations = confirmed_every(0.01, 3)
    confirmations.insert(1, asyncio.get_running_loop().create_future())
    confirmations[1].set_exception(LookupError("no such queue"))

    await all_confirmed(confirmations, 60, but=(LookupError,))

    assert [one.exception() is None for one in confirmations] == [True, False, True, True]
