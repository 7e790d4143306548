"""Exchanges: generators that yield requests and receive replies, and the functions that run them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

from stepwell_client.protocol.decoding import NoReply, RawReply
from stepwell_client.protocol.requests import ClientRequest

T = TypeVar("T")

Exchange = Generator[ClientRequest, RawReply | NoReply, T]
Send = Callable[[ClientRequest], Awaitable[RawReply | NoReply]]


def drive(exchange: Exchange[T], send: Callable[[ClientRequest], RawReply | NoReply]) -> T:
    """Run an exchange to its end and return its result; `send` returns a `NoReply` for a lost connection."""
    try:
        request = next(exchange)
        while True:
            request = exchange.send(send(request))
    except StopIteration as end:
        result: T = end.value
        return result


async def drive_async(exchange: Exchange[T], send: Send) -> T:
    """Do what `drive` does, with an asynchronous `send`."""
    try:
        request = next(exchange)
        while True:
            request = exchange.send(await send(request))
    except StopIteration as end:
        result: T = end.value
        return result
