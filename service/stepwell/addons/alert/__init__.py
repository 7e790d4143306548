"""Alarms from committed predictions: `stepwell alert`."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "alert": Command("Send alarms about predictions and silent streams.", "stepwell.addons.alert.command:alert")
}
