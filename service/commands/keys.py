"""`stepwell keys`: makes, lists and revokes the API keys of a file; a running service reads it again by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer

from service.commands.tables import show, table
from service.requests.api_keys import Scope
from service.requests.api_keys_file import add_key, list_keys, revoke_key
from service.settings import PREFIX

File = Annotated[
    Path,
    typer.Option("--file", envvar=f"{PREFIX}API_KEYS_FILE", metavar="FILE", help="The file that `serve` is given."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The key's name for people: whose it is, or what for.")]

keys_app = typer.Typer(no_args_is_help=True)


@keys_app.command()
def add(
    key_id: Id,
    *,
    file: File,
    tenant: Annotated[str, typer.Option(help="Whose streams it opens; tenants see nothing of each other.")] = "default",
    scopes: Annotated[
        str, typer.Option(metavar="SCOPE,...", help=f"What may be done: some of {', '.join(get_args(Scope))}.")
    ] = "step,read",
    as_json: Json = False,
) -> None:
    """Make a key and print it, once: the file holds its hash only."""
    wanted = list(dict.fromkeys(scope.strip() for scope in scopes.split(",") if scope.strip()))
    key = add_key(file, key_id, tenant, wanted)  # type: ignore[arg-type]  # it says which scopes there are
    if as_json:
        typer.echo(json.dumps({"id": key_id, "tenant": tenant, "scopes": sorted(wanted), "key": key}, indent=2))
        return
    typer.echo(key)
    typer.echo(f"Key {key_id!r} of tenant {tenant!r}: {', '.join(wanted)}. It is shown this once.", err=True)


@keys_app.command()
def ls(*, file: File, as_json: Json = False) -> None:
    """List the keys' names, tenants and scopes."""
    found = list_keys(file)
    if as_json:
        keys = [{"id": one.key_id, "tenant": one.tenant, "scopes": sorted(one.scopes)} for one in found]
        typer.echo(json.dumps({"keys": keys}, indent=2))
        return
    lines = [(one.key_id, one.tenant, ", ".join(sorted(one.scopes))) for one in found]
    show(table("", ("id", "tenant", "scopes"), lines), f"{len(lines):,} keys")


@keys_app.command()
def revoke(
    key_id: Id,
    *,
    file: File,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take a key back: it is refused from the next request on."""
    if not yes:
        typer.confirm(f"Revoke {key_id}? It cannot be had back.", abort=True, err=True)
    revoke_key(file, key_id)
    typer.echo(json.dumps({"revoked": key_id}, indent=2) if as_json else f"{key_id} revoked")
