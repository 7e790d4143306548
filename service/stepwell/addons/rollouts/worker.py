"""`RolloutWorker`: runs the rollouts of one model timestep by timestep, all of them in one batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stepwell.addons.rollouts.feedback import FeedbackInputs
from stepwell.engine.packing import finite_rows
from stepwell.engine.stepping.model_runner import model_rejected_input, non_finite_state
from stepwell.errors import ServiceError
from stepwell_export.runtime.errors import ModelLoadError, ModelTimeoutError
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel

OnTimestep = Callable[[Mapping[str, Array], Mapping[str, Array]], object]
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ActiveRollout:
    """A running rollout.

    Attributes:
        inputs: The inputs of the next timestep, `(samples, *row)` by name.
        states: The current states, `(samples, *row)` by name.
        feedback: Computes each next input.
        horizon: Timesteps in all.
        deadline: When it fails if it is not finished, on the monotonic clock.
        first_inputs: The inputs of the first timestep, `(samples, *row)` by name.
        outputs: The predictions so far, one per timestep, each `(samples, *row)` by name.
        next_inputs: The inputs computed from each of these predictions, likewise.
        on_timestep: Called in the worker's thread with each prediction and the inputs computed from it; None: not.
    """

    inputs: dict[str, Array]
    states: Mapping[str, Array]
    feedback: FeedbackInputs
    horizon: int
    deadline: float
    first_inputs: Mapping[str, Array] = field(default_factory=dict)
    outputs: list[Mapping[str, Array]] = field(default_factory=list)
    next_inputs: list[Mapping[str, Array]] = field(default_factory=list)
    on_timestep: OnTimestep | None = None

    def __post_init__(self) -> None:
        self.first_inputs = self.inputs

    @property
    def fed_inputs(self) -> dict[str, Array]:
        """The inputs of the first sample, `(horizon, *row)` by name."""
        fed = [self.first_inputs, *self.next_inputs[:-1]]
        return {name: np.stack([inputs[name][0] for inputs in fed]) for name in self.first_inputs}

    @property
    def rows(self) -> int:
        """The number of its samples."""
        return len(next(iter(self.inputs.values())))

    def advance(self, outputs: Mapping[str, Array], states: Mapping[str, Array]) -> bool:
        """Add the result of a timestep; True: the rollout is finished.

        Raises:
            ServiceError: The result is not finite, or the next input cannot be computed from it.
        """
        t = len(self.outputs) + 1
        named_outputs = {f"output {name}": array for name, array in outputs.items()}
        if bad := finite_rows({**named_outputs, **states})[1]:
            raise non_finite_state(next(iter(bad.values())), place=f"timestep {t} of the rollout")
        self.inputs = self.feedback.next(outputs, t, self.inputs)
        self.states = states
        self.outputs.append(outputs)
        self.next_inputs.append(self.inputs)
        if self.on_timestep is not None:
            self.on_timestep(outputs, self.inputs)
        return t == self.horizon


class RolloutWorker:
    """Runs the rollouts of one model in a thread; a new one joins the running ones at their next timestep.

    Rows are independent: the result of a rollout does not depend on the others in the batch.
    """

    def __init__(self, served: ServedModel, *, max_rows: int) -> None:
        """Create a worker without rollouts.

        Args:
            served: The model version.
            max_rows: Samples that run in one batch; rollouts beyond that wait.
        """
        self.served = served
        self._model = served.step_model
        self._max_rows = max_rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"rollout-{served.name}")
        self._lock = threading.Lock()  # guards `_waiting` and `_is_running`
        self._waiting: deque[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]] = deque()
        self._is_running = False
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        """Whether no rollout is running."""
        return not self._is_running

    @property
    def waiting(self) -> int:
        """The number of rollouts that wait for free rows."""
        return len(self._waiting)

    async def run(self, rollout: ActiveRollout) -> None:
        """Run a rollout to its end.

        Raises:
            ServiceError: `model_timeout`, `non_finite_state`, `non_finite`, `bad_input`, `draining` or `internal`.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._waiting.append((rollout, done, loop))
            must_start, self._is_running = not self._is_running, True
        if must_start:
            self._thread.submit(self._work)
        await done

    def close(self) -> None:
        """Fail the rollouts that wait or run, and end the thread."""
        self._is_closed = True
        self._thread.shutdown(wait=False)

    # ---------------------------------------------------------------- in the thread

    def _work(self) -> None:
        active: list[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]] = []
        while True:
            self._admit(active)
            if self._is_closed:
                self._fail_all(active)
            if not active:
                return
            rollouts = [rollout for rollout, done, _ in active]
            ended = self._step(rollouts)
            remaining = []
            for entry in active:
                rollout, done, loop = entry
                if id(rollout) in ended:
                    _resolve(loop, done, ended[id(rollout)])
                elif not done.cancelled():
                    remaining.append(entry)
            active[:] = remaining

    def _admit(self, active: list[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]]) -> None:
        rows = sum(rollout.rows for rollout, _, _ in active)
        with self._lock:
            while self._waiting and (not active or rows + self._waiting[0][0].rows <= self._max_rows):
                rows += self._waiting[0][0].rows
                active.append(self._waiting.popleft())
            self._is_running = bool(active)

    def _fail_all(self, active: list[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]]) -> None:
        with self._lock:
            active += self._waiting
            self._waiting.clear()
        error = ServiceError(
            "draining",
            "The service ended before the rollout was finished; nothing was applied.",
            fix="Send the same request to another replica.",
        )
        for _, done, loop in active:
            _resolve(loop, done, error)
        active.clear()

    def _step(self, rollouts: Sequence[ActiveRollout]) -> dict[int, ServiceError | None]:
        """Run one timestep of rollouts; return the ended ones by `id`, each with its error, or None if finished."""
        ended: dict[int, ServiceError | None] = {}
        now = time.monotonic()
        for rollout in rollouts:
            if now > rollout.deadline:
                ended[id(rollout)] = _deadline_error(rollout)
        running = [rollout for rollout in rollouts if id(rollout) not in ended]
        if not running:
            return ended
        try:
            self._step_together(running, ended)
        except ModelLoadError as exc:  # the model cannot run on the values of one of them
            if len(running) == 1:
                ended[id(running[0])] = model_rejected_input(exc)
            else:
                for rollout in running:
                    ended.update(self._step([rollout]))
        except ModelTimeoutError as exc:
            ended.update(dict.fromkeys(map(id, running), ServiceError("model_timeout", exc.problem, fix=exc.fix)))
        except Exception:  # noqa: BLE001 - a fault in one batch must not end the thread; it is logged
            _log.exception("A batch of rollouts failed (model=%s, rollouts=%d)", self.served.name, len(running))
            error = ServiceError(
                "internal", "The rollout failed because of an internal error.", fix="Send the same request again."
            )
            ended.update(dict.fromkeys(map(id, running), error))
        return ended

    def _step_together(self, rollouts: Sequence[ActiveRollout], ended: dict[int, ServiceError | None]) -> None:
        outputs, states = self._model.step(
            _concatenated([r.inputs for r in rollouts]), _concatenated([r.states for r in rollouts]), learn=False
        )
        outputs = {spec.name: outputs[spec.name] for spec in self._model.manifest.answered}  # of a pair, no comparison
        start = 0
        for rollout in rollouts:
            rows = slice(start, start + rollout.rows)
            start = rows.stop
            try:
                if rollout.advance(_rows(outputs, rows), _rows(states, rows)):
                    ended[id(rollout)] = None
            except ServiceError as exc:
                ended[id(rollout)] = exc


def _concatenated(parts: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rows(arrays: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    return {name: array[rows] for name, array in arrays.items()}


def _deadline_error(rollout: ActiveRollout) -> ServiceError:
    return ServiceError(
        "model_timeout",
        f"The rollout reached timestep {len(rollout.outputs)} of {rollout.horizon} before its deadline.",
        fix="Request a shorter horizon or fewer samples, or raise `request_timeout_s`.",
    )


def _resolve(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], error: ServiceError | None) -> None:
    def resolve() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits any more
        loop.call_soon_threadsafe(resolve)
