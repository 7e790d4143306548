"""How many replicas, and which Redis, streams need: `stepwell size`."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "size": Command("Compute how many replicas, and which Redis, streams need.", "stepwell.addons.sizing.command:size")
}
