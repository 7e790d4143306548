"""The demo: a trained model, held-out recordings, and a replay that checks every live prediction."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {"demo": Command("Replay real recordings as live streams.", "stepwell.addons.demo.command:demo")}
