"""Recorded data into the streams of a running service, once, and their predictions into a file."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "backfill": Command(
        "Feed recorded data into the streams of a running service.", "stepwell.addons.backfill.command:backfill"
    )
}
