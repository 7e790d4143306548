"""`ServiceFeed`: messages with columns over one WebSocket of a service, each sent until there is a reply."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx2
from websockets.exceptions import InvalidStatus, WebSocketException

from stepwell.addons.connect.messages import ConnectError
from stepwell_client import http_transport
from stepwell_client.errors import ClientError
from stepwell_client.feed import ClientFeedConnection
from stepwell_client.protocol import decoding
from stepwell_client.protocol.decoding import BulkReply, NoReply, RawReply
from stepwell_client.protocol.requests import ATTEMPT_S
from stepwell_client.protocol.retry import RetryPolicy
from stepwell_client.websockets import rejected_handshake
from stepwell_client.wire.formats import MSGPACK, encode
from stepwell_export.runtime.manifest import InputSpec

_REPORT_EVERY_S: Final = 30.0
_FIXES: Final = {
    "unauthenticated": "Give an API key with --key, STEPWELL_KEY or key_env.",
    "forbidden": "Use a key with the scopes step and read.",
    "model_not_found": "Name a model that GET /v1/models lists.",
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a connector needs of a model and its service.

    Attributes:
        name: The model's name.
        inputs: The declared inputs.
        max_chunk_steps: The service's limit for the timesteps of a chunk.
        max_body_bytes: The service's limit for the bytes of a message.
        every: The time from one timestep to the next that the model was trained with; None: it is not known.
    """

    name: str
    inputs: list[InputSpec]
    max_chunk_steps: int
    max_body_bytes: int
    every: str | None = None


class ServiceFeed:
    """A client of one model that never gives up: a service that is away or overloaded is waited for.

    Every message must carry `source`, so that sending it again applies nothing twice.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        model: str,
        version: int | None,
        *,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a client, which is not connected yet.

        Args:
            url: The service's address.
            key: The API key, or None.
            model: The model's name.
            version: Its version; None: the default one.
            report: Called with a sentence when the service does not respond.
            clock: Returns the time in seconds.

        Raises:
            ClientError: `bad_url`.
        """
        self.n_retries = 0
        self._http = httpx2.AsyncClient(**http_transport.options(url, key))
        self._path = f"/v1/models/{quote(model, safe='')}"
        self._query = "" if version is None else f"?version={version}"
        address = http_transport.feed_address(self._http, f"{self._path}/feed{self._query}")
        self._address = address
        self._numbers = itertools.count(1)
        self._opening = asyncio.Lock()
        self._connection: ClientFeedConnection | None = None
        self._report = report
        self._clock = clock
        self._reported_at = -math.inf

    async def describe(self) -> ModelFacts:
        """Return the model's description, once the service responds.

        Raises:
            ConnectError: The service has no such model, or rejects the key.
        """
        model = await self.get(self._path + self._query)
        limits = (await self.get("/v1/info"))["limits"]
        return ModelFacts(
            model["name"],
            [InputSpec.model_validate(one) for one in model["inputs"]],
            limits["max_chunk_steps"],
            limits["max_body_bytes"],
            model.get("every"),
        )

    async def position(self, stream: str, source: str) -> int:
        """Return the position that a stream has in a source; -1: none.

        Raises:
            ConnectError: The service rejects the request, and would again.
        """
        try:
            status = await self._get(f"{self._path}/streams/{quote(stream, safe='')}{self._query}")
        except ClientError as error:
            if error.code == "stream_not_found":
                return -1
            raise ConnectError(f"Stream {stream!r}: {error.problem}", fix=error.fix) from error
        return next((one["at"] for one in status.get("sources", ()) if one["id"] == source), -1)

    async def send(self, document: Mapping[str, Any]) -> BulkReply:
        """Send a message with columns until there is a reply, and return it.

        Raises:
            ClientError: The whole message was rejected, and would be again.
        """
        number = next(self._numbers)
        message = encode({"id": number, **document}, MSGPACK)
        policy = self._policy()
        while True:
            reply = await self._exchange(number, message)
            error = decoding.error_in(reply, mutates=True)
            if error is None:
                assert isinstance(reply, RawReply)
                return decoding.bulk_reply(reply, len(document["streams"]))
            await self.pause(policy, error)

    async def pause(self, policy: RetryPolicy, error: ClientError) -> None:
        """Wait before the next attempt.

        Raises:
            ClientError: The error is final.
        """
        seconds = policy.pause(error)
        if seconds is None:
            raise error
        self.n_retries += 1
        now = self._clock()
        if policy.failures > 1 and now - self._reported_at > _REPORT_EVERY_S:  # one lost connection is nothing
            self._reported_at = now
            self._report(f"waiting for the service: {error.problem}")
        await asyncio.sleep(seconds)

    def new_policy(self) -> RetryPolicy:
        """Return the retries of one exchange: as many as are needed."""
        return self._policy()

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()
        await self._http.aclose()

    def _policy(self) -> RetryPolicy:
        return RetryPolicy(math.inf, self._clock, random.random)

    async def _exchange(self, number: int, message: bytes) -> RawReply | NoReply:
        sent, connection = False, None
        try:
            async with asyncio.timeout(ATTEMPT_S):
                connection = await self._open()
                sent = True
                return await connection.send_and_wait(number, message)
        except InvalidStatus as exc:
            return rejected_handshake(exc)
        except (OSError, TimeoutError, WebSocketException) as exc:
            if isinstance(exc, TimeoutError) and connection is not None:
                await connection.close()  # it may be half open
            return http_transport.no_reply(exc, self._address.url, sent=sent)

    async def _open(self) -> ClientFeedConnection:
        async with self._opening:
            if self._connection is None or self._connection.ended:
                self._connection = await ClientFeedConnection.open(self._address)
            return self._connection

    async def get(self, path: str) -> Any:
        """Return the body of a GET, once the service responds.

        Raises:
            ConnectError: The service rejects the request, and would again.
        """
        try:
            return await self._get(path)
        except ClientError as final:
            raise ConnectError(final.problem, fix=_FIXES.get(final.code, final.fix)) from final

    async def _get(self, path: str) -> Any:
        """Return the body of a GET, once the service responds.

        Raises:
            ClientError: The service rejects the request, and would again.
        """
        policy = self._policy()
        while True:
            reply: RawReply | NoReply
            try:
                reply = http_transport.reply(await self._http.get(path, timeout=ATTEMPT_S))
            except httpx2.RequestError as exc:
                reply = http_transport.no_reply(exc, self._http.base_url)
            error = decoding.error_in(reply, mutates=False)
            if error is None:
                assert isinstance(reply, RawReply)
                return decoding.read(reply, dict)
            await self.pause(policy, error)
