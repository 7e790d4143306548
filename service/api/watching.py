"""What the ways to watch have in common: who follows what, and how news are written."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from service.api.auth import Caller
from service.api.context import Context
from service.engine.audience import Want
from service.engine.events import Event
from service.engine.watcher import Gap, Watcher
from service.errors import ServiceError
from service.wire import Format, check_stream_id, encode_state_id
from service.wire.answers import tensor
from service.wire.names import STREAM_ID

BEAT_S: Final = 10.0
"""Seconds after which one who watches is looked after, where there are no news."""


def want_of(model: str, stream: str | None, prefix: str, caller: Caller, context: Context) -> Want:
    """Return what a caller asks to follow.

    Raises:
        ServiceError: `model_not_found`, or `bad_request`: no stream can be named so.
    """
    name = context.engine.shelf.get(model).name
    if stream is not None:
        return Want(caller.tenant, name, check_stream_id(stream))
    if prefix and not STREAM_ID.fullmatch(prefix):
        raise ServiceError(
            "bad_request",
            f"`prefix` is {prefix[:140]!a}; expected the beginning of a stream id, of A-Z a-z 0-9 . _ : @ -.",
            fix="Leave `prefix` out to watch all.",
        )
    return Want(caller.tenant, name, None, prefix)


async def news_of(watcher: Watcher, within_s: float = BEAT_S) -> list[Event | Gap]:
    """Wait for news and return them, oldest first; none after so many seconds without."""
    try:
        async with asyncio.timeout(within_s):
            return await watcher.take()
    except TimeoutError:
        return []


def document_of(news: Event | Gap, form: Format, *, inputs: bool) -> dict[str, Any]:
    """Return an event, or a gap, as what is sent."""
    if isinstance(news, Gap):
        return {"gap": news.timesteps}
    document: dict[str, Any] = {
        "model": news.model,
        "stream": news.stream,
        "step": news.step,
        "state_id": encode_state_id(news.state_id),
        "outputs": {name: tensor(packed.array(), form) for name, packed in news.outputs.items()},
    }
    if inputs:
        document["inputs"] = {name: tensor(packed.array(), form) for name, packed in news.inputs.items()}
    return document
