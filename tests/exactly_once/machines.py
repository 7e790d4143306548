"""What the state machines share: one server and one loaded model for all runs, and how a machine is run."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from stepwell.models.registry import ModelRegistry
from tests.servers import Server


class Shared:
    """Outlives a run; the fixture `shared` sets it up. Each run has a tenant of its own."""

    server: Server
    shelf: ModelRegistry
    tenants = itertools.count()


def run_machine(machine: type[RuleBasedStateMachine], runs: int, operations: int) -> None:
    """Run a state machine `runs` times with `operations` random operations each."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=operations,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
