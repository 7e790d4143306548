"""`TakeOver`: the state of a stream after its moves from one version or pair to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stepwell.addons.releases.pair_state import PAIR_BYTES
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.state_packing import StateField
from stepwell_export.runtime.step_model import StepModel

if TYPE_CHECKING:
    from stepwell.addons.releases.document import Take
    from stepwell.addons.releases.pair_state import Standing
    from stepwell.addons.releases.plan import Move
    from stepwell.addons.releases.translations import Translations
    from stepwell.models.registry import ModelRegistry
    from stepwell.models.served import ServedModel


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


class TakeOver:
    """Computes the states of streams that move.

    Args:
        models: The loaded models.
        translations: The graphs that compute a version's states from those of an older one.
    """

    def __init__(self, models: ModelRegistry, translations: Translations) -> None:
        self._models = models
        self._translations = translations

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

    def state_by(
        self, take: Take, old: ServedModel, new: ServedModel, state: bytes, translation: bytes | None
    ) -> bytes:
        """Return the packed state of a version, made from that of another one.

        Args:
            take: How it is made.
            old: The version of the state.
            new: The version to move to.
            state: The packed state.
            translation: With `translate`: digest of the graph; None: that beside the new version.

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
            states = self._translated(old, new, states, translation)
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
        new_state = self.state_by(move.taken_by.take, old, new, state, move.taken_by.translation)
        return new_state if new_pair is None else state + new_state + new_pair.encode()

    def _version(self, model: str, fingerprint: bytes) -> ServedModel:
        served = self._models.by_fingerprint(model, fingerprint)
        if served is None:
            raise VersionNotLoadedError(fingerprint)
        return served

    def _translated(
        self, old: ServedModel, new: ServedModel, states: dict[str, Array], digest: bytes | None
    ) -> dict[str, Array]:
        try:
            translation = self._translations.get(old, new, digest)
            if translation is not None:
                return translation(states)
        except StepwellError as exc:
            raise TakeOverError(exc.problem) from exc
        raise NoTranslationError(
            f"The translation of the states of version {old.version} to those of version {new.version} is not here."
        )


def same_states(old: Sequence[StateField], new: Sequence[StateField]) -> str | None:
    """Return in which state two versions differ by name, shape or dtype; None: a state can be kept."""
    mine = {field.name: f"{field.dtype}{list(field.shape)}" for field in old}
    other = {field.name: f"{field.dtype}{list(field.shape)}" for field in new}
    for name in sorted(mine.keys() | other.keys()):
        if mine.get(name) != other.get(name):
            return f"state {name!r} is {other.get(name, 'missing')} and was {mine.get(name, 'missing')}"
    return None
