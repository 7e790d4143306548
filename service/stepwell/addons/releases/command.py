"""`stepwell release`: show, start, ramp, promote and abort the release of a model in a running service."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.live import Live

from stepwell.addons.releases.tables import release_view
from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, Model, ServiceUnavailableError, Url, model_path
from stepwell.commands.tables import Json, print_json

release_app = typer.Typer(no_args_is_help=True)

Percent = Annotated[float | None, typer.Option(min=0, max=100, help="The candidate's share of the streams, 0 to 100.")]
Schedule = Annotated[
    str | None,
    typer.Option(metavar="S:P,S:P", help="Shares by seconds from now, such as 0:1,600:10,3600:100."),
]
Revision = Annotated[int | None, typer.Option(min=0, help="Only if the release still has this revision.")]
Why = Annotated[str | None, typer.Option(metavar="TEXT", help="The reason, which the release then shows.")]
Watch = Annotated[bool, typer.Option("--watch", help="Keep drawing the release until Ctrl-C.")]
_EVERY_S: Final = 1.0
_FIXES: Final[dict[int | str, str]] = {
    404: "List the versions with `stepwell release show`.",
    409: "Check the release with `stepwell release show`, then decide.",
}


@release_app.command(name="show")
def show_release(
    model: Model, *, watch: Watch = False, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False
) -> None:
    """Show versions and their streams, the ramp, and the comparison."""
    with HttpApi(url, key, _FIXES) as service:
        _print(service, model, service.get(model_path(model, "release")), watch=watch, as_json=as_json)


@release_app.command()
def start(
    model: Model,
    *,
    candidate: Annotated[int, typer.Option(min=1, metavar="V", help="The version to try.")],
    mode: Annotated[
        Literal["shadow", "ramp", "switch"],
        typer.Option(
            help="What responds: shadow the current version, ramp the candidate; switch moves without a pair."
        ),
    ],
    percent: Percent = None,
    schedule: Schedule = None,
    current: Annotated[
        int | None, typer.Option(min=1, metavar="V", help="The version of the other streams; by default as it is.")
    ] = None,
    take: Annotated[
        Literal["keep", "translate", "reset"] | None,
        typer.Option(help="How the candidate gets its state from that of the current version. Default: keep."),
    ] = None,
    warm_steps: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="With reset: timesteps before the candidate responds.")
    ] = None,
    new_only: Annotated[
        bool, typer.Option("--new-only", help="Only streams that start from now on take part.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Keep the old states for an hour after promote, for an abort.")
    ] = False,
    gate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", exists=True, dir_okay=False, help="Limits that abort the release by themselves."
        ),
    ] = None,
    revision: Revision = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Try a version on a share of the streams. Run again, it changes mode, share and gate."""
    options = {"current": current, "take": take, "warm_steps": warm_steps, "revision": revision}
    body: dict[str, Any] = {"candidate": candidate, "mode": mode, "percent": _share(percent, schedule)}
    body |= {name: value for name, value in options.items() if value is not None}
    if new_only:
        body["existing"] = False
    if rollback:
        body["rollback"] = True
    if gate is not None:
        body["gate"] = _gate(gate)
    _change("PUT", model, "", body, url=url, key=key, watch=watch, as_json=as_json)


@release_app.command(name="percent")
def change_percent(
    model: Model,
    share: Annotated[float | None, typer.Argument(min=0, max=100, metavar="[P]", help="The same as --percent.")] = None,
    *,
    percent: Percent = None,
    schedule: Schedule = None,
    revision: Revision = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Change the candidate's share. Streams that are in the trial stay in it."""
    if share is not None and percent is not None:
        raise typer.BadParameter("the share is given twice.", param_hint="--percent")
    body = {"percent": _share(percent if share is None else share, schedule)}
    body |= {} if revision is None else {"revision": revision}
    _change("PUT", model, "", body, url=url, key=key, watch=watch, as_json=as_json)


@release_app.command()
def promote(
    model: Model,
    *,
    why: Why = None,
    revision: Revision = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make the candidate the current version. Streams move at their next step."""
    _end("promote", model, why, revision, url=url, key=key, watch=watch, as_json=as_json)


@release_app.command()
def abort(
    model: Model,
    *,
    why: Why = None,
    revision: Revision = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """End the trial. Its streams go back to the current version at their next step, and have lost no timestep."""
    _end("abort", model, why, revision, url=url, key=key, watch=watch, as_json=as_json)


@release_app.command()
def move(
    model: Model,
    *,
    limit_per_s: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most streams to move in a second.")
    ] = None,
    watch: Watch = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Move the streams that sleep to their version, in the background."""
    body = {} if limit_per_s is None else {"limit_per_s": limit_per_s}
    _change("POST", model, "/move", body, url=url, key=key, watch=watch, as_json=as_json)


def _end(what: str, model: str, why: str | None, revision: int | None, **options: Any) -> None:
    given = {"why": why, "revision": revision}
    _change("POST", model, f"/{what}", {name: value for name, value in given.items() if value is not None}, **options)


def _change(
    method: str, model: str, what: str, body: dict[str, Any], *, url: str, key: str | None, watch: bool, as_json: bool
) -> None:
    """Send a change and print the release after it."""
    with HttpApi(url, key, _FIXES) as service:
        release = service.call(method, model_path(model, f"release{what}"), json=body)
        _print(service, model, release, watch=watch, as_json=as_json)


def _print(service: HttpApi, model: str, release: dict[str, Any], *, watch: bool, as_json: bool) -> None:
    """Print a release once, or until Ctrl-C: redrawn in place, or as one JSON document a line."""
    if not watch and as_json:
        print_json(release)
    elif not watch:
        Console(highlight=False, markup=False).print(release_view(release))
    else:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(service, model, release, as_json=as_json)


def _watch(service: HttpApi, model: str, release: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        while True:
            typer.echo(json.dumps(release))
            release = _next(service, model, release)
    with Live(release_view(release), console=Console(highlight=False, markup=False), auto_refresh=False) as live:
        while True:
            release = _next(service, model, release)
            live.update(release_view(release), refresh=True)


def _next(service: HttpApi, model: str, release: dict[str, Any]) -> dict[str, Any]:
    """Return the release a second later; the one before while the service does not respond."""
    threading.Event().wait(_EVERY_S)
    try:
        found: dict[str, Any] = service.get(model_path(model, "release"))
    except ServiceUnavailableError:
        return release
    return found


def _share(percent: float | None, schedule: str | None) -> float | list[list[float]]:
    """Return `percent` of the body from one of the two options."""
    if (percent is None) == (schedule is None):
        raise typer.BadParameter("give one of --percent and --schedule.", param_hint="--percent")
    if percent is not None:
        return percent
    assert schedule is not None
    try:
        points = [[float(number) for number in point.split(":")] for point in schedule.split(",")]
        if any(len(point) != 2 for point in points):
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"{schedule!r} is not a schedule; expected seconds:percent, such as 0:1,600:10,3600:100.",
            param_hint="--schedule",
        ) from None
    return points


def _gate(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as exc:
        raise typer.BadParameter(f"{file} is not JSON: {exc}.", param_hint="--gate") from exc
