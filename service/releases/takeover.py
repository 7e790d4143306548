"""`TakeOver`: the state of a stream after its moves from one version or pair to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import onnxruntime as ort

from model_export.errors import ModelLoadError, StepwellError
from model_export.manifest import Array
from model_export.runtime.layout import TensorLayout, from_graph, to_graph
from model_export.runtime.session import open_session, run_options
from model_export.step_model import StepModel
from service.models.paired import PAIR_BYTES, same_states

if TYPE_CHECKING:
    from service.models.registry import ModelRegistry
    from service.models.served import ServedModel
    from service.releases.document import Take
    from service.releases.moves import Move, Standing

MAX_TRANSLATION_BYTES: Final = 256 * 2**20


class TakeOverError(StepwellError):
    """The state of a stream cannot become that of another version; the stream stays where it is."""

    code = "take_over_failed"


class VersionNotLoadedError(TakeOverError):
    """The version from which or to which a stream moves is not loaded here.

    Attributes:
        fingerprint: Of the version, 8 bytes.
    """

    def __init__(self, fingerprint: bytes) -> None:
        super().__init__(f"Model {fingerprint.hex()} is not loaded here.")
        self.fingerprint = fingerprint


class NoTranslationError(TakeOverError):
    """This replica does not have the graph that translates the states; another one may."""


class Translation:
    """The graph that computes a version's states from those of an older version.

    Its inputs are named as the old states, its outputs as the new ones, or as their state outputs (ADR 0079); each has
    the shape and the batch axis that it has in the step graph.
    """

    def __init__(self, source: Path | bytes, old: StepModel, new: StepModel) -> None:
        """Open and check the graph.

        Args:
            source: The ONNX file, or its bytes.
            old: The version whose states it translates.
            new: The version whose states it computes.

        Raises:
            ModelLoadError: It cannot be opened, or its inputs or outputs are not these states.
        """
        self._session = open_session(source, where=str(source)[:200], threads=1, providers=("CPUExecutionProvider",))
        inputs = {tensor.name for tensor in self._session.get_inputs()}
        outputs = {tensor.name for tensor in self._session.get_outputs()}
        ours, theirs = {field.name for field in old.fields}, {field.name for field in new.fields}
        next_of = {
            spec.input: spec.output for spec in new.manifest.states
        }  # a graph computes no tensor of an input's name
        self._names = [p.name if p.name in outputs else next_of.get(p.name, "") for p in _layouts(new)]
        if not inputs <= ours or not outputs.issuperset(self._names):
            raise ModelLoadError(
                f"The translation has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}; expected inputs "
                f"of {sorted(ours)}, and the outputs {sorted(theirs)}.",
                fix="Name its inputs as the states of the old version, and its outputs as those of the new one.",
            )
        self._inputs = [layout for layout in _layouts(old) if layout.name in inputs]
        self._outputs = _layouts(new)
        self._running: dict[int, tuple[ort.RunOptions, float]] = {}

    def __call__(self, states: Mapping[str, Array]) -> dict[str, Array]:
        """Return the new states, `(1, *row)` by name, of one stream's old states.

        Raises:
            TakeOverError: The graph fails on them, or computes NaN or infinity.
        """
        feeds = {place.name: to_graph(states[place.name], place.graph_row, place.batch_axis) for place in self._inputs}
        switch, thread = run_options(), threading.get_ident()
        self._running[thread] = switch, time.monotonic()
        try:
            values = self._session.run(self._names, feeds, switch)
            translated = {p.name: from_graph(value, p, 1) for p, value in zip(self._outputs, values, strict=True)}
        except Exception as exc:
            raise TakeOverError(f"The translation of a state failed: {str(exc).strip()[:200]}") from exc
        finally:
            del self._running[thread]
        for name, array in translated.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TakeOverError(f"The translation computed NaN or infinity in the state {name!r}.")
        return translated

    def terminate(self, *, longer_than: float = 0.0) -> None:
        """End runs in other threads that take longer than so many seconds."""
        now = time.monotonic()
        for switch, began in list(self._running.values()):
            if now - began >= longer_than:
                switch.terminate = True


class TakeOver:
    """Computes the states of streams that move.

    Args:
        models: The loaded models.
    """

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models
        self._translations: dict[tuple[bytes, bytes], Translation] = {}

    @property
    def translations(self) -> list[Translation]:
        """The translations that are in use."""
        return list(self._translations.values())

    def state_after(self, model: str, standing: Standing, state: bytes, moves: Sequence[Move]) -> bytes:
        """Return a stream's packed state after its moves.

        Args:
            model: The model's name.
            standing: What its record shows before them.
            state: Its packed state.
            moves: At least one.

        Raises:
            TakeOverError: A version is not loaded here, or its state cannot be made.
        """
        for move in moves:
            state = self._moved(model, standing, state, move)
            standing = move.standing
        return state

    def state_by(self, take: Take, old: ServedModel, new: ServedModel, state: bytes) -> bytes:
        """Return the packed state of a version, made from that of another one.

        Raises:
            TakeOverError: It cannot be made.
        """
        before, after = old.step_model, new.step_model
        assert isinstance(before, StepModel)
        assert isinstance(after, StepModel)
        if take == "reset":
            return after.initial_state
        if len(state) != before.state_bytes:
            raise TakeOverError(f"The stored state has {len(state)} bytes; the model's state has {before.state_bytes}.")
        states = before.unpack(np.frombuffer(state, np.uint8)[None])
        if take == "keep":
            if (difference := same_states(before.fields, after.fields)) is not None:
                raise TakeOverError(f"The state cannot be kept: {difference}.")
        else:
            states = self._translation(old, new)(states)
        packed = after.pack(states, rows=1)
        if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in after.unpack(packed).values()):
            raise TakeOverError("The state becomes infinite in the type in which the new version stores it.")
        return bytes(packed[0])

    # ---------------------------------------------------------------- helpers

    def _moved(self, model: str, standing: Standing, state: bytes, move: Move) -> bytes:
        pair, new_pair = standing.pair, move.standing.pair
        if pair is not None:
            old_bytes = self._version(model, pair.old).step_model.state_bytes
            if new_pair is not None:
                return state[:-PAIR_BYTES] + new_pair.encode()
            return state[:old_bytes] if move.assignment.old == pair.old else state[old_bytes:-PAIR_BYTES]
        assert move.taken_by is not None
        old = self._version(model, standing.assignment.old)
        new = self._version(model, move.taken_by.new.fingerprint)
        new_state = self.state_by(move.taken_by.take, old, new, state)
        return new_state if new_pair is None else state + new_state + new_pair.encode()

    def _version(self, model: str, fingerprint: bytes) -> ServedModel:
        served = self._models.by_fingerprint(model, fingerprint)
        if served is None:
            raise VersionNotLoadedError(fingerprint)
        return served

    def _translation(self, old: ServedModel, new: ServedModel) -> Translation:
        key = old.fingerprint, new.fingerprint
        found = self._translations.get(key)
        if found is None:
            assert isinstance(old.step_model, StepModel)
            assert isinstance(new.step_model, StepModel)
            path = translation_file(new, old.version)
            if not path.is_file():
                raise NoTranslationError(f"There is no {path.name} beside version {new.version} here.")
            try:
                found = self._translations[key] = Translation(path, old.step_model, new.step_model)
            except ModelLoadError as exc:
                raise TakeOverError(exc.problem) from exc
        return found


def translation_file(new: ServedModel, old_version: int) -> Path:
    """Return the file that translates the states of an older version to those of a new one; it may be missing."""
    return new.path.parent / f"translate-from-{old_version}.onnx"


def _layouts(model: StepModel) -> list[TensorLayout]:
    """Return how a step graph has its states; a window's past part has the batch on axis 0."""
    axes = {state.input: state.batch_axis for state in model.manifest.states}
    return [TensorLayout(field.name, field.shape, field.shape, axes.get(field.name, 0)) for field in model.fields]
