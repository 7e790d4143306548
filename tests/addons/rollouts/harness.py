"""Rollouts in an engine of a test."""

from __future__ import annotations

from stepwell.addons.rollouts.service import RolloutService
from stepwell.engine.engine import Engine


def rollouts_of(engine: Engine) -> RolloutService:
    """Return what runs the rollouts of an engine, which gets it as from the add-on."""
    found = [runs for runs in engine.runs if isinstance(runs, RolloutService)] or [RolloutService(engine)]
    if found[0] not in engine.runs:
        engine.runs.append(found[0])
    return found[0]
