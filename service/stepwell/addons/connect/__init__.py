"""`stepwell connect`: timesteps from a broker or a file to a running service, and its predictions to another."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "connect": Command(
        "Step streams by messages of a broker, and send predictions on.", "stepwell.addons.connect.command:connect"
    )
}
