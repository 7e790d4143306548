"""A minimal HTTP/1.1 client: a full-featured one uses five times the CPU time of the service under test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

TIMEOUT_S = 15.0


class NoAnswerError(Exception):
    """The connection failed before the response arrived; the request may or may not have been applied."""


class Http:
    """Keep-alive connections to services on loopback."""

    def __init__(self) -> None:
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def request(
        self,
        method: str,
        port: int,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> tuple[int, Any]:
        """Send one request and return its status and JSON document.

        Raises:
            NoAnswerError: Connecting failed, the connection broke, or no response arrived in time.
        """
        try:
            async with asyncio.timeout(timeout):
                pool = self._idle.setdefault(port, [])
                reader, writer = pool.pop() if pool else await asyncio.open_connection("127.0.0.1", port)
                try:
                    data = b"" if body is None else msgspec.json.encode(body)
                    head = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(data)}"]
                    head += [f"{name}: {value}" for name, value in (headers or {}).items()]
                    writer.write("\r\n".join([*head, "", ""]).encode() + data)
                    answer = await _read_response(reader)
                except BaseException:
                    writer.close()
                    raise
                pool.append((reader, writer))
                return answer
        except (OSError, EOFError, TimeoutError) as exc:
            raise NoAnswerError from exc

    def close(self) -> None:
        """Close every connection."""
        for pool in self._idle.values():
            for _, writer in pool:
                writer.close()


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, Any]:
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    length = next((int(h.partition(b":")[2]) for h in headers if h.lower().startswith(b"content-length:")), 0)
    body = await reader.readexactly(length)
    return int(status.split(b" ")[1]), msgspec.json.decode(body) if body else None
