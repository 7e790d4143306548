"""`stepwell streams`: look at and tend the live streams of a running service, over HTTP."""

from __future__ import annotations

import json
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import typer
from rich.table import Table

from service.commands.http_api import (
    DEFAULT_URL,
    HttpApi,
    Json,
    Key,
    Model,
    Stream,
    Url,
    Yes,
    confirm,
    idempotency_header,
    path_of,
)
from service.commands.tables import key_value_table, show, table

streams_app = typer.Typer(no_args_is_help=True)
snapshot_app = typer.Typer(no_args_is_help=True)
streams_app.add_typer(snapshot_app, name="snapshot", help="List, take and forget copies of a stream.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The snapshot's name.")]
_SHOWN = 8  # numbers of one tensor


@streams_app.command()
def ls(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Of this model; of all by default.")] = None,
    *,
    prefix: Annotated[str, typer.Option(help="Only those whose id begins with this.")] = "",
    filter_: Annotated[str, typer.Option("--filter", metavar="TEXT", help="Only those whose id has this in it.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many; all by default.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List live streams and their steps."""
    with HttpApi(url, key) as service:
        models = [model] if model is not None else [one["name"] for one in service.get("/v1/models")["models"]]
        rows = ((name, row) for name in models for row in service.streams(name, prefix))
        found = islice(((name, row) for name, row in rows if filter_.lower() in row["stream"].lower()), limit)
        if as_json:
            typer.echo(json.dumps({"streams": [{"model": name, **row} for name, row in found]}, indent=2))
            return
        lines = [(name, row["stream"], _step_text(row["step"])) for name, row in found]
    show(table("", ("model", "stream", "step"), lines), f"{len(lines):,} streams")


@streams_app.command(name="show")
def show_stream(
    model: Model, stream: Stream, *, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Show where a stream stands: its step, the norms of its states, and its last prediction."""
    with HttpApi(url, key) as service:
        found = service.get(path_of(model, stream), outputs="true")
        states = service.get(path_of(model, stream, "state"))["states"]
    found["state_norms"] = {
        name: float(np.linalg.norm(np.ravel(value).astype(float))) for name, value in states.items()
    }
    typer.echo(json.dumps(found, indent=2)) if as_json else show(_status(found))


@streams_app.command()
def reset(
    model: Model,
    stream: Stream,
    *,
    to: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="To this snapshot of it.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="STATE_ID", help="Only from here; by default from where it stands now.")
    ] = None,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Bring a stream back to its initial state or to a snapshot, unless it is stepped meanwhile."""
    with HttpApi(url, key) as service:
        now = service.get(path_of(model, stream))
        where = "its initial state" if to is None else f"snapshot {to}"
        confirm(f"{stream} of {model} is at step {now['step']:,}. Bring it back to {where}?", yes=yes)
        body = {"after": after or now["state_id"]} | ({} if to is None else {"to": {"snapshot": to}})
        found = service.call("POST", path_of(model, stream, "reset"), json=body, headers=idempotency_header())
    typer.echo(json.dumps(found, indent=2) if as_json else f"{stream} is at step {found['step']:,}")


@streams_app.command()
def fork(
    model: Model,
    stream: Stream,
    to: Annotated[str, typer.Argument(metavar="TO", help="The id of the stream to begin.")],
    *,
    snapshot: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="As it was then, not as it is now.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Begin another stream as this one is now, or as a snapshot of it is."""
    path_of(model, to)
    body = {"to": to} | ({} if snapshot is None else {"from": {"snapshot": snapshot}})
    with HttpApi(url, key) as service:
        found = service.call("POST", path_of(model, stream, "fork"), json=body, headers=idempotency_header())
    typer.echo(json.dumps(found, indent=2) if as_json else f"{to} begins at step {found['step']:,}")


@streams_app.command()
def rollout(
    model: Model,
    stream: Stream,
    horizon: Annotated[int, typer.Argument(min=1, metavar="HORIZON", help="Timesteps to go.")],
    *,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the chances, where there are any.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0: most probable; 1: as the model says.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Look ahead: where a stream goes by its own predictions. Nothing moves."""
    options = {name: value for name, value in (("seed", seed), ("temperature", temperature)) if value is not None}
    with HttpApi(url, key) as service:
        found = service.call("POST", path_of(model, stream, "rollout"), json={"horizon": horizon, **options})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    first = found["step"] - horizon + 1
    lines = [
        (f"{first + at:,}", *(_numbers(column[at]) for column in found["outputs"].values())) for at in range(horizon)
    ]
    show(table("", ("step", *found["outputs"]), lines), "")


@streams_app.command()
def rm(
    model: Model,
    streams: Annotated[list[str], typer.Argument(metavar="STREAM...", help="The streams' ids.")],
    *,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Forget streams; those that were not there are no error."""
    paths = [path_of(model, stream) for stream in streams]  # all are checked before the first is gone
    confirm(f"Forget {', '.join(streams)} of {model}? Their states cannot be had back.", yes=yes)
    with HttpApi(url, key) as service:
        for path in paths:
            service.call("DELETE", path, headers=idempotency_header())
    typer.echo(json.dumps({"forgotten": streams}, indent=2) if as_json else f"{', '.join(streams)} forgotten")


@snapshot_app.command(name="ls")
def list_snapshots(
    model: Model, stream: Stream, *, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """List the snapshots of a stream."""
    with HttpApi(url, key) as service:
        found = service.get(path_of(model, stream, "snapshots"))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    lines = [(one["name"], f"{one['step']:,}", one["taken_at"]) for one in found["snapshots"]]
    show(table("", ("snapshot", "step", "taken at"), lines), f"{len(lines):,} snapshots")


@snapshot_app.command()
def put(
    model: Model, stream: Stream, name: Name, *, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Copy a stream as it is now; a snapshot of that name is replaced."""
    with HttpApi(url, key) as service:
        found = service.call(
            "PUT", path_of(model, stream, f"snapshots/{quote(name, safe='')}"), headers=idempotency_header()
        )
    typer.echo(json.dumps(found, indent=2) if as_json else f"{name} is {stream} at step {found['step']:,}")


@snapshot_app.command(name="rm")
def forget_snapshot(
    model: Model, stream: Stream, name: Name, *, yes: Yes = False, url: Url = DEFAULT_URL, key: Key = None
) -> None:
    """Forget a snapshot."""
    confirm(f"Forget snapshot {name} of {stream}?", yes=yes)
    with HttpApi(url, key) as service:
        service.call(
            "DELETE", path_of(model, stream, f"snapshots/{quote(name, safe='')}"), headers=idempotency_header()
        )
    typer.echo(f"{name} forgotten")


def _step_text(step: int | None) -> str:
    return "cannot be read" if step is None else f"{step:,}"


def _status(found: dict[str, Any]) -> Table:
    """Return one line a fact."""
    facts = {name.replace("_", " "): str(value) for name, value in found.items() if not isinstance(value, float | dict)}
    facts["step"] = f"{found['step']:,}"
    facts["expires in"] = f"{found['expires_in_s']:,.0f} s, unless it is stepped"
    facts |= {f"norm of state {name}": f"{norm:.6g}" for name, norm in found["state_norms"].items()}
    facts |= {f"last {name}": _numbers(value) for name, value in found["outputs"].items()}
    return key_value_table("", facts)


def _numbers(tensor: Any) -> str:
    """Return a tensor's first numbers."""
    values = np.ravel(tensor).tolist()
    shown = " ".join(f"{value:.6g}" for value in values[:_SHOWN])
    return shown + (f" ... ({len(values)})" if len(values) > _SHOWN else "")
