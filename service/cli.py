"""The `stepwell` program: finds the command, runs it, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from model_export.errors import StepwellError
from service.collector import collector_paused
from service.interrupted import loading

# Each command is in service/commands/ and is imported only when it is called, so that `--help` is fast and serving
# does not import the dependencies of exporting.
_COMMANDS = {
    "demo": ("service.commands.demo", "demo", "Replay real recordings as live streams."),
    "test": ("service.commands.test", "test", "Run all tests of a clone, or a part with --quick."),
    "serve": ("service.commands.serve", "serve", "Serve models over HTTP and WebSocket."),
    "export": ("service.commands.export", "export", "Export a trained model to one verified step graph."),
    "adopt": ("service.commands.adopt", "adopt", "Write the manifest for a graph that already is stepwise."),
    "inspect": ("service.commands.inspect", "inspect", "Show the inputs, outputs and states of a model file."),
    "check": ("service.commands.check", "check", "Report everything that `serve` would refuse."),
    "bench": ("service.commands.bench", "bench", "Measure a running service under load: rate, latency, errors."),
    "replay": ("service.commands.replay", "replay", "Replay a recording through a model."),
    "connect": (
        "service.commands.connect",
        "connect",
        "Step streams by messages of a broker, and send predictions on.",
    ),
    "alert": ("service.commands.live.alert", "alert", "Send alarms about predictions and silent streams."),
    "backtest": ("service.commands.recorded.backtest", "backtest", "Compare two models on recorded data."),
    "backfill": (
        "service.commands.recorded.backfill",
        "backfill",
        "Feed recorded data into the streams of a running service.",
    ),
    "push": ("service.commands.hub", "push", "Upload a model file to the Hugging Face Hub."),
    "pull": ("service.commands.hub", "pull", "Download a model file from the Hugging Face Hub."),
    "drift": ("service.commands.live.drift", "drift", "Compare live inputs and outputs with the model's own data."),
    "keys": ("service.commands.keys", "keys_app", "Make, list and revoke API keys."),
    "save": ("service.commands.live.savepoint", "save", "Save all streams of a model to a file, a savepoint."),
    "load": ("service.commands.live.savepoint", "load", "Load the streams of a savepoint into a running service."),
    "backup": (
        "service.commands.store.backup",
        "backup",
        "Write all data of a store to a file, while it is used.",
    ),
    "restore": ("service.commands.store.backup", "restore", "Make a backup the data of the embedded store."),
    "size": ("service.commands.store.size", "size", "Compute how many replicas, and which Redis, streams need."),
    "release": ("service.commands.live.release", "release_app", "Move live streams to another version of their model."),
    "streams": ("service.commands.live.streams", "streams_app", "List, show, reset, copy and delete live streams."),
}
_PASS_THROUGH = {"ignore_unknown_options": True, "allow_extra_args": True}
_BAD_USAGE = {"bad_setting", "bad_columns", "bad_key"}
_REFUSED_TO_START = {
    "missing_extra",
    "cannot_start",
    "embedded_store",
    "unsafe_store",
    "bad_store_url",
    "bad_keys_file",
}


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
    for name, (module, attribute, text) in _COMMANDS.items():
        if name != wanted:
            app.command(name, help=text)(lambda: None)
            continue
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=text)
        elif name == "test":
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
    except StepwellError as exc:
        _report(exc)
        sys.exit(2 if exc.code in _BAD_USAGE else 3 if exc.code in _REFUSED_TO_START else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _report(error: StepwellError) -> None:
    """Print an error for people; log it if the command's log lines are JSON."""
    logs = sys.modules.get("service.logs")
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
