"""The `stepwell` program: finds the command, runs it, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, version
from typing import Annotated

import typer

from stepwell.commands import COMMANDS, Command
from stepwell.commands.interrupted import loading
from stepwell.garbage_collection import collector_paused
from stepwell_client.errors import ClientError
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.registered import load, registered

_PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}
_BAD_USAGE = {"bad_setting", "bad_columns", "bad_key"}
_REFUSED_TO_START = {
    "missing_extra",
    "cannot_start",
    "embedded_store",
    "unsafe_store",
    "bad_store_url",
    "bad_keys_file",
    "login_refused",
    "access_refused",
}


def find_commands() -> dict[str, Command]:
    """Return all commands, ours before those of other packages; one that cannot be used is reported."""
    found = dict(COMMANDS)
    for point in sorted(registered("stepwell.commands").values(), key=lambda each: not _is_ours(each)):
        try:
            others: Mapping[str, Command] = load(point, Mapping)
        except StepwellError as exc:  # the other commands are there nevertheless
            _report(exc)
            continue
        for name, command in others.items():
            if found.setdefault(name, command) != command:
                typer.echo(f"stepwell: {point.value} registers the command {name!r}, which is there already.", err=True)
    return found


def _is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "stepwell"


def make_app(wanted: str | None) -> typer.Typer:
    """Return the program with the wanted command; the others have only their name and help."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Serve recurrent models on live streams: state in Redis, every timestep applied exactly once.",
    )
    app.callback()(_stepwell)
    commands = COMMANDS if wanted in COMMANDS else find_commands()  # other packages are looked for where it matters
    for name, command in commands.items():
        if name != wanted:
            app.command(name, help=command.help)(lambda: None)
            continue
        module, _, attribute = command.target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=command.help)
        elif command.reads_options:
            app.command(name, context_settings=_PASS_THROUGH, add_help_option=False)(target)
        else:
            app.command(name)(target)
    return app


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused to start, 130 interrupted."""
    with contextlib.suppress(FileNotFoundError):  # the folder was removed under the caller
        if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path has strings
            sys.path.append(os.getcwd())  # noqa: PTH109 - `export` may import a module of the caller
    wanted = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    if wanted == "serve":  # else pydantic reads the metadata of all installed packages, in each process
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        with loading(), collector_paused():
            app = make_app(wanted)
        app(prog_name="stepwell")  # also where it is run as a module
    except (StepwellError, ClientError) as exc:
        _report(exc)
        sys.exit(2 if exc.code in _BAD_USAGE else 3 if exc.code in _REFUSED_TO_START else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _report(error: StepwellError | ClientError) -> None:
    """Print an error for people; log it if the command's log lines are JSON."""
    logs = sys.modules.get("stepwell.logs")
    if logs is not None and logs.writes_json():
        logs.log.error("%s", error.problem, extra={"code": error.code, "fix": error.fix})
        return
    typer.echo(f"stepwell: {error.problem}", err=True)
    if error.fix:
        typer.echo(f"  {error.fix}", err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stepwell {version('stepwell')}")
        raise typer.Exit


def _stepwell(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass
