"""`ModelRunner`: runs batches of one model, in the event loop where that is quick and in a thread where it is not."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model_export.errors import ModelLoadError, ModelTimeoutError
from model_export.manifest import Array
from service.engine.packing import all_finite, finite_rows
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.engine.observer import EngineObserver
    from service.models.registry import ServedModel

MAX_INLINE_S = 0.002  # longer runs go to a thread, so that health checks and other models stay prompt


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a batch.

    Attributes:
        outputs: One array per answered output, `(rows that ran well, T, *row)`.
        states: The packed states after it, `(rows that ran well, bytes)` uint8.
        rows: Those rows as indices into the batch; None: all.
        refused: Why each of the other rows did not run well.
    """

    outputs: dict[str, Array]
    states: Array
    rows: list[int] | None = None
    rejected: Mapping[int, ServiceError] = field(default_factory=dict)


class ModelRunner:
    """Runs rows of one model; one bad row fails alone."""

    def __init__(self, served: ServedModel, observer: EngineObserver) -> None:
        """Begin.

        Args:
            served: The model.
            observer: Hears of each run.
        """
        self._served = served
        self._model = served.step_model
        self._observer = observer
        self._inputs = served.inputs
        stored = {field.store_dtype for field in self._model.fields}
        # States of one type are looked through as one array.
        self._one_float = stored.pop() if len(stored) == 1 and next(iter(stored)).kind == "f" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{served.name}")
        self._row_s = math.inf  # seconds that a row takes, learnt; so the first run goes to the thread

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False)

    def inputs(self, data: Sequence[Sequence[bytes]], length: int) -> dict[str, Array]:
        """Return the inputs of a batch, `(rows, T, *row)`.

        Args:
            data: Each row's bytes of each input, in the order of their names.
            length: T, the timesteps of each row.
        """
        rows = len(data)
        return {
            spec.name: np.frombuffer(b"".join(column), spec.dtype).reshape(rows, length, *spec.row_shape)
            for spec, column in zip(self._inputs, zip(*data, strict=True), strict=True)
        }

    async def run(self, inputs: Mapping[str, Array], states: Array) -> RunResult:
        """Run a batch; where onnxruntime refuses it, run its rows alone, so that only the bad ones fail.

        Args:
            inputs: `(rows, T, *row)` of its declared dtype by input.
            states: Packed states, `(rows, bytes)` uint8.

        Raises:
            ServiceError: `model_timeout`: the run took too long, and nothing came of it.
        """
        try:
            outputs, after = await self._run(inputs, states)
        except ModelTimeoutError as exc:
            raise ServiceError("model_timeout", exc.problem, fix=exc.fix) from exc
        except ModelLoadError as exc:
            if len(states) == 1:
                return RunResult({}, states[:0], [], {0: model_rejected_input(exc)})
            alone = [slice(at, at + 1) for at in range(len(states))]
            return _joined([await self.run({n: a[row] for n, a in inputs.items()}, states[row]) for row in alone])
        return self._drop_non_finite(outputs, after)

    async def _run(self, inputs: Mapping[str, Array], states: Array) -> tuple[dict[str, Array], Array]:
        rows, length = next(iter(inputs.values())).shape[:2]
        began = time.perf_counter()
        if self._row_s * rows * length < MAX_INLINE_S:
            result = self._execute(inputs, states, length)
            seconds = taken = time.perf_counter() - began
        else:
            loop = asyncio.get_running_loop()
            result, taken = await loop.run_in_executor(self._thread, self._timed, inputs, states, length)
            seconds = time.perf_counter() - began
        self._record_duration(taken / (rows * length))
        self._observer.batch_run(self._served.name, rows, seconds)
        return result

    def _record_duration(self, row_s: float) -> None:
        """Learn how long a row takes, slowly where it was long: the machine may have been busy elsewhere."""
        known = self._row_s
        self._row_s = row_s if math.isinf(known) else known + (row_s - known) * (0.5 if row_s < known else 0.05)

    def _timed(
        self, inputs: Mapping[str, Array], packed: Array, length: int
    ) -> tuple[tuple[dict[str, Array], Array], float]:
        """Run the model in a thread, and tell its processor time.

        By the clock on the wall a run beside a busy event loop takes as long as the loop keeps the interpreter, and
        would never be found quick enough for the loop again.
        """
        began = time.thread_time()
        result = self._execute(inputs, packed, length)
        return result, time.thread_time() - began

    def _execute(self, inputs: Mapping[str, Array], packed: Array, length: int) -> tuple[dict[str, Array], Array]:
        """Run the model on `(rows, T, *row)` inputs; the outputs have the same leading axes. Maybe in a thread."""
        states = self._model.unpack(packed)
        if length > 1:
            outputs, states = self._model.chunk(inputs, states)
        else:
            outputs, states = self._model.step({name: array[:, 0] for name, array in inputs.items()}, states)
            outputs = {name: array[:, None] for name, array in outputs.items()}
        return outputs, self._model.pack(states, rows=len(packed))

    def _drop_non_finite(self, outputs: dict[str, Array], states: Array) -> RunResult:
        """Refuse the rows in which the model made NaN or infinity; also one too big for the type in the store."""
        if self._one_float is not None and all_finite([*outputs.values(), states.view(self._one_float)]):
            return RunResult(outputs, states)
        good, bad = finite_rows({f"output {name}": a for name, a in outputs.items()} | self._model.unpack(states))
        if not bad:
            return RunResult(outputs, states)
        return RunResult(
            {name: array[good] for name, array in outputs.items()},
            states[good],
            [int(row) for row in np.flatnonzero(good)],
            {row: non_finite_state(name) for row, name in bad.items()},
        )


def _joined(alone: Sequence[RunResult]) -> RunResult:
    """Return rows that were run one by one as one batch."""
    good = [row for row, ran in enumerate(alone) if not ran.rejected]
    outputs = alone[good[0]].outputs if good else {}
    return RunResult(
        {name: np.concatenate([alone[row].outputs[name] for row in good]) for name in outputs},
        np.concatenate([ran.states for ran in alone]),
        good,
        {row: error for row, ran in enumerate(alone) for error in ran.rejected.values()},
    )


def non_finite_state(name: str, *, at: str = "") -> ServiceError:
    """Return the refusal of what a model made: NaN or infinity in an output or state, at a place for the message."""
    return ServiceError(
        "non_finite_state",
        f"The model made NaN or infinity in {name!r}{' at ' * bool(at)}{at}; nothing was applied.",
        fix="Leave this timestep out, or reset the stream.",
    )


def model_rejected_input(exc: ModelLoadError) -> ServiceError:
    """Return the refusal of values that onnxruntime fails on."""
    reason = str(exc.__cause__ or exc).rsplit("Status Message:", 1)[-1].strip().splitlines()[0][:200]
    return ServiceError(
        "bad_input",
        f"The model cannot run on these values: {reason}",
        fix="Check that every number is one that the model knows, say an index within its vocabulary.",
    )
