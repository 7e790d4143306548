"""`RedisStreamWriter`: each prediction is appended to a Redis stream once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from stepwell.addons.connect.brokers.redis_connection import connect, redis_errors, tagged
from stepwell.addons.connect.messages import OutMessage, Undeliverable
from stepwell.addons.connect.urls import BrokerUrl

_ENTRIES_PER_CALL: Final = 500
_POSITION_DIGITS: Final = 19
_encode_json = msgspec.json.Encoder().encode

# Positions have equally many digits, so they compare as texts: numbers of Lua are exact to 2^53 only.
_WRITE = """
for _, entry in ipairs(cmsgpack.unpack(ARGV[1])) do
  local name, at = entry[1], entry[2]
  if at == '' or (redis.call('HGET', KEYS[2], name) or '') < at then
    redis.call('XADD', KEYS[1], '*', unpack(entry[3]))
    if at ~= '' then redis.call('HSET', KEYS[2], name, at) end
  end
end
"""


class RedisStreamWriter:
    """Appends entries to a stream, each once.

    A script compares the position of a timestep with the newest one of its stream and source that was written. These
    are in the hash `{NAME}:stepwell:written`.
    """

    def __init__(self, url: BrokerUrl) -> None:
        """Use `redis_streams.open_writer`."""
        self._url = url
        self._keys = [url.options["stream"], f"{tagged(url.options['stream'])}:stepwell:written"]
        self._client: Any = None  # redis-py's types allow texts where these are bytes

    async def open(self) -> None:
        """Connect."""
        self._client = await connect(self._url)

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Append the entries that were not appended yet; a stream takes all."""
        assert self._client is not None
        script = self._client.register_script(_WRITE)
        with redis_errors(self._url):
            for start in range(0, len(messages), _ENTRIES_PER_CALL):
                part = messages[start : start + _ENTRIES_PER_CALL]
                await script(self._keys, [msgspec.msgpack.encode([_entry(one) for one in part])])
        return ()

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._client.aclose()
            self._client = None


def _entry(message: OutMessage) -> tuple[str, str, list[str]]:
    fields: list[str] = []
    for name, value in message.document.items():
        if value is not None:
            fields += (name, value if isinstance(value, str) else _encode_json(value).decode())
    at = "" if message.at is None else f"{message.at:0{_POSITION_DIGITS}d}"
    return f"{message.key}|{message.source}", at, fields
