"""Replay of recorded timesteps from files."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {"replay": Command("Replay a recording through a model.", "stepwell.addons.replay.command:replay")}
