"""`ApiKeys`: authenticates callers by API key; the file has hashes of the keys."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepwell.errors import ServiceError
from stepwell.requests.auth.reloaded_keys_file import KeysFileError, ReloadedKeysFile, unreadable
from stepwell_export.runtime.manifest import NAME

Scope = Literal["step", "read", "admin", "models", "metrics"]
SCOPES: frozenset[Scope] = frozenset({"step", "read", "admin", "models", "metrics"})

_log = logging.getLogger(__name__)
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+) *")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        tenant: The owner of the streams that the caller uses.
        scopes: The scopes of the caller's key.
        key_id: The id of the key, or the subject of the token; empty without keys.
    """

    tenant: str
    scopes: frozenset[Scope]
    key_id: str = ""

    def check_scope(self, scope: Scope) -> None:
        """Check that the caller has a scope.

        Raises:
            ServiceError: `forbidden`: the caller does not have it.
        """
        if scope not in self.scopes:
            raise ServiceError(
                "forbidden",
                f"This key has the scopes {', '.join(sorted(self.scopes)) or 'none'}; this needs {scope}.",
                fix="Use a key with that scope.",
            )


ANYONE = Caller("default", SCOPES)
"""The caller of every request where neither keys nor tokens are configured."""


class _Key(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
    tenant: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    scopes: list[Scope]


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    keys: list[_Key]

    @model_validator(mode="after")
    def _keys_differ(self) -> _KeysFile:
        ids: dict[str, str] = {}
        for key in self.keys:
            digest = key.sha256.lower()
            if digest in ids:
                raise ValueError(f"{ids[digest]!r} and {key.id!r} have the same sha256")
            ids[digest] = key.id
        return self


_Callers = ReloadedKeysFile[Mapping[bytes, Caller]]


class ApiKeys:
    """The API keys in force.

    Attributes:
        caller_of_token: Returns the caller of a token; None: tokens are not accepted.
    """

    def __init__(self, file: Path | None, caller_of_token: Callable[[str], Caller] | None = None) -> None:
        """Read the file.

        Args:
            file: `api_keys_file`; None: there are no keys.
            caller_of_token: Returns the caller of a token; None: tokens are not accepted. Without both, every request
                has all scopes, as tenant `default`.

        Raises:
            KeysFileError: The file cannot be read, or its content is not valid.
        """
        self._file: _Callers | None = None if file is None else ReloadedKeysFile(file, read_keys)
        self.caller_of_token = caller_of_token
        self._checked_this_tick = False  # in this turn of the loop

    @property
    def required(self) -> bool:
        """Whether requests need a key or a token."""
        return self._file is not None or self.caller_of_token is not None

    @property
    def has_file(self) -> bool:
        """Whether keys are read from a file, which may change."""
        return self._file is not None

    def call_on_change(self, callback: Callable[[Mapping[bytes, Caller], Mapping[bytes, Caller]], None]) -> None:
        """Set what is called with the callers before and after a change of the file, by the SHA-256 of their keys."""
        if self._file is not None:
            self._file.on_change = callback

    @property
    def is_cacheable(self) -> bool:
        """Whether a positive authorization may be cached until `generation` changes; not with tokens, which expire."""
        return self.caller_of_token is None

    def generation(self) -> int:
        """Return a number that grows when other keys come into force."""
        return 0 if self._file is None else self._looked_at(self._file).generation

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller of an `Authorization` header; the header is ignored if neither keys nor tokens are set.

        Raises:
            ServiceError: `unauthenticated`: the header is missing or malformed, or the key is not valid.
        """
        if self._file is None and self.caller_of_token is None:
            return ANYONE
        match = _BEARER.fullmatch(authorization) if authorization is not None else None
        if match is None:
            found = "no Authorization header" if authorization is None else "an Authorization header in another format"
            raise unauthenticated(f"The request has {found}; expected `Authorization: Bearer KEY`.")
        return self.caller_of_key(match[1])

    def caller_of_key(self, key: str) -> Caller:
        """Return the caller of a key or token.

        Raises:
            ServiceError: `unauthenticated`: the key or token is not valid.
        """
        if self._file is None and self.caller_of_token is None:
            return ANYONE
        if self._file is not None:
            callers = self._looked_at(self._file).content
            # The time this takes could at most reveal a part of a hash, from which no key of 256 random bits is found.
            caller = callers.get(sha256(key.encode("utf-8", "surrogatepass")).digest())
            if caller is not None:
                return caller
        if self.caller_of_token is not None and key.count(".") == 2:
            return self.caller_of_token(key)
        raise unauthenticated("The key is not valid; expected a key of `api_keys_file`.")

    def _looked_at(self, file: _Callers) -> _Callers:
        """Look at the file, once for all requests that came in the same turn of the loop: a look costs 2 us."""
        if self._checked_this_tick:
            return file
        file.refresh()
        try:
            asyncio.get_running_loop().call_soon(self._allow_next_check)
        except RuntimeError:  # no loop runs
            return file
        self._checked_this_tick = True
        return file

    def _allow_next_check(self) -> None:
        self._checked_this_tick = False


def unauthenticated(problem: str) -> ServiceError:
    """Return the error for a request whose caller cannot be authenticated."""
    return ServiceError("unauthenticated", problem, fix="Send a valid key.")


def read_keys(file: Path) -> dict[bytes, Caller]:
    """Return the callers of a keys file by the SHA-256 of their keys, in the order of the file.

    Raises:
        KeysFileError: The file cannot be read, or its content is not valid.
    """
    try:
        content = _KeysFile.model_validate_json(file.read_bytes())
    except OSError as exc:
        raise unreadable(file, exc) from exc
    except ValidationError as exc:
        first = exc.errors(include_input=False)[0]  # the input may be a key, and must not be logged
        location = ".".join(map(str, first["loc"])) or "the document"
        raise KeysFileError(
            f"The keys file {file} is wrong at {location}: {first['msg'].removeprefix('Value error, ')}.",
            fix='Write {"keys": [{"id": "..", "sha256": "hex of the key", "tenant": "..", "scopes": ["step"]}]}.',
        ) from exc
    return {bytes.fromhex(key.sha256): Caller(key.tenant, frozenset(key.scopes), key.id) for key in content.keys}
