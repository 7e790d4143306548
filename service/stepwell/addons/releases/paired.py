"""`PairedModel`: two versions of a model that consume the same inputs, run as one model with the states of both.

The old version runs exactly as it would run alone. Whatever the candidate does (an error, a run that is too long, NaN)
never changes the old version's predictions or states: the row is marked as failed, and continues by the old half.

A packed state row has the old version's row, the candidate's row, and 32 bytes that describe the pair (`PAIR_DTYPE`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepwell.addons.releases.pair_state import PAIR_BYTES, PAIR_DTYPE, PairMode, PairState, pair_fingerprint, pair_rows
from stepwell.addons.releases.version_differences import tensors_differ
from stepwell_export.runtime.errors import ModelTimeoutError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.state_packing import StateField, initial_states, pack, unpack
from stepwell_export.runtime.step_model import StepModel

_log = logging.getLogger(__name__)

OLD, NEW, PAIR = "old.", "new.", "pair"
"""Prefixes of the halves' state names, and the name of the state that describes the pair."""

OTHER, COMPARED, FAILED, WARM_NOW = "other/", "pair/compared", "pair/failed", "pair/warm_now"
"""What `step` and `chunk` return beside the outputs: the outputs of the half that does not respond, prefixed; which
timesteps can be compared, bool; per row whether the candidate failed now: 1 by an error, 2 by a value that is not
finite; and whether it has consumed the last of its `warm_steps` now."""

_Outcome = tuple[dict[str, Array], dict[str, Array]]
_Call = Callable[[StepModel, Mapping[str, Array], Mapping[str, Array]], _Outcome]


class Beside(NamedTuple):
    """What a paired run returns beside its predictions.

    Attributes:
        answers: The predictions of the half that responds, `(rows, T, *row)` by output.
        others: Those of the other half; zeros where it failed.
        compared: Which timesteps can be compared, `(rows, T)` bool.
        failed: Whether the candidate failed in this run, `(rows, 1)` uint8; see `paired.FAILED`.
        warm_now: Whether the candidate has consumed the last of its `warm_steps` in this run, `(rows, 1)` bool.
        mode: Which half responds.
    """

    answers: Mapping[str, Array]
    others: Mapping[str, Array]
    compared: Array
    failed: Array
    warm_now: Array
    mode: PairMode

    @property
    def is_warm_now(self) -> Array:
        """`warm_now`, `(rows,)` bool."""
        column: Array = self.warm_now[:, 0]
        return column

    @property
    def responders(self) -> Array:
        """Which half has responded to each timestep: 0 the old version, 1 the candidate; `(rows, T)` uint8."""
        return self.compared.view(np.uint8) if self.mode == "ramp" else np.zeros(self.compared.shape, np.uint8)

    @property
    def tried(self) -> tuple[Mapping[str, Array], list[bool]]:
        """The candidate's predictions, `(rows, T, *row)` by output, and for each row whether it failed now."""
        has_failed, where = (self.failed[:, 0] > 0).tolist(), self.compared
        if self.mode == "shadow":
            return self.others, has_failed
        return {name: _chosen(where, answers, self.others[name]) for name, answers in self.answers.items()}, has_failed

    def select(self, indices: Sequence[int]) -> Beside:
        """Return some of the rows."""
        rows = list(indices)
        return Beside(
            {name: array[rows] for name, array in self.answers.items()},
            {name: array[rows] for name, array in self.others.items()},
            self.compared[rows],
            self.failed[rows],
            self.warm_now[rows],
            self.mode,
        )


