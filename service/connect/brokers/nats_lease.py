"""`NatsLease`: which connector of a durable consumer reads; the others stand by."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import nats
from nats.js import errors as js_errors

from service.connect.messages import ConnectError

_BUCKET: Final = "stepwell-connect"
_LEASE_S: Final = 10.0
_RENEW_EVERY_S: Final = 2.0


class NatsLease:
    """An entry of a key-value bucket that one connector renews and that vanishes without it."""

    def __init__(self, js: Any, key: str, token: bytes) -> None:
        self._js = js
        self._key = key
        self._token = token
        self._bucket: Any = None
        self._revision: int | None = None  # None: another one has it
        self._renewing: asyncio.Task[None] | None = None
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
            self._bucket = await self._js.create_key_value(bucket=_BUCKET, ttl=_LEASE_S)
            return
        ttl = (await self._bucket.status()).ttl
        if not ttl or ttl > _LEASE_S:
            raise ConnectError(
                f"The key-value bucket {_BUCKET!r} keeps entries for {f'{ttl:g} s' if ttl else 'ever'}; a lease needs "
                f"{_LEASE_S:g} s.",
                fix="Delete the bucket: a connector creates it as it has to be.",
            )

    @property
    def is_held(self) -> bool:
        """Whether this connector had the lease at the last renewal."""
        return self._revision is not None

    async def acquire(self) -> bool:
        """Return whether this connector has the lease now."""
        if self._revision is not None:
            return True
        try:
            self._revision = await self._bucket.create(self._key, self._token)
        except js_errors.KeyWrongLastSequenceError:
            return False
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew_periodically(), name="connect-lease")
        return True

    async def renew(self) -> bool:
        """Return whether this connector still has the lease, and has it for longer now."""
        async with self._updating:
            if self._revision is None:
                return False
            try:
                self._revision = await self._bucket.update(self._key, self._token, last=self._revision)
            except js_errors.KeyWrongLastSequenceError:
                self._revision = None
            return self._revision is not None

    async def close(self) -> None:
        """Give the lease back."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self._revision is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await self._bucket.delete(self._key, last=self._revision)

    async def _renew_periodically(self) -> None:
        while self._revision is not None:
            await asyncio.sleep(_RENEW_EVERY_S)
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):  # the poll finds out
                await self.renew()
