"""`ShardChannels`: channels whose messages stay on one server of several, and `ShardListener`, which receives them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol


class ShardListener(Protocol):
    """Receives the messages of shard channels. No method may raise or block."""

    def on_shard_message(self, channel: str, message: bytes) -> None:
        """Handle a message; those of one channel arrive in order, as long as its slot stays on its node."""

    def on_shard_subscribed(self, channel: str) -> None:
        """Handle that a channel is subscribed to: all further messages on its present node arrive."""

    def on_shard_moved(self, channel: str) -> None:
        """Handle that a channel's slot has moved, after its last message on the former node."""

    def on_shard_lost(self, channels: Collection[str]) -> None:
        """Handle that the connection for these channels was lost: messages on them may have been lost with it."""


class ShardChannels(Protocol):
    """Subscriptions to channels whose messages stay on the server that has the key of the same slot."""

    async def start(self) -> None:
        """Start to keep the subscriptions; no connection is opened before there is one."""

    async def close(self) -> None:
        """Close every connection."""

    def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels, as soon as their servers reply; `on_shard_subscribed` is called for each."""

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels."""

    def is_subscribed(self, channel: str) -> bool:
        """Return whether all further messages of a channel arrive."""
