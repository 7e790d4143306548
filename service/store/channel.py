"""`Channel`: short messages between the workers that share a store; lost when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final, Protocol

from service.background import run_forever
from service.store.ear import Ear
from service.store.link import NoReplyError, NotSentError
from service.store.wire import Wire

_log = logging.getLogger(__name__)
_RECONNECT_S: Final = 0.5
_PATIENCE_S: Final = 5.0  # with a store that says nothing


class Listener(Protocol):
    """Who hears; none of these may raise or wait."""

    def hear(self, topic: str, message: bytes) -> None:
        """Take a message; they come in the order in which the store took them."""

    def lost(self) -> None:
        """See that messages are missed from now on."""

    def back(self) -> None:
        """See that messages are heard again, on all topics."""


class Channel:
    """Publishes on topics and listens to them, over the store's publish and subscribe."""

    def __init__(self, wire: Wire) -> None:
        """Prepare; `start` connects.

        Args:
            wire: The store's connections.
        """
        self._wire = wire
        self._listener: Listener
        self._topics: set[str] = set()
        self._ear: Ear | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, listener: Listener) -> None:
        """Connect; where the store is away, go on trying."""
        self._listener = listener
        first_try = asyncio.Event()
        listening = run_forever(partial(self._listen, first_try), every_s=_RECONNECT_S, name="Listening to messages")
        self._task = asyncio.create_task(listening)
        await first_try.wait()

    async def listen(self, topics: Iterable[str]) -> None:
        """Listen to topics; when this returns, what is published is heard, unless the store is away."""
        names = set(topics)
        self._topics |= names
        if self._ear is not None:
            await self._ear.subscribe(names)

    def leave(self, topics: Iterable[str]) -> None:
        """Listen to topics no more."""
        names = set(topics)
        self._topics -= names
        if self._ear is not None:
            self._ear.unsubscribe(names)

    async def publish(self, topic: str, message: bytes) -> int | None:
        """Send a message.

        Returns:
            How many connections took it, 0 also where the store is away; None in a Cluster, where nobody knows.
        """
        try:
            [taken] = await self._wire.call(("PUBLISH", topic, message))
        except (NotSentError, NoReplyError):
            return 0
        if self._wire.one_stream and isinstance(taken, int):
            return None
        return taken if isinstance(taken, int) else 0

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_ear("closed")

    async def _listen(self, first_try: asyncio.Event) -> None:
        if is_lost := first_try.is_set():  # run again after an error that is not handled here
            self._drop_ear("an unexpected error")
            self._listener.lost()
        while True:
            try:
                self._ear = Ear(await self._wire.open(), self._listener.hear)
                async with asyncio.timeout(self._wire.timeout):
                    await self._ear.subscribe(self._topics)
                if not self._ear.is_cut.is_set():
                    if is_lost:
                        self._listener.back()
                    is_lost = False
                    first_try.set()
                    await self._ear.stay(_PATIENCE_S)
                why = self._ear.cut_by or ""
            except (NotSentError, TimeoutError) as exc:
                why = str(exc) or "no answer in time"
            self._drop_ear(why)
            if not is_lost:
                _log.warning("Messages between workers are missed, connecting again: %s", why)
                self._listener.lost()
            is_lost = True
            first_try.set()
            await asyncio.sleep(_RECONNECT_S)

    def _drop_ear(self, why: str) -> None:
        if self._ear is not None:
            self._ear.cut(why)
            self._ear = None
