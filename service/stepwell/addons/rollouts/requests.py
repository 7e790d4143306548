"""Rollouts, and their results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwell.types.steps import Create, StreamKey
from stepwell_export.runtime.manifest import Array


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A request to run a stream from its current state by the model's own predictions.

    Attributes:
        key: The stream.
        horizon: Number of timesteps.
        inputs: The given first inputs, `*row` by name, checked and finite.
        feedback: A rule by input; None: the model's own rules.
        temperature: Overrides that of the rules; likewise `top_k` and `top_p`.
        samples: Number of independent samples.
        seed: Seed of the random draws, from 0 to below 2**64; None: a random one.
        commit: Commit the rollout to the stream.
        seq: As in `Timestep`; likewise the attributes that follow.
    """

    key: StreamKey
    horizon: int
    inputs: Mapping[str, Array]
    feedback: Mapping[str, Any] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    samples: int = 1
    seed: int | None = None
    commit: bool = False
    seq: int | None = None
    after: bytes | None = None
    create: Create = "auto"
    idempotency_key: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """The result of a rollout.

    Attributes:
        outputs: A prediction per timestep, `(samples, horizon, *row)` by name.
        next_inputs: The inputs computed from each prediction by the feedback rules, `(samples, horizon, *row)` by
            name.
        seed: Seed of the random draws; None if the rollout is deterministic.
        step: The stream's step after a committed rollout; otherwise the step that it would have.
        state_id: The stream's state id: after a committed rollout, else unchanged; empty if there is no stream.
        replayed: The rollout was committed before; this is the stored result.
        created: The request created the stream.
    """

    outputs: Mapping[str, Array]
    next_inputs: Mapping[str, Array]
    seed: int | None
    step: int
    state_id: bytes
    replayed: bool = False
    created: bool = False
