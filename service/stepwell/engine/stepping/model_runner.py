"""`ModelRunner`: runs batches of one model: fast runs on the event loop, slow ones in a thread."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from stepwell.engine.packing import finite_rows
from stepwell.errors import ServiceError
from stepwell_export.runtime.errors import ModelLoadError, ModelTimeoutError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.state_packing import pack, unpack

if TYPE_CHECKING:
    from stepwell.engine.observer import EngineObserver
    from stepwell.models.joined import JoinedRun
    from stepwell.models.served import ServedModel

_NONE: Final[Mapping[int, ServiceError]] = MappingProxyType({})
MAX_INLINE_S = 0.002  # longer runs use a thread, so that they delay neither health checks nor other models


class BatchRun(Struct, frozen=True, gc=False):
    """The result of a run.

    Attributes:
        outputs: One array per returned output, `(accepted rows, T, *row)`.
        states: The packed states after the run, `(accepted rows, bytes)` uint8.
        rows: Indices of the accepted rows in the batch; None: all.
        rejected: The error of each other row, by its index in the batch.
        beside: What joined versions return beside their predictions.
    """

    outputs: dict[str, Array]
    states: Array
    rows: list[int] | None = None
    rejected: Mapping[int, ServiceError] = _NONE
    beside: JoinedRun | None = None


class ModelRunner:
    """Runs batches of one model; a bad row fails alone.

    Attributes:
        needed: The inputs that must have values, but may be missing in a version by which requests were decoded.
    """

    def __init__(self, served: ServedModel, observer: EngineObserver) -> None:
        """Start the model's thread."""
        self._served = served
        self._model = served.step_model
        self._observer = observer
        self.needed: set[str] = set()
        # If the floats have the same type and come first, they are checked as one array.
        self._fields = self._model.fields
        floats = [field for field in self._fields if field.store_dtype.kind == "f"]
        types = {field.store_dtype for field in floats}
        self._float_bytes = sum([field.nbytes for field in floats])
        are_first = all(field.offset < self._float_bytes for field in floats)
        self._one_float = types.pop() if len(types) == 1 and are_first else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{served.name}")
        self._row_s = math.inf  # measured seconds per row and timestep; infinite: the first run uses the thread

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)

    async def run(self, inputs: Mapping[str, Array], states: Array) -> BatchRun:
        """Run a batch; if onnxruntime fails on it, run each row alone, so that only the bad rows fail.

        Args:
            inputs: `(rows, T, *row)` of the declared dtype, by input.
            states: Packed states, `(rows, bytes)` uint8.

        Raises:
            ServiceError: `model_timeout`: the run took too long and was ended.
        """
        result = await (self._run_with_values if self.needed else self._run_rows)(inputs, states)
        if not self._served.parts or (joined := self._served.joined) is None:
            return result
        outputs, beside = joined.split(result.outputs)
        return replace(result, outputs=outputs, beside=beside)

    async def _run_with_values(self, inputs: Mapping[str, Array], states: Array) -> BatchRun:
        """Run the rows in which no input is missing that must have a value, and reject the others."""
        rejected: dict[int, ServiceError] = {}
        for name in sorted(self.needed):
            missing = np.isnan(inputs[name]).reshape(len(states), -1).any(axis=1)
            rejected |= dict.fromkeys(np.flatnonzero(missing).tolist(), missing_input(name, self._served))
        if not rejected:
            return await self._run_rows(inputs, states)
        rows = [row for row in range(len(states)) if row not in rejected]
        if not rows:
            return BatchRun({}, states[:0], [], rejected)
        result = await self._run_rows({name: array[rows] for name, array in inputs.items()}, states[rows])
        accepted = rows if result.rows is None else [rows[row] for row in result.rows]
        rejected |= {rows[row]: error for row, error in result.rejected.items()}
        return replace(result, rows=accepted, rejected=rejected)

    async def _run_rows(self, inputs: Mapping[str, Array], states: Array) -> BatchRun:
        rows, length = next(iter(inputs.values())).shape[:2]
        started = time.perf_counter()
        try:
            if self._row_s * rows * length < MAX_INLINE_S:
                outputs, new_states = self._execute(inputs, states, length)
                seconds = run_s = time.perf_counter() - started
            else:
                run = asyncio.get_running_loop().run_in_executor(self._thread, self._timed, inputs, states, length)
                (outputs, new_states), run_s = await run
                seconds = time.perf_counter() - started
        except ModelTimeoutError as exc:
            raise ServiceError("model_timeout", exc.problem, fix=exc.fix) from exc
        except ModelLoadError as exc:
            if rows == 1:
                return BatchRun({}, states[:0], [], {0: model_rejected_input(exc)})
            single_rows = [slice(i, i + 1) for i in range(rows)]
            return _concatenated(
                [await self._run_rows({n: a[row] for n, a in inputs.items()}, states[row]) for row in single_rows]
            )
        row_s, average = run_s / (rows * length), self._row_s
        # The average rises slowly after a long run, since other work may have kept the machine busy.
        self._row_s = row_s if math.isinf(average) else average + (row_s - average) * (0.5 if row_s < average else 0.05)
        self._observer.batch_run(self._served.name, rows, seconds)
        return self._drop_non_finite(outputs, new_states)

    def _timed(
        self, inputs: Mapping[str, Array], packed: Array, length: int
    ) -> tuple[tuple[dict[str, Array], Array], float]:
        """Run the model in a thread, and return the result with the thread's CPU time in seconds.

        The wall-clock time of a run includes the time in which a busy event loop holds the interpreter lock; by that
        measure, no run would be short enough for the loop again.
        """
        started = time.thread_time()
        result = self._execute(inputs, packed, length)
        return result, time.thread_time() - started

    def _execute(self, inputs: Mapping[str, Array], packed: Array, length: int) -> tuple[dict[str, Array], Array]:
        """Run the model on `(rows, T, *row)` inputs; the outputs have the same leading axes. May run in a thread."""
        states = unpack(self._fields, packed)
        if length > 1:
            outputs, states = self._model.chunk(inputs, states)
        else:
            outputs, states = self._model.step({name: array[:, 0] for name, array in inputs.items()}, states)
            outputs = {name: array[:, None] for name, array in outputs.items()}
        return outputs, pack(self._fields, states, len(packed))

    def _drop_non_finite(self, outputs: dict[str, Array], states: Array) -> BatchRun:
        """Reject the rows with NaN or infinity in an output or state, also if only the type in the store overflows."""
        if self._one_float is not None:
            for values in (*outputs.values(), states[:, : self._float_bytes].view(self._one_float)):
                if values.dtype.kind == "f" and b"\0" in np.isfinite(values).tobytes():  # quicker than `numpy.all`
                    break
            else:
                return BatchRun(outputs, states)
        finite, not_finite = finite_rows(
            {f"output {name}": a for name, a in outputs.items()} | unpack(self._fields, states)
        )
        if not not_finite:
            return BatchRun(outputs, states)
        return BatchRun(
            {name: array[finite] for name, array in outputs.items()},
            states[finite],
            [int(row) for row in np.flatnonzero(finite)],
            {row: non_finite_state(name) for row, name in not_finite.items()},
        )


