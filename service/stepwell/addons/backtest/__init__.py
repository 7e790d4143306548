"""Two models on the same recorded data, and how far their outputs differ."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {"backtest": Command("Compare two models on recorded data.", "stepwell.addons.backtest.command:backtest")}
