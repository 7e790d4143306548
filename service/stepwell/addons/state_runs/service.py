"""`StateRuns`: runs timesteps whose state is in the request and in the response; nothing is stored."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepwell.addons.packed_states import non_finite_rows, row_in
from stepwell.engine.model_runs import ModelRuns
from stepwell.engine.stepping.model_runner import ModelRunner
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.state_packing import DecodedState

if TYPE_CHECKING:
    from stepwell.engine.engine import Engine
    from stepwell.engine.model_runs import Runs

_log = logging.getLogger(__name__)

GivenState = DecodedState | ServiceError | None
"""A row's state; None: the model's initial state; an error, which becomes the row's result."""


@dataclass(frozen=True, slots=True)
class StateRunResult:
    """The result of timesteps of the same model, a row each.

    Attributes:
        outputs: `(N, *row)` by output; zeros for a row that failed.
        states: The packed states after the timestep, `(N, bytes)` uint8; zeros for a row that failed.
        errors: By row, why it failed.
    """

    outputs: Mapping[str, Array]
    states: Array
    errors: Mapping[int, ServiceError]


class StateRuns(ModelRuns):
    """Runs timesteps whose state is in the request, at most `max_batch_size` rows at once."""

    def __init__(self, engine: Engine) -> None:
        self._models = engine.models
        self._admission = engine.admission
        self._observer = engine.observer
        self._max_rows = engine.options.max_batch_size
        self._runners: dict[ServedModel, ModelRunner] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop has weak references only

    @property
    def running(self) -> list[Runs]:
        """The model versions that have run."""
        return [served.step_model for served in self._runners]

    def close(self) -> None:
        """End the threads."""
        for runner in self._runners.values():
            runner.close()

    def submit(
        self,
        served: ServedModel,
        tenant: str,
        inputs: Mapping[str, Array],
        states: Sequence[GivenState],
        done: Callable[[StateRunResult | ServiceError], None],
    ) -> None:
        """Start what `run` does; `done` gets the result, or the error that `run` raises."""

        async def run() -> None:
            result: StateRunResult | ServiceError
            try:
                result = await self.run(served, tenant, inputs, states)
            except ServiceError as exc:
                result = exc
            except Exception:  # noqa: BLE001 - a failed request must have a response; it is logged
                _log.exception("A run failed (model=%s, rows=%d)", served.name, len(states))
                problem = "The run failed because of an internal error."
                result = ServiceError("internal", problem, fix="Send the same request again.")
            done(result)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(
        self, served: ServedModel, tenant: str, inputs: Mapping[str, Array], states: Sequence[GivenState]
    ) -> StateRunResult:
        """Run one timestep of each row; a bad row fails alone.

        Args:
            served: The model version.
            tenant: The caller, whose rate is counted.
            inputs: `(N, 1, *row)` of the declared dtype, by input; the values of rows with an error are not used.
            states: N states.

        Raises:
            ServiceError: `draining`, `overloaded`, `rate_limited` or `model_timeout`.
        """
        rows, nbytes = len(states), sum(array.nbytes for array in inputs.values())
        self._admission.check()
        self._admission.check_rate(tenant, rows)
        self._admission.rows += rows
        self._admission.nbytes += nbytes
        try:
            return await self._run(served, inputs, states)
        finally:
            self._admission.count_answered(rows, nbytes)

    async def _run(
        self, served: ServedModel, inputs: Mapping[str, Array], states: Sequence[GivenState]
    ) -> StateRunResult:
        model, runner = served.step_model, self._runner(served)
        packed, errors = self._packed(served, states)
        outputs = {spec.name: np.zeros((len(states), *spec.row_shape), spec.dtype) for spec in served.manifest.answered}
        next_states = np.zeros((len(states), model.state_bytes), np.uint8)
        valid = [row for row in range(len(states)) if row not in errors]
        for start in range(0, len(valid), self._max_rows):
            batch = valid[start : start + self._max_rows]
            # Here a model with learning stages learns: an input `learn` would be true for each row.
            result = await runner.run({name: array[batch] for name, array in inputs.items()}, packed[batch])
            accepted = batch if result.rows is None else [batch[row] for row in result.rows]
            next_states[accepted] = result.states
            for name, array in result.outputs.items():
                outputs[name][accepted] = array[:, 0]
            errors |= {batch[row]: error for row, error in result.rejected.items()}
        return StateRunResult(outputs, next_states, errors)

    def _packed(self, served: ServedModel, states: Sequence[GivenState]) -> tuple[Array, dict[int, ServiceError]]:
        """Return the packed states before the timestep, `(N, bytes)` uint8, and the errors of single rows."""
        model, errors, rows = served.step_model, dict[int, ServiceError](), list[bytes]()
        for row, given in enumerate(states):
            state = model.initial_state
            try:
                if isinstance(given, ServiceError):
                    raise given
                if given is not None:
                    state = row_in(given, served, self._models)
            except ServiceError as exc:
                errors[row] = exc
            rows.append(state)
        packed = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), model.state_bytes)
        return packed, {**non_finite_rows(model.unpack(packed)), **errors}

    def _runner(self, served: ServedModel) -> ModelRunner:
        runner = self._runners.get(served)
        if runner is None:
            for other in [other for other in self._runners if not self._models.is_current(other)]:
                self._runners.pop(other).close()
            runner = self._runners[served] = ModelRunner(served, self._observer)
        return runner
