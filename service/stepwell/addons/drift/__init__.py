"""Drift and data quality: the distributions of live inputs and outputs, and their distance from the reference."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "drift": Command(
        "Compare live inputs and outputs with the model's own data.", "stepwell.addons.drift.command:drift"
    )
}
