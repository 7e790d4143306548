"""`ApiKeys`: authenticates callers by API key; keys are stored as hashes, and the file is reloaded when it changes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_export.errors import StepwellError
from model_export.manifest import NAME
from service.errors import ServiceError

Scope = Literal["step", "read", "admin", "models", "metrics"]
SCOPES: frozenset[Scope] = frozenset({"step", "read", "admin", "models", "metrics"})

_log = logging.getLogger(__name__)
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+) *")


class KeysFileError(StepwellError):
    """The file of API keys cannot be used."""

    code = "bad_keys_file"


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


class TokenVerifier(Protocol):
    """Resolves tokens to callers."""

    def caller(self, token: str) -> Caller:
        """Return the caller of a token.

        Raises:
            ServiceError: `unauthenticated`: the token is not accepted.
        """
        ...


class _Key(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
    tenant: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    scopes: list[Scope]


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    keys: list[_Key]


class ApiKeys:
    """The API keys in force."""

    def __init__(self, file: Path | None, tokens: TokenVerifier | None = None) -> None:
        """Read the file.

        Args:
            file: `api_keys_file`; None: there are no keys.
            tokens: Resolves tokens to callers; None: tokens are not accepted. Without both, every request has all
                scopes, as tenant `default`.

        Raises:
            KeysFileError: The file cannot be read, or its content is not valid.
        """
        self._file = file
        self._tokens = tokens
        self._file_signature: tuple[int, ...] = ()
        self._callers: Mapping[bytes, Caller] = {}
        self._generation = 0
        self._checked_this_tick = False  # in this iteration of the event loop
        self._last_logged = ""
        if file is not None:
            self._file_signature = file_signature(file)
            self._callers = read_keys(file)

    @property
    def required(self) -> bool:
        """Whether requests need a key or a token."""
        return self._file is not None or self._tokens is not None

    @property
    def is_cacheable(self) -> bool:
        """Whether a positive authorization may be cached until `generation` changes; not with tokens, which expire."""
        return self._tokens is None

    def generation(self) -> int:
        """Return a number that grows each time the file's keys are reloaded."""
        if self._file is not None and not self._checked_this_tick:
            self._reload_if_changed(self._file)
        return self._generation

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller of an `Authorization` header; the header is ignored if neither keys nor tokens are set.

        Raises:
            ServiceError: `unauthenticated`: the header is missing or malformed, or the key is not valid.
        """
        if self._file is None and self._tokens is None:
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
        if self._file is None and self._tokens is None:
            return ANYONE
        if self._file is not None and not self._checked_this_tick:
            self._reload_if_changed(self._file)
        # Timing could reveal at most a part of a hash; a key of 256 random bits cannot be found from that.
        caller = self._callers.get(sha256(key.encode("utf-8", "surrogatepass")).digest())
        if caller is not None:
            return caller
        if self._tokens is not None and key.count(".") == 2:
            return self._tokens.caller(key)
        raise unauthenticated("The key is not valid; expected a key of `api_keys_file`.")

    def _reload_if_changed(self, file: Path) -> None:
        """Check the file once for all requests of one event loop iteration: a check costs 2 us."""
        self._reload(file)
        try:
            asyncio.get_running_loop().call_soon(self._allow_next_check)
        except RuntimeError:  # no loop runs
            return
        self._checked_this_tick = True

    def _allow_next_check(self) -> None:
        self._checked_this_tick = False

    def _reload(self, file: Path) -> None:
        try:
            signature = file_signature(file)
            if signature == self._file_signature:
                return
            self._file_signature = signature
            self._callers = read_keys(file)
            self._generation += 1
        except KeysFileError as exc:
            if str(exc) != self._last_logged:  # once, not with every request
                _log.error("The API keys were not reloaded; the keys loaded before stay valid: %s", exc)
            self._last_logged = str(exc)
        else:
            self._last_logged = ""
            _log.info("Reloaded the API keys: %d keys", len(self._callers))


def unauthenticated(problem: str) -> ServiceError:
    """Return the error for a request whose caller cannot be authenticated."""
    return ServiceError("unauthenticated", problem, fix="Send a valid key.")


def file_signature(file: Path) -> tuple[int, ...]:
    """Return modification time, size and inode of a keys file: a change of the file changes one of them.

    Raises:
        KeysFileError: The file cannot be read.
    """
    try:
        stat = os.stat(file)  # noqa: PTH116 - pathlib needs twice the time, and this runs for each request
    except OSError as exc:
        raise KeysFileError(
            f"The keys file {file.name} cannot be read: {exc.strerror}.", fix="Check `api_keys_file` and its rights."
        ) from exc
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_keys(file: Path) -> dict[bytes, Caller]:
    """Return the callers of a keys file by the SHA-256 of their keys, in the order of the file.

    Raises:
        KeysFileError: The file cannot be read, or its content is not valid.
    """
    try:
        content = _KeysFile.model_validate_json(file.read_bytes())
    except OSError as exc:
        raise KeysFileError(
            f"The keys file {file.name} cannot be read: {exc.strerror}.", fix="Check `api_keys_file` and its rights."
        ) from exc
    except ValidationError as exc:
        first = exc.errors(include_input=False)[0]  # the input may be a key, and must not be logged
        location = ".".join(map(str, first["loc"])) or "the document"
        raise KeysFileError(
            f"The keys file {file.name} is wrong at {location}: {first['msg']}.",
            fix='Write {"keys": [{"id": "..", "sha256": "hex of the key", "tenant": "..", "scopes": ["step"]}]}.',
        ) from exc
    return {bytes.fromhex(key.sha256): Caller(key.tenant, frozenset(key.scopes), key.id) for key in content.keys}
