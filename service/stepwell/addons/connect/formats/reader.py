"""`SchemaReader`: a reader whose messages are returned once the registry has given their schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwell.addons.connect.brokers.interface import MessageReader
from stepwell.addons.connect.formats.bodies import schema_number
from stepwell.addons.connect.formats.registry import SchemaRegistry
from stepwell.addons.connect.messages import BrokerMessage, MessageColumns

_DATA = b"data"


class SchemaReader:
    """Reads from another reader. A registry that is away is waited for, as a broker is."""

    def __init__(self, reader: MessageReader, registry: SchemaRegistry) -> None:
        self._reader: Any = reader
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def open(self) -> None:
        """Open both."""
        await self._registry.open()
        await self._reader.open()

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the next messages, and see that their schemas are known."""
        found: Sequence[BrokerMessage] = await self._reader.poll(limit)
        if found:
            bodies = found.bodies if isinstance(found, MessageColumns) else map(_body, found)
            numbers = {schema_number(body) for body in bodies if body is not None}
            await self._registry.fetch(number for number in sorted(filter(None, numbers)))
        return found

    async def close(self) -> None:
        """Close both."""
        await self._registry.close()
        await self._reader.close()


def _body(message: BrokerMessage) -> bytes:
    return message.body if message.fields is None else message.fields.get(_DATA, b"")
