"""Creates, lists and revokes keys in the file of API keys, which stores hashes and never a key."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from stepwell.requests.auth.api_keys import SCOPES, Caller, Scope, read_keys
from stepwell.requests.auth.reloaded_keys_file import KeysFileError
from stepwell_export.runtime.manifest import NAME

PREFIX: Final = "swk_"
"""Prefix of every key, so that a leaked key can be searched for in files and logs."""

_KEY_BYTES: Final = 32  # 256 random bits cannot be guessed, so one plain SHA-256 is enough


class KeyChangeError(KeysFileError):
    """A key cannot be created or revoked as requested; the file is as it was."""

    code = "key_unchanged"


class KeyRequestError(KeyChangeError):
    """A key is requested with an id, a tenant or a scope that is not valid."""

    code = "bad_key"


def add_key(file: Path, key_id: str, tenant: str, scopes: Collection[Scope]) -> str:
    """Create a key, add its hash to the file, and return the key, which is stored nowhere.

    A missing file is created, readable only by its owner. The file is replaced atomically: a service that reads it
    at the same time reads the old file or the new one.

    Args:
        file: `api_keys_file`.
        key_id: The name of the key, unique in the file.
        tenant: The owner of the streams that the key gives access to.
        scopes: The scopes of the key.

    Raises:
        KeyRequestError: The id, the tenant or a scope is not valid.
        KeyChangeError: The id is already used, or the file cannot be written.
        KeysFileError: The file is not a keys file.
    """
    for what, name in (("id", key_id), ("tenant", tenant)):
        if not NAME.fullmatch(name):
            raise KeyRequestError(f"The {what} is {name[:80]!r}; expected {NAME.pattern}.", fix="Choose another.")
    if not scopes or not SCOPES.issuperset(scopes):
        raise KeyRequestError(
            f"The scopes are {', '.join(scopes) or 'none'}; expected some of {', '.join(sorted(SCOPES))}.",
            fix="Name them with --scopes, separated by commas.",
        )
    key = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    with _update_keys(file, create=True) as keys:
        if any(entry["id"] == key_id for entry in keys):
            raise KeyChangeError(
                f"There is a key {key_id!r} already.", fix="Choose another id, or revoke that one first."
            )
        digest = sha256(key.encode()).hexdigest()
        keys.append({"id": key_id, "sha256": digest, "tenant": tenant, "scopes": sorted(scopes)})
    return key


def list_keys(file: Path) -> list[Caller]:
    """Return the callers of all keys, in the order of the file.

    Raises:
        KeysFileError: The file cannot be read, or is not a keys file.
    """
    return list(read_keys(file).values())


def revoke_key(file: Path, key_id: str) -> None:
    """Remove a key from the file; services that use the file reject the key from their next request on.

    Raises:
        KeyChangeError: The file has no such key, or cannot be written.
        KeysFileError: The file is not a keys file.
    """
    with _update_keys(file) as keys:
        _check_known(key_id, [entry["id"] for entry in keys])
        keys[:] = [entry for entry in keys if entry["id"] != key_id]


def check_key(file: Path, key_id: str) -> None:
    """Check that a file has a key.

    Raises:
        KeyChangeError: It has not.
        KeysFileError: It cannot be read, or is not a keys file.
    """
    _check_known(key_id, [caller.key_id for caller in list_keys(file)])


def _check_known(key_id: str, known: list[str]) -> None:
    if key_id not in known:
        shown = ", ".join(known[:20]) or "none"
        raise KeyChangeError(f"There is no key {key_id[:80]!r}; keys are: {shown}.", fix="Name one of them.")


@contextlib.contextmanager
def _update_keys(file: Path, *, create: bool = False) -> Iterator[list[dict[str, Any]]]:
    """Yield the file's keys for changing, then write them back; one process at a time."""
    file = file.resolve()  # the target of a link is replaced, not the link
    try:
        with _file_lock(file.parent):
            document: dict[str, Any] = {"keys": []}
            if file.exists() or not create:
                read_keys(file)
                document = json.loads(file.read_bytes())
            yield document["keys"]
            _replace(file, json.dumps(document, indent=1) + "\n")
    except OSError as exc:
        raise KeyChangeError(
            f"The keys file {file} cannot be written: {exc.strerror}.", fix="Check its folder and your rights."
        ) from exc


@contextlib.contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str) -> None:
    """Replace the file atomically, with its mode kept, and its owner too where the permissions allow that."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new_file:
            if file.exists():
                old_stat = file.stat()
                os.fchmod(descriptor, old_stat.st_mode & 0o777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, old_stat.st_uid, old_stat.st_gid)
            new_file.write(text)
            new_file.flush()
            os.fsync(descriptor)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