class PairedModel:
    """Two step models with equal inputs and outputs; used as a `StepModel` is.

    Attributes:
        old: The old version.
        new: The candidate.
        mode: Which half responds.
        is_fixed: The same half responds to every timestep: the mode is `shadow`.
        manifest: That of the half that responds.
        fields: The states of both, prefixed, and the state that describes the pair.
        state_bytes: Bytes of one packed state row.
        fingerprint: 8 bytes, of both fingerprints and the mode.
        run_s: CPU seconds of the runs so far, of the old version and of the candidate.
    """

    def __init__(self, old: StepModel, new: StepModel, mode: PairMode) -> None:
        """Pair two versions.

        Args:
            old: The old version.
            new: The candidate.
            mode: Which half responds.

        Raises:
            ValueError: Their inputs or outputs differ.
        """
        if (difference := tensors_differ(old.manifest, new.manifest)) is not None:
            raise ValueError(difference)
        self.old, self.new, self.mode, self.is_fixed = old, new, mode, mode == "shadow"
        self.manifest = (old if mode == "shadow" else new).manifest
        self.fingerprint = pair_fingerprint(old.fingerprint, new.fingerprint, mode)
        self.weight_files: list[Path] = []
        self.fields = [
            *(replace(field, name=OLD + field.name) for field in old.fields),
            *(replace(field, name=NEW + field.name, offset=field.offset + old.state_bytes) for field in new.fields),
            self._pair_field(old.state_bytes + new.state_bytes),
        ]
        self.state_bytes = old.state_bytes + new.state_bytes + PAIR_BYTES
        self.initial_state = pack(self.fields, self.initial_states(1), 1)[0].tobytes()
        self.run_s = [0.0, 0.0]
        self._has_logged = False

    def _pair_field(self, offset: int) -> StateField:
        state = PairState(self.old.fingerprint, self.new.fingerprint, self.mode, 0).encode()
        byte = np.dtype(np.uint8)
        return StateField(PAIR, byte, byte, (PAIR_BYTES,), offset, PAIR_BYTES, np.frombuffer(state, np.uint8))

    def step(self, inputs: Mapping[str, Array], states: Mapping[str, Array], *, learn: bool = True) -> _Outcome:
        """Consume one timestep of every row; as `StepModel.step`, with what `OTHER`, `COMPARED` and `FAILED` name.

        Raises:
            ModelTimeoutError: The run of the old version was ended.
            ModelLoadError: onnxruntime failed in the old version.
        """
        call = partial(_step_as_chunk, learn=learn)
        outputs, next_states = self._run_both(call, {n: a[:, None] for n, a in inputs.items()}, states)
        return {name: array[:, 0] for name, array in outputs.items()}, next_states

    def chunk(self, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> _Outcome:
        """Consume T timesteps of every row; otherwise as `step`."""
        return self._run_both(StepModel.chunk, inputs, states)

    def initial_states(self, rows: int) -> dict[str, Array]:
        """Return the states that `rows` new streams start from, shape `(rows, *shape)` each."""
        return initial_states(self.fields, rows)

    def pack(self, states: Mapping[str, Array], *, rows: int) -> Array:
        """Pack states into rows of bytes, `(rows, state_bytes)` uint8."""
        return pack(self.fields, states, rows)

    def unpack(self, packed: Array) -> dict[str, Array]:
        """Undo `pack`."""
        return unpack(self.fields, packed)

    def split(self, outputs: Mapping[str, Array]) -> tuple[dict[str, Array], Beside | None]:
        """Return the predictions of a run, and what is beside them; None: there was no row."""
        if COMPARED not in outputs:
            return dict(outputs), None
        others = {name[len(OTHER) :]: array for name, array in outputs.items() if name.startswith(OTHER)}
        answers = {name: outputs[name] for name in others}
        return answers, Beside(answers, others, outputs[COMPARED], outputs[FAILED], outputs[WARM_NOW], self.mode)

    def responded(self, states: Array) -> Array:
        """Return which half responded to the newest timestep of each packed row: 0 the old version, 1 the candidate."""
        responded: Array = pair_rows(states)["responded"]
        return responded

    def part(self, state: bytes, i: int) -> bytes:
        """Return the packed state of a half, 0 the old version, 1 the candidate, from that of the pair."""
        return state[self.old.state_bytes : -PAIR_BYTES] if i else state[: self.old.state_bytes]

    def terminate(self, *, longer_than: float = 0.0) -> None:
        """End runs of either half that take too long; each has the whole time for itself."""
        self.old.terminate(longer_than=longer_than)
        self.new.terminate(longer_than=longer_than)

    # ---------------------------------------------------------------- running

    def _run_both(self, call: _Call, inputs: Mapping[str, Array], states: Mapping[str, Array]) -> _Outcome:
        """Run both halves on `(rows, T, *row)` inputs."""
        old_states = {field.name: states[OLD + field.name] for field in self.old.fields}
        new_states = {field.name: states[NEW + field.name] for field in self.new.fields}
        started = time.thread_time()
        old_outputs, old_next = call(self.old, inputs, old_states)
        between = time.thread_time()
        candidate = self._run_candidate(call, inputs, new_states, old_outputs)
        self.run_s[0] += between - started
        self.run_s[1] += time.thread_time() - between
        length = next(iter(inputs.values())).shape[1]
        outputs, new_next, packed = self._compared(candidate, new_states, states[PAIR], old_outputs, length)
        next_states = {OLD + name: array for name, array in old_next.items()}
        next_states |= {NEW + name: array for name, array in new_next.items()}
        next_states[PAIR] = packed
        return outputs, next_states

    def _compared(
        self,
        candidate: tuple[dict[str, Array], dict[str, Array], Array],
        new_states: Mapping[str, Array],
        pair_state: Array,
        old_outputs: Mapping[str, Array],
        length: int,
    ) -> tuple[dict[str, Array], dict[str, Array], Array]:
        """Join the runs of both halves.

        Args:
            candidate: What `_run_candidate` returns.
            new_states: The candidate's states before its run.
            pair_state: The states that describe the pairs, before it.
            old_outputs: What the old version has computed.
            length: T.

        Returns:
            The outputs of `step`, the candidate's states, and the states that describe the pairs.
        """
        new_outputs, new_next, failure = candidate
        packed = pair_state.copy()  # as bytes: of a structured array, NumPy copies field by field
        pair = packed.view(PAIR_DTYPE)[:, 0]
        rows = len(packed)
        outputs, others = dict(old_outputs), new_outputs
        compared, warm_now = np.ones((rows, length), bool), np.zeros(rows, bool)
        if failure.any() or pair["failed"].any() or pair["warm_steps"].any():
            warm, had_failed = pair["warm_steps"].astype(np.int64), pair["failed"] > 0
            failed = (failure > 0) | had_failed
            for field in self.new.fields:
                new_next[field.name] = _chosen(failed, new_states[field.name], new_next[field.name])
            for name, array in old_outputs.items():
                new_outputs[name] = _chosen(failed, np.zeros_like(array), new_outputs[name])
            compared = ~failed[:, None] & (np.arange(length) >= warm[:, None])
            if self.mode == "ramp":
                outputs = {name: _chosen(compared, new_outputs[name], old) for name, old in old_outputs.items()}
                others = {name: _chosen(compared, old, new_outputs[name]) for name, old in old_outputs.items()}
            pair["failed"], pair["warm_steps"] = failed, np.maximum(warm - length, 0)
            failure = np.where(had_failed, 0, failure).astype(np.uint8)
            warm_now = (warm > 0) & (warm <= length)
        elif self.mode == "ramp":
            outputs, others = others, outputs
        pair["responded"] = compared[:, -1] if self.mode == "ramp" else 0
        beside = {OTHER + name: array for name, array in others.items()}
        beside |= {COMPARED: compared, FAILED: failure[:, None], WARM_NOW: warm_now[:, None]}
        return outputs | beside, new_next, packed

    def _run_candidate(
        self, call: _Call, inputs: Mapping[str, Array], states: Mapping[str, Array], like: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], Array]:
        """Run the candidate, and return its outputs, its states, and for each row 0, or how it failed as in `FAILED`.

        If it fails on a batch, each row is run alone, so that only the bad rows fail; after a run that took too long,
        all of them have failed.
        """
        rows = len(next(iter(inputs.values())))
        try:
            outputs, next_states = call(self.new, inputs, states)
        except ModelTimeoutError as exc:
            self._log_once(exc)
        except Exception as exc:  # noqa: BLE001 - whatever the candidate does, the old version responds; it is logged
            self._log_once(exc)
            if rows > 1:
                parts = [
                    self._run_candidate(call, _row(inputs, i), _row(states, i), _row(like, i)) for i in range(rows)
                ]
                outputs, next_states = (
                    {name: np.concatenate([part[k][name] for part in parts]) for name in parts[0][k]} for k in (0, 1)
                )
                return outputs, next_states, np.concatenate([part[2] for part in parts])
        else:
            return outputs, dict(next_states), self._non_finite(outputs, next_states, rows)
        return {name: np.zeros_like(array) for name, array in like.items()}, dict(states), np.ones(rows, np.uint8)

    def _non_finite(self, outputs: Mapping[str, Array], states: Mapping[str, Array], rows: int) -> Array:
        """Return 2 for each row with NaN or infinity in an output or state, as it is stored, else 0."""
        arrays = list(outputs.values())
        with np.errstate(over="ignore"):
            arrays += [states[field.name].astype(field.store_dtype, copy=False) for field in self.new.fields]
        failure = np.zeros(rows, np.uint8)
        for array in arrays:
            if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
                failure[~finite.reshape(rows, -1).all(axis=1)] = 2
        return failure

    def _log_once(self, exc: Exception) -> None:
        if not self._has_logged:
            self._has_logged = True
            _log.warning(
                "The candidate %s failed beside %s; its streams go on without it: %s",
                self.new.fingerprint.hex(), self.old.fingerprint.hex(), exc,
            )  # fmt: skip


def _step_as_chunk(
    model: StepModel, inputs: Mapping[str, Array], states: Mapping[str, Array], *, learn: bool = True
) -> _Outcome:
    outputs, next_states = model.step({name: array[:, 0] for name, array in inputs.items()}, states, learn=learn)
    return {name: array[:, None] for name, array in outputs.items()}, next_states


def _chosen(where: Array, chosen: Array, otherwise: Array) -> Array:
    """Return `chosen` where the mask over the first axes is true; arrays of `(rows, ..)`."""
    return np.where(where.reshape(*where.shape, *(1,) * (chosen.ndim - where.ndim)), chosen, otherwise)


def _row(arrays: Mapping[str, Array], i: int) -> dict[str, Array]:
    return {name: array[i : i + 1] for name, array in arrays.items()}
