"""The commands of the service and the exporter, and `Command`, which every add-on registers for its own.

The module of a command is imported when it is called: `--help` is fast, and serving imports nothing of exporting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Command:
    """One command. Entry points of the group `stepwell.commands` are mappings of such by the names of the commands.

    Attributes:
        help: What it does, in one line for `stepwell --help`.
        target: `module:name` of a function with the annotations of Typer, or of a `typer.Typer`.
        reads_options: Whether the function gets all arguments as they are, `--help` among them.
    """

    help: str
    target: str
    reads_options: bool = False


def _own(help_: str, target: str, *, reads_options: bool = False) -> Command:
    return Command(help_, f"{__name__}.{target}", reads_options)


COMMANDS: Final[Mapping[str, Command]] = {
    "serve": _own("Serve models over HTTP and WebSocket.", "serve:serve"),
    "export": _own("Export a trained model to one verified step graph.", "export:export"),
    "adopt": _own("Write the manifest for a graph that already is stepwise.", "adopt:adopt"),
    "recipes": _own("List the published graphs that are known by their structure.", "recipes:recipes"),
    "inspect": _own("Show the inputs, outputs and states of a model file.", "inspect:inspect"),
    "check": _own("Report everything that `serve` would refuse.", "check:check"),
    "streams": _own("List, show, reset, copy and delete live streams.", "streams:streams_app"),
    "keys": _own("Make, list and revoke API keys.", "keys:keys_app"),
    "test": _own("Run all tests of a clone, or a part with --quick.", "test:test", reads_options=True),
}
"""Those of the service and the exporter, in the order of `stepwell --help`."""
