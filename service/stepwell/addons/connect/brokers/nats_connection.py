"""`NatsConnection`: one connection to a NATS server, with its login and the errors that it reports."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

import nats
from nats.errors import AuthorizationError
from nats.js import errors as js_errors

from stepwell.addons.connect.login import tls_refusal
from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BrokerUnavailableError,
    ConnectError,
    LoginRefusedError,
)
from stepwell.addons.connect.urls import BrokerUrl

TIMEOUT_S: Final = 10.0
"""Seconds within which the server has to respond."""

_PORT: Final = 4222
_RETRY_S: Final = 0.2
_HANDSHAKE_S: Final = 5.0
_ALERT_S: Final = 0.5
_LOGIN_REFUSED: Final = ("authorization violation", "user authentication", "account authentication", "authentication ")
_REFUSED_SUBJECT: Final = re.compile(r'permissions violation for publish to "([^"]+)"')


class RefusedSubjectError(Exception):
    """The login may not publish to the subject of one message."""


class NatsConnection:
    """A connection, and what the server has refused in it: it says that apart from the response to a request."""

    def __init__(self, url: BrokerUrl) -> None:
        """Create a connection, which is not open yet."""
        self._url = url
        self._client: Any = nats.NATS()
        self._reported: deque[Exception] = deque(maxlen=8)
        self._publishing: dict[str, list[asyncio.Future[Any]]] = {}

    async def open(self) -> Any:
        """Connect, and return the client of nats-py.

        Raises:
            ConnectError: The server does not respond, or rejects the login.
        """
        url, login = self._url, await self._url.login.credentials()
        hosts = [one if ":" in one else f"{one}:{_PORT}" for one in url.hosts.split(",")]
        with self.errors():
            if login.ssl_context is not None:
                await self._check_tls(hosts, login.ssl_context)
            await self._client.connect(
                servers=[f"nats://{host}" for host in hosts],
                user=login.user,
                password=login.password,
                token=login.token,
                nkeys_seed_str=login.nkey,
                user_credentials=self._creds(),
                tls=login.ssl_context,
                allow_reconnect=False,  # a new connection is a new start: `open` begins with what was not acknowledged
                # Otherwise nats-py tries for two minutes, whatever `allow_reconnect` is, and nothing is reported
                # meanwhile
                max_reconnect_attempts=1,
                reconnect_time_wait=_RETRY_S,
                connect_timeout=int(TIMEOUT_S),
                error_cb=self._on_error,
            )
        return self._client

    def watch(self, subject: str, confirmation: asyncio.Future[Any]) -> None:
        """Fail a confirmation with `RefusedSubjectError` when the server refuses its subject."""
        key = subject.lower()  # as nats-py reports it
        self._publishing.setdefault(key, []).append(confirmation)
        confirmation.add_done_callback(lambda _: self._publishing.pop(key, None))

    async def close(self) -> None:
        """Disconnect; never fails."""
        with contextlib.suppress(Exception):  # nats-py fails in many ways if the server is gone
            await asyncio.wait_for(self._client.close(), TIMEOUT_S)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise the errors of nats-py as those of a connector."""
        url = self._url
        try:
            yield
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            for one in (exc, *self._reported):
                self._check_refusal(one)
            if isinstance(exc, js_errors.NoStreamResponseError):
                raise ConnectError(f"{url.text}: no JetStream stream has this subject.", fix="Create one.") from exc
            if isinstance(exc, js_errors.BadRequestError):
                raise ConnectError(
                    f"{url.text} rejects a request: {exc}.", fix="Check the subject and the stream."
                ) from exc
            words = url.login.masked(exc) or type(exc).__name__
            raise BrokerUnavailableError(f"{url.text} does not respond: {words}") from exc

    async def _check_tls(self, hosts: Sequence[str], context: ssl.SSLContext) -> None:
        """Check that one of the servers has TLS and accepts the client's certificate, before it is given a secret.

        To a server that does not ask for TLS, nats-py sends the login as it is; and it loses the server's words.
        """
        for host in hosts[:-1]:
            with contextlib.suppress(OSError, ConnectError):
                return await self._shake_hands(host, context)
        return await self._shake_hands(hosts[-1], context)

    async def _shake_hands(self, host: str, context: ssl.SSLContext) -> None:
        name, _, port = host.rpartition(":")
        async with asyncio.timeout(_HANDSHAKE_S):
            reader, writer = await asyncio.open_connection(name.strip("[]"), int(port))
            try:
                kind, _, info = (await reader.readline()).partition(b" ")
                if kind != b"INFO" or not json.loads(info).get("tls_required"):
                    raise self._url.login.refused(self._url.text, "it has no TLS on this port")
                await writer.start_tls(context, server_hostname=name.strip("[]"))
                with contextlib.suppress(TimeoutError):  # a refusal of the certificate arrives after the handshake
                    await asyncio.wait_for(reader.read(1), _ALERT_S)
            finally:
                writer.close()

    def _check_refusal(self, error: Exception) -> None:
        """Raise what an error says about the login, if it is about that."""
        url = self._url
        words = str(error).removeprefix("nats: ").strip("'\" ")
        if isinstance(error, AuthorizationError) or words.lower().startswith(_LOGIN_REFUSED):
            raise url.login.refused(url.text, words) from error
        if words.lower().startswith("permissions violation"):
            raise AccessRefusedError(
                f"{url.text} refuses it to the login {url.login}: {words}.", fix="Check the user's permissions."
            ) from error
        if (refusal := tls_refusal(error)) is not None:
            raise url.login.refused(url.text, refusal) from error

    async def _on_error(self, error: Exception) -> None:
        """Keep an error; one about a single message is its own."""
        found = _REFUSED_SUBJECT.search(str(error))
        waiting = self._publishing.get(found[1].lower(), []) if found else []
        for one in list(waiting):
            if not one.done():
                one.set_exception(RefusedSubjectError(str(error).removeprefix("nats: ")))
        if not waiting:
            self._reported.append(error)

    def _creds(self) -> str | None:
        """Return the path of the credentials file, once it was read: nats-py has no error for one that is not there."""
        path = self._url.login.section.creds
        if path is not None:
            try:
                with open(path, "rb") as file:  # noqa: PTH123 - only whether it can be
                    is_one = b"BEGIN NATS USER JWT" in file.read()
            except OSError as exc:
                raise LoginRefusedError(
                    f"creds {path} cannot be read: {exc.strerror}.", fix="Check the path."
                ) from None
            if not is_one:
                raise LoginRefusedError(
                    f"creds {path} is no credentials file of NATS.", fix="Create one: nsc generate creds."
                )
        return path
