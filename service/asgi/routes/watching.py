"""What the ways to watch have in common: who follows what, and how news are written."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from service.codec import Format
from service.codec.responses import encode_tensor
from service.engine.watch.commit_events import CommitEvent
from service.engine.watch.interests import Subscription
from service.engine.watch.subscriber import EventGap, Subscriber
from service.errors import ServiceError
from service.ids import STREAM_ID, check_stream_id, encode_state_id
from service.requests.api_keys import Caller
from service.requests.context import AppContext

HEARTBEAT_S: Final = 10.0
"""Seconds after which one who watches is looked after, where there are no news."""


def parse_subscription(
    model: str, stream: str | None, prefix: str, caller: Caller, context: AppContext
) -> Subscription:
    """Return what a caller asks to follow.

    Raises:
        ServiceError: `model_not_found`, or `bad_request`: no stream can be named so.
    """
    name = context.engine.models.get(model).name
    if stream is not None:
        return Subscription(caller.tenant, name, check_stream_id(stream))
    if prefix and not STREAM_ID.fullmatch(prefix):
        raise ServiceError(
            "bad_request",
            f"`prefix` is {prefix[:140]!a}; expected the beginning of a stream id, of A-Z a-z 0-9 . _ : @ -.",
            fix="Leave `prefix` out to watch all.",
        )
    return Subscription(caller.tenant, name, None, prefix)


async def wait_for_events(watcher: Subscriber, within_s: float = HEARTBEAT_S) -> list[CommitEvent | EventGap]:
    """Wait for news and return them, oldest first; none after so many seconds without."""
    try:
        async with asyncio.timeout(within_s):
            return await watcher.drain()
    except TimeoutError:
        return []


def event_document(news: CommitEvent | EventGap, form: Format, *, inputs: bool) -> dict[str, Any]:
    """Return an event, or a gap, as what is sent."""
    if isinstance(news, EventGap):
        return {"gap": news.timesteps}
    document: dict[str, Any] = {
        "model": news.model,
        "stream": news.stream,
        "step": news.step,
        "state_id": encode_state_id(news.state_id),
        "outputs": {name: encode_tensor(packed.array(), form) for name, packed in news.outputs.items()},
    }
    if inputs:
        document["inputs"] = {name: encode_tensor(packed.array(), form) for name, packed in news.inputs.items()}
    return document
