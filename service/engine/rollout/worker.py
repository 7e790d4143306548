"""`RolloutWorker`: runs the rollouts of one model timestep by timestep, all that go on at once in one run each time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model_export.errors import ModelLoadError, ModelTimeoutError
from model_export.manifest import Array
from service.engine.packing import finite_rows
from service.engine.rollout.feedback import FeedbackInputs
from service.engine.stepping.model_runner import model_rejected_input, non_finite_state
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.models.registry import ServedModel

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ActiveRollout:
    """One rollout: what it begins with, and how far it has come.

    Attributes:
        inputs: What is fed next, `(samples, *row)` by name.
        states: What is carried, `(samples, *row)` by name.
        feeding: Makes each next input.
        horizon: Timesteps to go in all.
        deadline: When it is given up, on the monotonic clock.
        first: What was fed first, `(samples, *row)` by name.
        outputs: A prediction for each timestep gone, each `(samples, *row)` by name.
        followed: The inputs that each prediction was made into, likewise.
    """

    inputs: dict[str, Array]
    states: Mapping[str, Array]
    feeding: FeedbackInputs
    horizon: int
    deadline: float
    first: Mapping[str, Array] = field(default_factory=dict)
    outputs: list[Mapping[str, Array]] = field(default_factory=list)
    next_inputs: list[Mapping[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.first = self.inputs

    @property
    def fed_inputs(self) -> dict[str, Array]:
        """What the first sample was fed, `(horizon, *row)` by name."""
        fed = [self.first, *self.next_inputs[:-1]]
        return {name: np.stack([inputs[name][0] for inputs in fed]) for name in self.first}

    @property
    def rows(self) -> int:
        """Its samples."""
        return len(next(iter(self.inputs.values())))

    def advance(self, outputs: Mapping[str, Array], states: Mapping[str, Array]) -> bool:
        """Take a timestep's outcome; True: there is nothing more to do.

        Raises:
            ServiceError: It is not finite, or nothing can be made of it.
        """
        t = len(self.outputs) + 1
        named = {f"output {name}": array for name, array in outputs.items()}
        if bad := finite_rows({**named, **states})[1]:
            raise non_finite_state(next(iter(bad.values())), place=f"timestep {t} of the rollout")
        self.inputs = self.feeding.next(outputs, t, self.inputs)
        self.states = states
        self.outputs.append(outputs)
        self.next_inputs.append(self.inputs)
        return t == self.horizon


class RolloutWorker:
    """Runs the rollouts of one model in a thread; one that comes joins those that go on at their next timestep.

    Rows do not feel each other: a rollout answers the same alone and among others.
    """

    def __init__(self, served: ServedModel, *, most_rows: int) -> None:
        """Begin with nothing to do.

        Args:
            served: The model.
            most_rows: Samples that go on together; more wait for room.
        """
        self.served = served
        self._model = served.step_model
        self._max_rows = most_rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"rollout-{served.name}")
        self._lock = threading.Lock()  # of the two below
        self._waiting: deque[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]] = deque()
        self._is_running = False
        self._is_closed = False

    @property
    def idle(self) -> bool:
        """Whether nothing goes on."""
        return not self._is_running

    @property
    def waiting(self) -> int:
        """Rollouts that wait for room."""
        return len(self._waiting)

    async def run(self, roll: ActiveRollout) -> None:
        """Run a rollout to its end.

        Raises:
            ServiceError: `model_timeout`, `non_finite_state`, `non_finite_state` or `bad_input`.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._waiting.append((roll, done, loop))
            begin, self._is_running = not self._is_running, True
        if begin:
            self._thread.submit(self._work)
        await done

    def close(self) -> None:
        """Give up what goes on, and let the thread go."""
        self._is_closed = True
        self._thread.shutdown(wait=False)

    # ---------------------------------------------------------------- in the thread

    def _work(self) -> None:
        active: list[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]] = []
        while True:
            self._admit(active)
            if self._is_closed:
                self._give_up(active)
            if not active:
                return
            rolls = [roll for roll, done, _ in active]
            ended = self._step(rolls)
            left = []
            for one in active:
                roll, done, loop = one
                if id(roll) in ended:
                    _resolve(loop, done, ended[id(roll)])
                elif not done.cancelled():
                    left.append(one)
            active[:] = left

    def _admit(self, active: list[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]]) -> None:
        rows = sum(roll.rows for roll, _, _ in active)
        with self._lock:
            while self._waiting and (not active or rows + self._waiting[0][0].rows <= self._max_rows):
                rows += self._waiting[0][0].rows
                active.append(self._waiting.popleft())
            self._is_running = bool(active)

    def _give_up(self, active: list[tuple[ActiveRollout, asyncio.Future[None], asyncio.AbstractEventLoop]]) -> None:
        with self._lock:
            active += self._waiting
            self._waiting.clear()
        error = ServiceError("draining", "The service ended first.", fix="Send it to another replica.")
        for _, done, loop in active:
            _resolve(loop, done, error)
        active.clear()

    def _step(self, rolls: Sequence[ActiveRollout]) -> dict[int, ServiceError | None]:
        """Move rollouts by a timestep; return those that have ended by their identity, and what went wrong in them."""
        ended: dict[int, ServiceError | None] = {}
        now = time.monotonic()
        for roll in rolls:
            if now > roll.deadline:
                ended[id(roll)] = _too_late(roll)
        going = [roll for roll in rolls if id(roll) not in ended]
        if not going:
            return ended
        try:
            self._step_together(going, ended)
        except ModelLoadError as exc:  # one of them has values that the model cannot run on
            if len(going) == 1:
                ended[id(going[0])] = model_rejected_input(exc)
            else:
                for roll in going:
                    ended.update(self._step([roll]))
        except ModelTimeoutError as exc:
            ended.update(dict.fromkeys(map(id, going), ServiceError("model_timeout", exc.problem, fix=exc.fix)))
        except Exception:  # noqa: BLE001 - one batch's fault must not end the thread; it is logged
            _log.exception("A rollout of model %s failed", self.served.name)
            error = ServiceError(
                "internal", "The rollout failed for a reason of the server's own.", fix="Send it again."
            )
            ended.update(dict.fromkeys(map(id, going), error))
        return ended

    def _step_together(self, rolls: Sequence[ActiveRollout], ended: dict[int, ServiceError | None]) -> None:
        outputs, states = self._model.step(_joined([r.inputs for r in rolls]), _joined([r.states for r in rolls]))
        at = 0
        for roll in rolls:
            rows = slice(at, at + roll.rows)
            at = rows.stop
            try:
                if roll.advance(_part(outputs, rows), _part(states, rows)):
                    ended[id(roll)] = None
            except ServiceError as exc:
                ended[id(roll)] = exc


def _joined(parts: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _part(arrays: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    return {name: array[rows] for name, array in arrays.items()}


def _too_late(roll: ActiveRollout) -> ServiceError:
    return ServiceError(
        "model_timeout",
        f"The rollout came to timestep {len(roll.outputs)} of {roll.horizon} in the time that it had.",
        fix="Ask for a shorter horizon or fewer samples, or raise `request_timeout_s`.",
    )


def _resolve(loop: asyncio.AbstractEventLoop, done: asyncio.Future[None], error: ServiceError | None) -> None:
    def tell() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        loop.call_soon_threadsafe(tell)
