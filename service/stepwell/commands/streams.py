"""`stepwell streams`: list, show and manage the streams of a running service over HTTP."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from stepwell.codec.resets import check_snapshot_name
from stepwell.commands.service_calls import (
    DEFAULT_URL,
    HttpApi,
    Key,
    Model,
    Stream,
    Url,
    Yes,
    confirm,
    idempotency_header,
    path_of,
)
from stepwell.commands.tables import Json, key_value_table, print_json, show, table
from stepwell.errors import ServiceError
from stepwell_client.wire.texts import counted

streams_app = typer.Typer(no_args_is_help=True)
snapshot_app = typer.Typer(no_args_is_help=True)
streams_app.add_typer(snapshot_app, name="snapshot", help="List, take and delete snapshots of a stream.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The snapshot's name.")]
_MAX_NUMBERS = 8  # of one tensor


@streams_app.command()
def ls(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Only streams of this model; by default of all models.")
    ] = None,
    *,
    prefix: Annotated[str, typer.Option(help="Only streams whose id begins with this text.")] = "",
    filter_: Annotated[
        str, typer.Option("--filter", metavar="TEXT", help="Only streams whose id contains this text.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first streams by model and id; by default all.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List live streams and their steps, by model and id."""
    with HttpApi(url, key) as service:
        models = [model] if model is not None else [entry["name"] for entry in service.get("/v1/models")["models"]]
        streams = ((name, stream) for name in models for stream in service.streams(name, prefix))
        found = ((name, one) for name, one in streams if filter_.lower() in one["stream"].lower())
        matches = _first(found, limit)  # the store lists them in no order
        if as_json:
            print_json({"streams": [{"model": name, **stream} for name, stream in matches]})
            return
        rows = [(name, stream["stream"], _step_text(stream["step"])) for name, stream in matches]
    show(table("", ("model", "stream", "step"), rows), counted(len(rows), "stream"))


@streams_app.command(name="show")
def show_stream(
    model: Model, stream: Stream, *, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Show a stream's step, norms of its states, last prediction."""
    with HttpApi(url, key) as service:
        status = service.get(path_of(model, stream), outputs="true")
        states = service.get(path_of(model, stream, "state"))["states"]
    status["state_norms"] = {
        name: float(np.linalg.norm(np.ravel(value).astype(float))) for name, value in states.items()
    }
    print_json(status) if as_json else show(_status_table(status))


@streams_app.command()
def reset(
    model: Model,
    stream: Stream,
    *,
    to: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="Reset to this snapshot of the stream.")] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="STATE_ID", help="Reset only from this state id; by default from the current one."),
    ] = None,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Reset a stream to its initial state or to a snapshot. It is refused if the stream is stepped meanwhile."""
    with HttpApi(url, key) as service:
        status = service.get(path_of(model, stream))
        target = "its initial state" if to is None else f"snapshot {to}"
        confirm(f"{stream} of {model} is at step {status['step']:,}. Reset it to {target}?", yes=yes)
        body = {"after": after or status["state_id"]} | ({} if to is None else {"to": {"snapshot": to}})
        result = service.call("POST", path_of(model, stream, "reset"), json=body, headers=idempotency_header())
    typer.echo(json.dumps(result, indent=2) if as_json else f"{stream} is at step {result['step']:,}")


@streams_app.command()
def fork(
    model: Model,
    stream: Stream,
    to: Annotated[str, typer.Argument(metavar="TO", help="The id of the new stream.")],
    *,
    snapshot: Annotated[
        str | None, typer.Option(metavar="SNAPSHOT", help="Copy this snapshot instead of the current state.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Create another stream as a copy of this one or of its snapshot."""
    path_of(model, to)
    body = {"to": to} | ({} if snapshot is None else {"from": {"snapshot": snapshot}})
    with HttpApi(url, key) as service:
        result = service.call("POST", path_of(model, stream, "fork"), json=body, headers=idempotency_header())
    typer.echo(json.dumps(result, indent=2) if as_json else f"{to} starts at step {result['step']:,}")


