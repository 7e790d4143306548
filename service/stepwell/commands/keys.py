"""`stepwell keys`: create, list and revoke the API keys of a file, which a running service reloads when it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer

from stepwell.commands.keys_file import add_key, check_key, list_keys, revoke_key
from stepwell.commands.tables import Json, print_json, show, table
from stepwell.requests.auth.api_keys import Scope
from stepwell.settings import PREFIX
from stepwell_client.wire.texts import counted

File = Annotated[
    Path,
    typer.Option("--file", envvar=f"{PREFIX}API_KEYS_FILE", metavar="FILE", help="The API key file of `serve`."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's name: whose key it is, or its purpose.")]

keys_app = typer.Typer(no_args_is_help=True)


@keys_app.command()
def add(
    key_id: Id,
    *,
    file: File,
    tenant: Annotated[str, typer.Option(help="The tenant whose streams the key can access.")] = "default",
    scopes: Annotated[
        str, typer.Option(metavar="SCOPE,...", help=f"The key's scopes, from {', '.join(get_args(Scope))}.")
    ] = "step,read",
    as_json: Json = False,
) -> None:
    """Create a key and print it once; the file stores only its hash."""
    requested = list(dict.fromkeys(scope.strip() for scope in scopes.split(",") if scope.strip()))
    key = add_key(file, key_id, tenant, requested)  # type: ignore[arg-type]  # `add_key` checks the scopes
    if as_json:
        print_json({"id": key_id, "tenant": tenant, "scopes": sorted(requested), "key": key})
        return
    typer.echo(key)
    typer.echo(f"Key {key_id!r} of tenant {tenant!r}: {', '.join(requested)}. It is not shown again.", err=True)


@keys_app.command()
def ls(*, file: File, as_json: Json = False) -> None:
    """List the keys' names, tenants and scopes."""
    keys = list_keys(file)
    if as_json:
        documents = [{"id": key.key_id, "tenant": key.tenant, "scopes": sorted(key.scopes)} for key in keys]
        print_json({"keys": documents})
        return
    rows = [(key.key_id, key.tenant, ", ".join(sorted(key.scopes))) for key in keys]
    show(table("", ("id", "tenant", "scopes"), rows), counted(len(rows), "key"))


@keys_app.command()
def revoke(
    key_id: Id,
    *,
    file: File,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Revoke a key: the service rejects it from the next request on."""
    if not yes:
        check_key(file, key_id)
        typer.confirm(f"Revoke {key_id}? This cannot be undone.", abort=True, err=True)
    revoke_key(file, key_id)
    typer.echo(json.dumps({"revoked": key_id}, indent=2) if as_json else f"{key_id} revoked")
