"""`NatsLease` and `DoneEntry`: who reads a durable consumer, and what is done of it; both in key-value buckets."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import nats
from nats.js import errors as js_errors

from stepwell.addons.connect.messages import ConnectError

LEASE_S: Final = 10.0
_BUCKET: Final = "stepwell-connect"
_DONE_BUCKET: Final = "stepwell-connect-done"


class NatsLease:
    """An entry of a key-value bucket, which removes it if it is not updated."""

    errors: tuple[type[Exception], ...] = (nats.errors.Error, OSError, TimeoutError)

    def __init__(self, js: Any, key: str) -> None:
        self._js = js
        self._key = key
        self._bucket: Any = None
        self._revision: int | None = None  # None: this connector has not put it
        self._updating = asyncio.Lock()

    async def open(self) -> None:
        """Find the bucket, or create it.

        Raises:
            ConnectError: The bucket keeps its entries longer than a lease lasts, so nobody would take over from a
                connector that was killed.
        """
        try:
            self._bucket = await self._js.key_value(_BUCKET)
        except js_errors.NotFoundError:
            self._bucket = await self._js.create_key_value(bucket=_BUCKET, ttl=LEASE_S)
            return
        ttl = (await self._bucket.status()).ttl
        if not ttl or ttl > LEASE_S:
            raise ConnectError(
                f"The key-value bucket {_BUCKET!r} keeps entries for {f'{ttl:g} s' if ttl else 'ever'}; a lease needs "
                f"{LEASE_S:g} s.",
                fix="Delete the bucket: a connector creates it as it has to be.",
            )

    async def put(self, holder: str, lease_ms: int, *, only_renew: bool, timeout_s: float) -> str:
        """Implement `LeaseEntry`; the name of another holder is not read."""
        async with self._updating:
            try:
                if self._revision is not None and lease_ms == 0:
                    revision, self._revision = self._revision, None
                    await self._bucket.delete(self._key, last=revision)
                elif self._revision is not None:
                    self._revision = await self._bucket.update(self._key, holder.encode(), last=self._revision)
                elif not only_renew:
                    self._revision = await self._bucket.create(self._key, holder.encode())
            except js_errors.KeyWrongLastSequenceError:
                self._revision = None
        return "" if self._revision is None else holder


class DoneEntry:
    """An entry of a key-value bucket with the messages of a durable consumer that are done behind an open one."""

    def __init__(self, js: Any, key: str) -> None:
        self._js = js
        self._key = key
        self._bucket: Any = None

    async def get(self) -> bytes:
        """Return the entry; nothing if there is none. The bucket is created where it is not there."""
        try:
            self._bucket = await self._js.key_value(_DONE_BUCKET)
        except js_errors.NotFoundError:
            self._bucket = await self._js.create_key_value(bucket=_DONE_BUCKET)
        try:
            return bytes((await self._bucket.get(self._key)).value or b"")
        except js_errors.KeyNotFoundError:
            return b""

    async def put(self, value: bytes) -> None:
        """Replace the entry."""
        await self._bucket.put(self._key, value)
