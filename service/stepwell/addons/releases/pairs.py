"""`LoadedPairs`: the pairs of versions that records name, built of versions that are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from stepwell.addons.releases.pair_state import Assignment, pair_state_of
from stepwell.addons.releases.paired import PairedModel
from stepwell.models.joined import JoinedModels
from stepwell.models.served import ServedModel
from stepwell_export.runtime.step_model import StepModel

if TYPE_CHECKING:
    from stepwell.models.registry import ModelRegistry


class LoadedPairs(JoinedModels):
    """Pairs by the model's name and the pair's fingerprint; one that nothing runs any more is not kept in memory.

    Args:
        models: The loaded versions.
    """

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models
        self._pairs: dict[tuple[str, bytes], Assignment] = {}
        self._served = WeakValueDictionary[tuple[str, bytes], ServedModel]()

    def fingerprint(self, model: str, assignment: Assignment) -> bytes:
        """Return the fingerprint of an assignment, 8 bytes; a pair can be loaded by it from then on."""
        fingerprint = assignment.fingerprint
        if assignment.new:
            self._pairs.setdefault((model, fingerprint), assignment)
        return fingerprint

    def announce(self, model: str, fingerprint: bytes, state: bytes) -> None:
        """Make the pair available that has written a record; a record of one version changes nothing.

        Args:
            model: The model's name.
            fingerprint: The record's fingerprint, 8 bytes.
            state: Its packed state.
        """
        if (model, fingerprint) not in self._pairs and (pair := pair_state_of(fingerprint, state)) is not None:
            self.fingerprint(model, pair.assignment)

    def parts(self, model: str, fingerprint: bytes) -> tuple[bytes, ...]:
        """Return the fingerprints of both halves; empty: no such pair was announced."""
        pair = self._pairs.get((model, fingerprint))
        return () if pair is None else (pair.old, pair.new)

    def get(self, model: str, fingerprint: bytes) -> ServedModel | None:
        """Return a pair; None: it was not announced, a version is not loaded, or their inputs or outputs differ."""
        key = model, fingerprint
        if (pair := self._pairs.get(key)) is None:
            return None
        old, new = self._models.by_fingerprint(model, pair.old), self._models.by_fingerprint(model, pair.new)
        if old is None or new is None:
            return None
        served = self._served.get(key)
        if served is not None and served.parts == (old, new):
            return served
        assert isinstance(old.step_model, StepModel)
        assert isinstance(new.step_model, StepModel)
        try:
            paired = PairedModel(old.step_model, new.step_model, pair.mode)
        except ValueError:
            return None
        version = old.version if pair.mode == "shadow" else new.version
        served = self._served[key] = ServedModel(new.name, version, paired, new.path, (), parts=(old, new))
        return served
