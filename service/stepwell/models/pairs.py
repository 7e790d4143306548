"""`LoadedPairs`: the pairs of versions that records name, built of versions that are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from stepwell.models.pair_state import PairMode, pair_fingerprint, pair_state_of
from stepwell.models.paired import PairedModel
from stepwell_export.runtime.step_model import StepModel

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel


class Halves(NamedTuple):
    """What a pair is made of.

    Attributes:
        old: Fingerprint of the old version, 8 bytes.
        new: Fingerprint of the candidate, 8 bytes.
        mode: Which half responds.
    """

    old: bytes
    new: bytes
    mode: PairMode


class LoadedPairs:
    """Pairs by the model's name and the pair's fingerprint; one that nothing runs any more is not kept in memory.

    Args:
        build: Returns the served model of a pair; the arguments are its two versions and the paired model.
    """

    def __init__(self, build: Callable[[ServedModel, ServedModel, PairedModel], ServedModel]) -> None:
        self._build = build
        self._halves: dict[tuple[str, bytes], Halves] = {}
        self._served = WeakValueDictionary[tuple[str, bytes], "ServedModel"]()

    def announce(self, model: str, old: bytes, new: bytes, mode: PairMode) -> bytes:
        """Make a pair available under its fingerprint, and return that, 8 bytes."""
        fingerprint = pair_fingerprint(old, new, mode)
        self._halves.setdefault((model, fingerprint), Halves(old, new, mode))
        return fingerprint

    def announce_record(self, model: str, fingerprint: bytes, state: bytes) -> None:
        """Make the pair available that has written a record; a record of one version changes nothing.

        Args:
            model: The model's name.
            fingerprint: The record's fingerprint, 8 bytes.
            state: Its packed state.
        """
        if (model, fingerprint) in self._halves:
            return
        if (pair := pair_state_of(fingerprint, state)) is not None:
            self.announce(model, pair.old, pair.new, pair.mode)

    def halves(self, model: str, fingerprint: bytes) -> Halves | None:
        """Return what a pair is made of; None: no such pair was announced."""
        return self._halves.get((model, fingerprint))

    def get(
        self, model: str, fingerprint: bytes, version: Callable[[str, bytes], ServedModel | None]
    ) -> ServedModel | None:
        """Return a pair; None: it was not announced, a version is not loaded, or their inputs or outputs differ.

        Args:
            model: The model's name.
            fingerprint: The pair's fingerprint.
            version: Returns a loaded version by the model's name and its fingerprint.
        """
        key = model, fingerprint
        if (halves := self._halves.get(key)) is None:
            return None
        old, new = version(model, halves.old), version(model, halves.new)
        if old is None or new is None:
            return None
        served = self._served.get(key)
        if served is not None and served.halves == (old, new):
            return served
        assert isinstance(old.step_model, StepModel)
        assert isinstance(new.step_model, StepModel)
        try:
            paired = PairedModel(old.step_model, new.step_model, halves.mode)
        except ValueError:
            return None
        served = self._served[key] = self._build(old, new, paired)
        return served
