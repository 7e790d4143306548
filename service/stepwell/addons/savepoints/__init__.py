"""Savepoints: all streams of a model in one file, read while they are stepped, and loaded again."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "save": Command("Save all streams of a model to a file, a savepoint.", "stepwell.addons.savepoints.command:save"),
    "load": Command("Load the streams of a savepoint into a service.", "stepwell.addons.savepoints.command:load"),
}
