"""Connections to Redis for its readers and writers, and the errors that they report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - redis-py's name
    NoPermissionError,
    ResponseError,
    TimeoutError,  # noqa: A004 - redis-py's name
)

from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BrokerUnavailableError,
    ConnectError,
    ConnectUsageError,
)
from stepwell.addons.connect.urls import BrokerUrl

_PORT: Final = 6379
_TIMEOUT_S: Final = 5.0


async def connect(url: BrokerUrl) -> redis.Redis:
    """Return a client that is connected; it repeats nothing by itself.

    Raises:
        ConnectUsageError: The database is not a number.
        ConnectError: The server does not respond, or rejects the login.
    """
    host, port = url.address(_PORT)
    if url.path and not (url.path.isascii() and url.path.isdigit()):
        raise ConnectUsageError(f"{url.text!r} has the database {url.path!r}; expected a number.")
    login = await url.login.credentials()
    client = redis.Redis(
        host=host,
        port=port,
        db=int(url.path or 0),
        username=login.user,
        password=login.password,
        ssl=url.login.is_encrypted,
        ssl_ca_certs=url.login.section.ca,
        ssl_certfile=url.login.section.cert,
        ssl_keyfile=url.login.section.key,
        ssl_check_hostname=True,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        # A repeated XREADGROUP would go on behind entries whose delivery was lost; `open` begins with those
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    try:
        with redis_errors(url):
            await client.ping()
    except BrokerUnavailableError as exc:
        await client.aclose()
        raise await url.login.failure(url.text, (host, port), exc) from exc
    except ConnectError:
        await client.aclose()
        raise
    return client


@contextlib.contextmanager
def redis_errors(url: BrokerUrl) -> Iterator[None]:
    """Raise the errors of redis-py as those of a connector."""
    try:
        yield
    except (AuthenticationError, AuthenticationWrongNumberOfArgsError) as exc:
        raise url.login.refused(url.text, exc) from exc
    except (ConnectionError, TimeoutError, BusyLoadingError, OSError) as exc:
        raise BrokerUnavailableError(f"{url.text} does not respond: {exc}") from exc
    except ResponseError as exc:
        if isinstance(exc, NoPermissionError) or "NOPERM" in str(exc) or "ACL failure" in str(exc):
            raise AccessRefusedError(
                f"{url.text} refuses a command to the login {url.login}: {exc}.",
                fix="Check the user's permissions (ACL).",
            ) from exc
        if str(exc).startswith(("NOGROUP", "LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "OOM", "UNBLOCKED")):
            raise BrokerUnavailableError(f"{url.text} cannot do it now: {exc}") from exc
        raise ConnectError(f"{url.text} rejects a command: {exc}.", fix="Check the URL and the permissions.") from exc


def tagged(name: str) -> str:
    """Return a prefix of keys that a Redis Cluster keeps with the key `name`."""
    return name if "{" in name else f"{{{name}}}"