@streams_app.command()
def rollout(
    model: Model,
    stream: Stream,
    horizon: Annotated[int, typer.Argument(min=1, metavar="HORIZON", help="Number of timesteps to predict.")],
    *,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed, for a rollout that samples.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0: most probable value; 1: the model's probabilities.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Run a stream by its own predictions. Nothing is committed."""
    options = {name: value for name, value in (("seed", seed), ("temperature", temperature)) if value is not None}
    with HttpApi(url, key) as service:
        result = service.call("POST", path_of(model, stream, "rollout"), json={"horizon": horizon, **options})
    if as_json:
        print_json(result)
        return
    first = result["step"] - horizon + 1
    rows = [(f"{first + i:,}", *(_numbers(column[i]) for column in result["outputs"].values())) for i in range(horizon)]
    show(table("", ("step", *result["outputs"]), rows), "")


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
    """Delete streams; a stream that does not exist is not an error."""
    paths = [path_of(model, stream) for stream in streams]  # all ids are checked before the first deletion
    confirm(f"Delete {', '.join(streams)} of {model}? This cannot be undone.", yes=yes)
    with HttpApi(url, key) as service:
        for path in paths:
            service.call("DELETE", path, headers=idempotency_header())
    typer.echo(json.dumps({"forgotten": streams}, indent=2) if as_json else f"{', '.join(streams)} deleted")


@snapshot_app.command(name="ls")
def list_snapshots(
    model: Model, stream: Stream, *, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """List the snapshots of a stream."""
    with HttpApi(url, key) as service:
        result = service.get(path_of(model, stream, "snapshots"))
    if as_json:
        print_json(result)
        return
    rows = [(snapshot["name"], f"{snapshot['step']:,}", snapshot["taken_at"]) for snapshot in result["snapshots"]]
    show(table("", ("snapshot", "step", "taken at"), rows), counted(len(rows), "snapshot"))


@snapshot_app.command()
def put(
    model: Model, stream: Stream, name: Name, *, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Save a named copy of a stream's current state. An existing snapshot of that name is replaced."""
    path = _snapshot_path(model, stream, name)
    with HttpApi(url, key) as service:
        result = service.call("PUT", path, headers=idempotency_header())
    typer.echo(json.dumps(result, indent=2) if as_json else f"{name} is {stream} at step {result['step']:,}")


@snapshot_app.command(name="rm")
def delete_snapshot(
    model: Model,
    stream: Stream,
    name: Name,
    *,
    yes: Yes = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Delete a snapshot."""
    path = _snapshot_path(model, stream, name)
    confirm(f"Delete snapshot {name} of {stream}?", yes=yes)
    with HttpApi(url, key) as service:
        service.call("DELETE", path, headers=idempotency_header())
    typer.echo(json.dumps({"deleted": name}, indent=2) if as_json else f"{name} deleted")


def _snapshot_path(model: str, stream: str, name: str) -> str:
    """Return the path of a snapshot.

    Raises:
        typer.BadParameter: The name is not valid; in a path, `..` would be the stream itself.
    """
    try:
        return path_of(model, stream, f"snapshots/{check_snapshot_name(name)}")
    except ServiceError as exc:
        raise typer.BadParameter(exc.problem, param_hint="NAME") from exc


def _first(streams: Iterable[tuple[str, dict[str, Any]]], limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    """Return streams with their models, sorted by model and id: all of them, or the first ones."""

    def place(each: tuple[str, dict[str, Any]]) -> tuple[str, str]:
        return each[0], each[1]["stream"]

    return sorted(streams, key=place) if limit is None else heapq.nsmallest(limit, streams, key=place)


def _step_text(step: int | None) -> str:
    return "unreadable" if step is None else f"{step:,}"


def _status_table(status: dict[str, Any]) -> Table:
    """Return a stream's status as a table of names and values."""
    values = {
        name.replace("_", " "): str(value) for name, value in status.items() if not isinstance(value, float | dict)
    }
    values["step"] = f"{status['step']:,}"
    values["expires in"] = f"{status['expires_in_s']:,.0f} s, unless it is stepped"
    values |= {f"norm of state {name}": f"{norm:.6g}" for name, norm in status["state_norms"].items()}
    values |= {f"last {name}": _numbers(value) for name, value in status["outputs"].items()}
    return key_value_table("", values)


def _numbers(tensor: Any) -> str:
    """Return a tensor's first numbers as text."""
    values = np.ravel(tensor).tolist()
    shown = " ".join(f"{value:.6g}" for value in values[:_MAX_NUMBERS])
    return shown + (f" ... ({len(values)})" if len(values) > _MAX_NUMBERS else "")
