"""The file of API keys as it is written: keys are made, listed, revoked; it holds hashes, and no key."""

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

from model_export.manifest import NAME
from service.requests.api_keys import SCOPES, Caller, KeysFileError, Scope, read_keys

PREFIX: Final = "swk_"
"""How every key begins, so that one which got into a file or a log can be searched for."""

_KEY_BYTES: Final = 32  # 256 bits: nobody guesses it, so one plain SHA-256 is enough


def add_key(file: Path, key_id: str, tenant: str, scopes: Collection[Scope]) -> str:
    """Make a key, remember its hash in the file, and return the key, which is nowhere else.

    A file that is not there is made, readable by its owner alone. It is replaced as a whole, so that a service
    that reads it meanwhile sees the old one or the new one.

    Args:
        file: `api_keys_file`.
        key_id: Its name for people; no other key has it.
        tenant: Whose streams it opens.
        scopes: What may be done with it.

    Raises:
        KeysFileError: The file is not one of keys or cannot be written, or the name, the tenant or a scope cannot be.
    """
    for what, name in (("id", key_id), ("tenant", tenant)):
        if not NAME.fullmatch(name):
            raise KeysFileError(f"The {what} is {name[:80]!r}; expected {NAME.pattern}.", fix="Choose another.")
    if not scopes or not SCOPES.issuperset(scopes):
        raise KeysFileError(
            f"The scopes are {', '.join(scopes) or 'none'}; expected some of {', '.join(sorted(SCOPES))}.",
            fix="Name them with --scopes, separated by commas.",
        )
    key = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    with _changing(file, may_be_new=True) as keys:
        if any(one["id"] == key_id for one in keys):
            raise KeysFileError(
                f"There is a key {key_id!r} already.", fix="Choose another id, or revoke that one first."
            )
        digest = sha256(key.encode()).hexdigest()
        keys.append({"id": key_id, "sha256": digest, "tenant": tenant, "scopes": sorted(scopes)})
    return key


def list_keys(file: Path) -> list[Caller]:
    """Return whose keys there are, in the order of the file.

    Raises:
        KeysFileError: The file is not one of keys.
    """
    return list(read_keys(file).values())


def revoke_key(file: Path, key_id: str) -> None:
    """Take a key out of the file; services that read it refuse the key with the next request.

    Raises:
        KeysFileError: The file is not one of keys or cannot be written, or there is no such key.
    """
    with _changing(file) as keys:
        kept = [one for one in keys if one["id"] != key_id]
        if len(kept) == len(keys):
            known = ", ".join(one["id"] for one in keys[:20]) or "none"
            raise KeysFileError(f"There is no key {key_id[:80]!r}; keys are: {known}.", fix="Name one of them.")
        keys[:] = kept


@contextlib.contextmanager
def _changing(file: Path, *, may_be_new: bool = False) -> Iterator[list[dict[str, Any]]]:
    """Give the keys as they stand in the file, and write what the block leaves of them; one at a time does so."""
    file = file.resolve()  # a link stays one
    try:
        with _only_one(file.parent):
            document: dict[str, Any] = {"keys": []}
            if file.exists() or not may_be_new:
                read_keys(file)
                document = json.loads(file.read_bytes())
            yield document["keys"]
            _replace(file, json.dumps(document, indent=1) + "\n")
    except OSError as exc:
        raise KeysFileError(
            f"The keys file {file.name} cannot be written: {exc.strerror}.", fix="Check its folder and your rights."
        ) from exc


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str) -> None:
    """Write the file anew; rights and owner that somebody gave it are kept as far as may be."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new:
            if file.exists():
                before = file.stat()
                os.fchmod(descriptor, before.st_mode & 0o777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            new.write(text)
            new.flush()
            os.fsync(descriptor)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
