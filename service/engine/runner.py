"""`ModelRunner`: runs batches of one model, in the event loop where that is quick and in a thread where it is not."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model_export.errors import ModelLoadError, ModelTimeoutError
from model_export.manifest import Array
from service.engine.batch import finite_rows, stack_inputs
from service.engine.types import Timestep
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.engine.models import ServedModel
    from service.engine.observer import EngineObserver

INLINE_S = 0.002  # longer runs go to a thread, so that health checks and other models stay prompt


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a batch.

    Attributes:
        rows: The rows that ran well, as indices into the batch.
        outputs: One array per answered output, `(len(rows), T, *row)`.
        states: One array per state, `(len(rows), *row)`.
        refused: Why each of the other rows did not.
    """

    rows: list[int]
    outputs: dict[str, Array]
    states: dict[str, Array]
    refused: dict[int, ServiceError]


@dataclass(slots=True)
class RunClock:
    """How long model runs take; the engine's watchdog reads it from its own thread.

    Attributes:
        running: When the run that is going on in each thread began, on the monotonic clock.
        seconds_per_row: What a row takes, learnt; infinite before the first run, which so goes to the thread.
    """

    running: dict[int, float] = field(default_factory=dict)
    seconds_per_row: float = math.inf

    def longest(self, now: float) -> float:
        """Return the seconds that the longest of the runs going on has taken."""
        return max((now - began for began in list(self.running.values())), default=0.0)

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a run how long a row takes."""
        sample = seconds / rows
        known = self.seconds_per_row
        self.seconds_per_row = sample if math.isinf(known) else 0.8 * known + 0.2 * sample


class ModelRunner:
    """Runs rows of one model; one bad row fails alone."""

    def __init__(self, served: ServedModel, observer: EngineObserver) -> None:
        """Begin.

        Args:
            served: The model.
            observer: Hears of each run.
        """
        self.clock = RunClock()
        self._served = served
        self._model = served.step_model
        self._observer = observer
        self._narrowed = any(f.store_dtype != f.dtype for f in self._model.fields)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{served.name}")

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False)

    async def run(self, timesteps: Sequence[Timestep], states: Sequence[bytes]) -> Ran:
        """Run a batch; where onnxruntime refuses it, run its rows alone, so that only the bad ones fail.

        Args:
            timesteps: Of different streams, all of one length.
            states: Each stream's packed state row.

        Raises:
            ServiceError: `model_timeout`: the run took too long, and nothing came of it.
        """
        try:
            outputs, after = await self._run(timesteps, states)
        except ModelTimeoutError as exc:
            raise ServiceError("model_timeout", exc.problem, fix=exc.fix) from exc
        except ModelLoadError as exc:
            if len(timesteps) == 1:
                return Ran([], {}, {}, {0: _unrunnable(exc)})
            return _joined([await self.run([t], [s]) for t, s in zip(timesteps, states, strict=True)])
        return self._finite(len(timesteps), outputs, after)

    async def _run(
        self, timesteps: Sequence[Timestep], states: Sequence[bytes]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        rows, length = len(timesteps), timesteps[0].length
        inputs = {spec.name: stack_inputs(timesteps, spec.name) for spec in self._served.manifest.inputs}
        packed = np.frombuffer(b"".join(states), np.uint8).reshape(rows, self._model.state_bytes)
        began = time.perf_counter()
        if self.clock.seconds_per_row * rows * length < INLINE_S:
            result = self._execute(inputs, packed)
        else:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(self._thread, self._execute, inputs, packed)
        seconds = time.perf_counter() - began
        self.clock.note(rows * length, seconds)
        self._observer.batch(self._served.name, rows, seconds)
        return result

    def _execute(self, inputs: Mapping[str, Array], packed: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the model on `(rows, T, *row)` inputs; the outputs have the same leading axes. Maybe in a thread."""
        states = self._model.unpack(packed)
        thread = threading.get_ident()
        self.clock.running[thread] = time.monotonic()
        try:
            length = next(iter(inputs.values())).shape[1]
            if length > 1:
                return self._model.chunk(inputs, states)
            outputs, states = self._model.step({name: array[:, 0] for name, array in inputs.items()}, states)
            return {name: array[:, None] for name, array in outputs.items()}, states
        finally:
            del self.clock.running[thread]

    def _finite(self, rows: int, outputs: dict[str, Array], states: dict[str, Array]) -> Ran:
        """Refuse the rows in which the model made NaN or infinity."""
        if self._narrowed:  # a number too big for the store's type becomes an infinity there
            states = self._model.unpack(self._model.pack(states, rows=rows))
        good, bad = finite_rows({**{f"output {n}": a for n, a in outputs.items()}, **states})
        if not bad:
            return Ran(list(range(rows)), outputs, states, {})
        return Ran(
            [int(row) for row in np.flatnonzero(good)],
            {name: array[good] for name, array in outputs.items()},
            {name: array[good] for name, array in states.items()},
            {row: _non_finite(name) for row, name in bad.items()},
        )


def _joined(alone: Sequence[Ran]) -> Ran:
    """Return rows that were run one by one as one batch."""
    good = [ran for ran in alone if ran.rows]
    return Ran(
        [row for row, ran in enumerate(alone) if ran.rows],
        {name: np.concatenate([ran.outputs[name] for ran in good]) for name in (good[0].outputs if good else ())},
        {name: np.concatenate([ran.states[name] for ran in good]) for name in (good[0].states if good else ())},
        {row: error for row, ran in enumerate(alone) for error in ran.refused.values()},
    )


def _non_finite(name: str) -> ServiceError:
    return ServiceError(
        "non_finite_state",
        f"The model made NaN or infinity in {name!r}; the step was not applied.",
        fix="Leave this timestep out, or reset the stream.",
    )


def _unrunnable(exc: ModelLoadError) -> ServiceError:
    reason = str(exc.__cause__ or exc).rsplit("Status Message:", 1)[-1].strip().splitlines()[0][:200]
    return ServiceError(
        "bad_input",
        f"The model cannot run on these values: {reason}",
        fix="Check that every number is one that the model knows, say an index within its vocabulary.",
    )
