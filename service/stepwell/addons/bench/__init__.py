"""The load generator of `stepwell bench`."""

from __future__ import annotations

from stepwell.commands import Command

COMMANDS = {
    "bench": Command(
        "Measure a running service under load: rate, latency, errors.", "stepwell.addons.bench.command:bench"
    )
}
