"""Code that `/v1/watch` and the server-sent events share: subscriptions, waiting for events, and their documents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from stepwell.addons.watch.commit_events import CommitEvent, PackedTensor
from stepwell.addons.watch.interests import Subscription
from stepwell.addons.watch.messages import HEARTBEAT_S
from stepwell.addons.watch.watcher_queue import EventGap, Subscriber
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell.requests.auth.api_keys import Caller
from stepwell.requests.context import AppContext
from stepwell_client.wire.formats import Format, encode_tensor
from stepwell_client.wire.ids import STREAM_ID, encode_state_id


def parse_subscription(
    model: str, stream: str | None, prefix: str, caller: Caller, context: AppContext
) -> Subscription:
    """Return a caller's subscription to a stream, or to the streams of a model whose ids have a prefix.

    Raises:
        ServiceError: `model_not_found`, or `bad_request`: the stream id or the prefix is not valid.
    """
    name = context.engine.models.get(model).name
    if stream is not None:
        return Subscription(caller.tenant, name, check_stream_id(stream))
    if prefix and not STREAM_ID.fullmatch(prefix):
        raise ServiceError(
            "bad_request",
            f"`prefix` is {prefix[:140]!a}; expected the start of a stream id, of A-Z a-z 0-9 . _ : @ -.",
            fix="Leave `prefix` out to watch all.",
        )
    return Subscription(caller.tenant, name, None, prefix)


async def queued_events(
    watcher: Subscriber, heartbeat_s: float = HEARTBEAT_S, *, pause_s: float = 0.0
) -> AsyncIterator[list[CommitEvent | EventGap]]:
    """Yield what is queued, oldest first, until the watcher is closed and has all; empty after a silence.

    Args:
        watcher: The watcher.
        heartbeat_s: Seconds without events after which an empty list is yielded.
        pause_s: Seconds to let events gather after each list; less if many do.
    """
    is_last = False
    while not is_last:
        events: list[CommitEvent | EventGap] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(heartbeat_s):
                events = await watcher.drain()
                is_last = watcher.closed
        yield events
        if pause_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await watcher.wait_for_many()


def event_document(event: CommitEvent | EventGap, message_format: Format, watcher: Subscriber) -> dict[str, Any]:
    """Return the document of an event or a gap, for a watcher."""
    if isinstance(event, EventGap):
        return {"gap": event.timesteps}
    document: dict[str, Any] = {
        "model": event.model,
        "stream": event.stream,
        "step": event.step,
        "state_id": encode_state_id(event.state_id),
        "outputs": _encode(event.outputs, message_format),
    }
    if event.version:  # an event log may hold events of an earlier release of the service, without it
        document["version"] = event.version
    if watcher.inputs:
        document["inputs"] = _encode(event.inputs, message_format)
    if watcher.candidate and event.candidate is not None:
        version, outputs = event.candidate
        document["candidate"] = {"version": version, "outputs": _encode(outputs, message_format)}
    return document


def _encode(tensors: Mapping[str, PackedTensor], message_format: Format) -> dict[str, Any]:
    return {name: encode_tensor(tensor.array(), message_format) for name, tensor in tensors.items()}