def _concatenated(single_rows: Sequence[BatchRun]) -> BatchRun:
    finite = [row for row, result in enumerate(single_rows) if not result.rejected]
    outputs = single_rows[finite[0]].outputs if finite else {}
    return BatchRun(
        {name: np.concatenate([single_rows[row].outputs[name] for row in finite]) for name in outputs},
        np.concatenate([result.states for result in single_rows]),
        finite,
        {row: error for row, result in enumerate(single_rows) for error in result.rejected.values()},
    )


def non_finite_state(name: str, *, place: str = "") -> ServiceError:
    """Return the error for NaN or infinity in an output or state.

    Args:
        name: The output or state.
        place: Where in the request it occurred, for the message; empty: not known.
    """
    return ServiceError(
        "non_finite_state",
        f"The model computed NaN or infinity in {name!r}{' at ' * bool(place)}{place}; nothing was applied.",
        fix="Leave this timestep out, or reset the stream.",
    )


def missing_input(name: str, served: ServedModel) -> ServiceError:
    """Return the error for a missing value in an input that must have one in the version that its stream is on."""
    return ServiceError(
        "bad_input",
        f"Input {name!r} has a missing value; expected numbers only: the stream is on version {served.version} of "
        f"{served.name}, which accepts no missing values there.",
        fix="Send a number, or move the stream to a version that accepts missing values.",
    )


def model_rejected_input(exc: ModelLoadError) -> ServiceError:
    """Return the error for input values on which onnxruntime fails."""
    reason = str(exc.__cause__ or exc).rsplit("Status Message:", 1)[-1].strip().splitlines()[0][:200]
    return ServiceError(
        "bad_input",
        f"The model cannot run on these values: {reason}",
        fix="Check that every value is valid for the model, for example that an index is within its vocabulary.",
    )
