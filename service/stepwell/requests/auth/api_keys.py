"""`ApiKeys`: authenticates callers by API key; keys are stored as hashes, and the file is reloaded when it changes."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stepwell.errors import ServiceError
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import NAME

Scope = Literal["step", "read", "admin", "models", "metrics"]
SCOPES: frozenset[Scope] = frozenset({"step", "read", "admin", "models", "metrics"})

_T = TypeVar("_T")

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


class ReloadedFile(Generic[_T]):
    """A file of keys that is read again when it changes; while it cannot be read, what was read before stays in force.

    Attributes:
        content: What was read last.
        generation: How often it was read again.
        on_change: Called with what was read before and what was read now, when it was read again; None: not called.
    """

    def __init__(self, file: Path, read: Callable[[Path], _T]) -> None:
        """Read the file.

        Args:
            file: Which.
            read: Returns what it holds, or raises a `KeysFileError`.

        Raises:
            KeysFileError: It cannot be read, or is not what it should be.
        """
        self._file = file
        self._read = read
        self._stamp = file_signature(file)
        self._trouble = ""  # as it was logged
        self.content = read(file)
        self.generation = 0
        self.on_change: Callable[[_T, _T], None] | None = None

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        try:
            stamp = file_signature(self._file)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            before, self.content = self.content, self._read(self._file)
        except KeysFileError as exc:
            if str(exc) != self._trouble:  # once, not with every request
                _log.error("The keys read before stay in force: %s", exc)
            self._trouble = str(exc)
        else:
            self._trouble = ""
            self.generation += 1
            _log.info("Read the keys again: %s", self._file.name)
            if self.on_change is not None:
                self.on_change(before, self.content)


_Callers = ReloadedFile[Mapping[bytes, Caller]]


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
        self._file: _Callers | None = None if file is None else ReloadedFile(file, read_keys)
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


def _unreadable(file: Path, error: OSError) -> KeysFileError:
    return KeysFileError(
        f"The keys file {file} cannot be read: {error.strerror}.",
        fix="Check its path and its rights; `stepwell keys add ID --file FILE` creates a file of API keys.",
    )


def file_signature(file: Path) -> tuple[int, ...]:
    """Return modification time, size and inode of a keys file: a change of the file changes one of them.

    Raises:
        KeysFileError: The file cannot be read.
    """
    try:
        stat = os.stat(file)  # noqa: PTH116 - pathlib needs twice the time, and this runs for each request
    except OSError as exc:
        raise _unreadable(file, exc) from exc
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_keys(file: Path) -> dict[bytes, Caller]:
    """Return the callers of a keys file by the SHA-256 of their keys, in the order of the file.

    Raises:
        KeysFileError: The file cannot be read, or its content is not valid.
    """
    try:
        content = _KeysFile.model_validate_json(file.read_bytes())
    except OSError as exc:
        raise _unreadable(file, exc) from exc
    except ValidationError as exc:
        first = exc.errors(include_input=False)[0]  # the input may be a key, and must not be logged
        location = ".".join(map(str, first["loc"])) or "the document"
        raise KeysFileError(
            f"The keys file {file} is wrong at {location}: {first['msg'].removeprefix('Value error, ')}.",
            fix='Write {"keys": [{"id": "..", "sha256": "hex of the key", "tenant": "..", "scopes": ["step"]}]}.',
        ) from exc
    return {bytes.fromhex(key.sha256): Caller(key.tenant, frozenset(key.scopes), key.id) for key in content.keys}
