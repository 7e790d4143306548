"""The commands of the `stepwell` program: `Command`, which an installed package registers too, and our own.

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
    "demo": _own("Replay real recordings as live streams.", "demo:demo"),
    "test": _own("Run all tests of a clone, or a part with --quick.", "test:test", reads_options=True),
    "serve": _own("Serve models over HTTP and WebSocket.", "serve:serve"),
    "export": _own("Export a trained model to one verified step graph.", "export:export"),
    "adopt": _own("Write the manifest for a graph that already is stepwise.", "adopt:adopt"),
    "inspect": _own("Show the inputs, outputs and states of a model file.", "inspect:inspect"),
    "check": _own("Report everything that `serve` would refuse.", "check:check"),
    "bench": _own("Measure a running service under load: rate, latency, errors.", "bench:bench"),
    "replay": _own("Replay a recording through a model.", "replay:replay"),
    "connect": _own("Step streams by messages of a broker, and send predictions on.", "connect:connect"),
    "alert": _own("Send alarms about predictions and silent streams.", "live.alert:alert"),
    "backtest": _own("Compare two models on recorded data.", "recorded.backtest:backtest"),
    "backfill": _own("Feed recorded data into the streams of a running service.", "recorded.backfill:backfill"),
    "push": _own("Upload a model file to the Hugging Face Hub.", "hub:push"),
    "pull": _own("Download a model file from the Hugging Face Hub.", "hub:pull"),
    "drift": _own("Compare live inputs and outputs with the model's own data.", "live.drift:drift"),
    "keys": _own("Make, list and revoke API keys.", "keys:keys_app"),
    "save": _own("Save all streams of a model to a file, a savepoint.", "live.savepoint:save"),
    "load": _own("Load the streams of a savepoint into a running service.", "live.savepoint:load"),
    "backup": _own("Write all data of a store to a file, while it is used.", "store.backup:backup"),
    "restore": _own("Make a backup the data of the embedded store.", "store.backup:restore"),
    "size": _own("Compute how many replicas, and which Redis, streams need.", "store.size:size"),
    "release": _own("Move live streams to another version of their model.", "live.release:release_app"),
    "streams": _own("List, show, reset, copy and delete live streams.", "live.streams:streams_app"),
}
"""Our own, in the order of `stepwell --help`."""
