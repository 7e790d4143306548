"""`SchemaRegistry`: schemas by their ids, from a server with the API of Confluent's Schema Registry.

Source: https://docs.confluent.io/platform/current/schema-registry/develop/api.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx2

from stepwell.addons.connect.login import Login, LoginSection, Secret
from stepwell.addons.connect.messages import (
    AccessRefusedError,
    BrokerUnavailableError,
    ConnectError,
    ConnectUsageError,
    LoginRefusedError,
)

_TIMEOUT_S: Final = 10.0
_ASK_AGAIN_S: Final = 30.0
_CONTENT_TYPE: Final = "application/vnd.schemaregistry.v1+json"
_TYPES: Final = "/schemas/types"
_KINDS: Final = {"avro": "AVRO", "protobuf": "PROTOBUF", "json-schema": "JSON"}


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema of a registry.

    Attributes:
        text: The schema; of Protobuf a serialized descriptor in base64, if the registry has it, else the source.
        references: The schemas that it names, by the names that it uses; those that they name come first.
    """

    text: str
    references: dict[str, str]


class SchemaRegistry:
    """Keeps the schemas that messages have named, and those that are missing for 30 s."""

    def __init__(
        self,
        url: str,
        login: LoginSection | None,
        body_format: str,
        *,
        table: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a client, which is not open yet.

        Args:
            url: The registry's address; it may have user and password.
            login: The login, or None.
            body_format: `avro`, `protobuf` or `json-schema`.
            table: The name of the table with the login, for messages.
            clock: Returns the time in seconds.

        Raises:
            ConnectUsageError: It is no HTTP URL, or the login has other keys.
        """
        parts = urlsplit(url)
        given, _, host = parts.netloc.rpartition("@")
        if parts.scheme not in ("http", "https") or not host:
            raise ConnectUsageError(
                f"The registry is {parts.scheme}://{host}; expected http:// or https:// and a host."
            )
        self.text = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        user, colon, password = given.partition(":")
        if given and login is not None:
            raise ConnectUsageError(f"The registry's URL has a login, and there is {table}.", fix="Give one of them.")
        section = login or LoginSection(user=unquote(user) or None)
        for key in ("nkey_env", "nkey_file", "creds", "sasl"):
            if getattr(section, key) is not None:
                raise ConnectUsageError(f"{table} has the key {key!r}; a registry has user, password, token and TLS.")
        inline = Secret("password", "url", unquote(password)) if colon else None
        self._login = Login.of(section, inline=inline, is_encrypted=parts.scheme == "https", where=table)
        self._kind = _KINDS[body_format]
        self._clock = clock
        self._client: httpx2.AsyncClient | None = None
        self._known: dict[int, RegisteredSchema] = {}
        self._missing: dict[int, float] = {}
        self._subjects: dict[str, int] = {}
        self._was_let_in = False

    async def open(self) -> None:
        """Read the login, and check that the registry accepts it.

        Raises:
            BrokerUnavailableError: It does not respond.
            AccessRefusedError: It rejects the login.
            LoginRefusedError: It does so now, and accepted it before.
        """
        await self.close()
        login = await self._login.credentials()
        auth = (login.user, login.password or "") if login.user is not None else None
        headers = {"Accept": f"{_CONTENT_TYPE}, application/json"}
        if login.token is not None:
            headers["Authorization"] = f"Bearer {login.token}"
        self._client = httpx2.AsyncClient(
            auth=auth, headers=headers, timeout=_TIMEOUT_S, trust_env=False,
            verify=True if login.ssl_context is None else login.ssl_context,
        )  # fmt: skip
        await self._asked("GET", _TYPES)

    async def close(self) -> None:
        """Disconnect; never fails."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def get(self, number: int) -> RegisteredSchema | None:
        """Return the schema with an id; None: the registry has none, as far as `fetch` knows."""
        return self._known.get(number)

    async def fetch(self, numbers: Iterable[int]) -> None:
        """Get the schemas that are not known yet; raises as `open` does."""
        now = self._clock()
        for number in numbers:
            if number in self._known or self._missing.get(number, -_ASK_AGAIN_S) > now - _ASK_AGAIN_S:
                continue
            found = await self._asked("GET", f"/schemas/ids/{number}{self._serialized}")
            references = None if found is None else await self._references(found)
            if references is None:
                self._missing[number] = now
            else:
                self._known[number] = RegisteredSchema(found["schema"], references)

    async def register(self, subject: str, schema: str) -> int:
        """Register a schema for a subject, and return its id; raises as `open` does.

        Raises:
            ConnectError: The registry does not accept it.
        """
        if subject not in self._subjects:
            body = {"schema": schema, "schemaType": self._kind}
            found = await self._asked("POST", f"/subjects/{quote(subject, safe='')}/versions", body)
            if found is None:
                raise ConnectError(f"{self.text} has no subjects.", fix="Check the registry's URL.")
            self._subjects[subject] = int(found["id"])
        return self._subjects[subject]

    async def _references(self, found: dict[str, Any]) -> dict[str, str] | None:
        """Return the schemas that a schema names; None: the registry does not have them all."""
        schemas: dict[str, str] = {}
        for one in found.get("references") or ():
            path = f"/subjects/{quote(one['subject'], safe='')}/versions/{one['version']}{self._serialized}"
            other = await self._asked("GET", path)
            its_own = None if other is None else await self._references(other)
            if its_own is None:
                return None
            schemas |= {**its_own, one["name"]: other["schema"]}
        return schemas

    @property
    def _serialized(self) -> str:
        return "?format=serialized" if self._kind == "PROTOBUF" else ""

    async def _asked(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer to a request; None: what is asked for is not there."""
        assert self._client is not None
        try:
            answer = await self._client.request(method, self.text + path, json=body)
        except httpx2.RequestError as exc:
            parts = urlsplit(self.text)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            raise await self._login.failure(self.text, (parts.hostname or "", port), exc) from exc
        words = self._login.masked(answer.text[:300])
        if answer.status_code in (401, 403):
            was_replaced = answer.status_code == 401 and self._was_let_in
            raise (LoginRefusedError if was_replaced else AccessRefusedError)(
                f"{self.text} rejects the login {self._login}: {answer.status_code} {words}.",
                fix="Check registry_login, and the user's permissions.",
            )
        if answer.status_code == 404:
            return None
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise BrokerUnavailableError(f"{self.text} cannot do it now: {answer.status_code} {words}")
        if answer.status_code >= 400:
            raise ConnectError(f"{self.text} rejects {method} {path}: {answer.status_code} {words}.")
        self._was_let_in = self._was_let_in or path != _TYPES
        try:
            return answer.json()
        except ValueError as exc:
            raise ConnectError(f"{self.text} is no schema registry: {words!r}.", fix="Check its URL.") from exc
