"""A store whose URL is in a file, such as a mounted secret: `redis+file:///run/secrets/redis`."""

from __future__ import annotations

from pathlib import Path

from stepwell import extend


def open_transport(url: str, *, timeout: float) -> extend.RedisTransport:
    file = Path(url.removeprefix("redis+file://"))
    return extend.open_transport(file.read_text().strip(), timeout=timeout)
