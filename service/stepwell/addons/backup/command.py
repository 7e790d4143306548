"""`stepwell backup` and `stepwell restore`: all data of a store to a file, and an embedded store from one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell.addons.backup.rdb import BackupError, write_backup
from stepwell.addons.backup.rdb import restore as restore_store
from stepwell.addons.embedded_store.server import EmbeddedStore
from stepwell.commands.tables import Json, format_bytes
from stepwell.settings import Settings
from stepwell_client.wire.texts import counted

Redis = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="The store. Default: the embedded one. [STEPWELL_REDIS]")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Folder of the embedded store's data. Default: .stepwell. [STEPWELL_DATA_DIR]",
    ),
]


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; - writes it to the output.")],
    *,
    redis: Redis = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write all data of a store, as of one moment, to an RDB file, while the service runs."""
    settings = Settings.load(redis=redis, data_dir=data_dir)
    url = settings.redis if data_dir is None or redis is not None else None
    if url is None:
        store = EmbeddedStore(settings.data_dir)
        if not store.socket.exists():
            raise BackupError(
                f"No embedded store runs in {settings.data_dir}.",
                fix="Start its service, or set --data-dir or --redis. Without a service, copy the folder.",
            )
        url = store.url
    if str(file) == "-":
        asyncio.run(write_backup(url, sys.stdout.buffer))
        return
    partial = file.with_name(file.name + ".partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            n_bytes = asyncio.run(write_backup(url, out))
            out.flush()
            os.fsync(out.fileno())
        partial.rename(file)
    except OSError as exc:
        raise BackupError(f"{file} cannot be written: {exc.strerror}.", fix="Check the folder and its space.") from exc
    finally:
        partial.unlink(missing_ok=True)
    _print({"file": str(file), "bytes": n_bytes}, f"{file}: {format_bytes(n_bytes)}", as_json=as_json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `stepwell backup` has made.")],
    *,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a backup the data of the embedded store. Its service must not run; what was there is kept beside it."""
    settings = Settings.load(data_dir=data_dir)
    if settings.redis is not None and data_dir is None:
        raise BackupError(
            "The store is a server of its own (STEPWELL_REDIS), which reads a backup when it starts.",
            fix=(
                'Stop that server, give it the file as its own data, and start it: the page "Backup and restore of the '
                'store" of the documentation has the commands. --data-dir restores an embedded store.'
            ),
        )
    folder = settings.data_dir
    n_keys = restore_store(folder, file)
    _print({"data_dir": str(folder), "keys": n_keys}, f"{folder}: {counted(n_keys, 'key')}", as_json=as_json)


def _print(report: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(report, indent=2) if as_json else text)
