"""Backups: all data of a store in one file, and an embedded store that starts from one."""

from __future__ import annotations

from stepwell.commands import Command

_COMMAND = "stepwell.addons.backup.command"
COMMANDS = {
    "backup": Command("Write all data of a store to a file, while it is used.", f"{_COMMAND}:backup"),
    "restore": Command("Make a backup the data of the embedded store.", f"{_COMMAND}:restore"),
}
