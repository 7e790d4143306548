"""`--check`: what rules match, and the alarms that they would have raised in the history that the service keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stepwell.addons.alert.evaluation import RuleEvaluation
from stepwell.addons.alert.event_logs import EventLogs
from stepwell.addons.alert.rules import AlarmRule
from stepwell.addons.alert.stream_state import Alarm, AlertState
from stepwell.addons.alert.updates import updates_after

if TYPE_CHECKING:
    from stepwell.addons.alert.session import FollowedService


async def preview(service: FollowedService) -> list[dict[str, Any]]:
    """Return for each rule: its name, its model, how many streams and timesteps it applies to, and its alarms.

    Raises:
        ServiceError: The store does not reply.
    """
    return [await _row(rule, model.name, service.logs(model.name)) for model in service.models for rule in model.rules]


async def _row(rule: AlarmRule, model: str, logs: EventLogs) -> dict[str, Any]:
    ids: Iterator[str] = map(str, itertools.count(1))
    evaluation = RuleEvaluation(model, [rule], lambda: next(ids))
    streams = await logs.streams(rule.prefix)
    timesteps = 0
    alarms: list[Alarm] = []
    for stream, tail, log in zip(streams, await logs.tails(streams), await logs.read(streams), strict=True):
        state = AlertState(0, b"", 0)
        _, updates = updates_after(log, None)
        for update in updates:
            alarms += evaluation.apply(stream, state, update, 0, 0)
        if updates and tail.age_ms is not None:
            alarms += evaluation.silence(stream, state, tail.age_ms, updates[-1].last_outputs())
        timesteps += sum(update.length for update in updates)
    names = ("state", "kind", "stream", "step", "outputs")  # the others mean nothing, since nothing is sent
    shown = [{name: getattr(alarm, name) for name in names} for alarm in alarms]
    return {"rule": rule.name, "model": model, "streams": len(streams), "timesteps": timesteps, "alarms": shown}
