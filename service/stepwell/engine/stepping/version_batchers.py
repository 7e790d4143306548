"""`VersionBatchers`: which batcher of a model gets a timestep while streams move between the model's versions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stepwell.models.version_differences import needed_inputs

if TYPE_CHECKING:
    from stepwell.engine.stepping.batcher import Batcher
    from stepwell.engine.stepping.queued import QueuedStep


def is_older(one: QueuedStep, other: QueuedStep) -> bool:
    """Whether the first of two timesteps was received before the second one."""
    return one.received < other.received


class VersionBatchers:
    """The batchers of all versions and pairs of one model; the timesteps of a stream keep their order among them."""

    def __init__(self) -> None:
        """Create it; `link` gives it the batchers."""
        self._batchers: Sequence[Batcher] = ()
        self._submitted: dict[Batcher, set[str]] = {}  # whose timesteps wait where no batcher has moved them on

    @classmethod
    def link(cls, batchers: Sequence[Batcher], *, moves: bool) -> None:
        """Let the batchers of a model find each other's streams, and refuse missing values that only others accept.

        Args:
            batchers: All batchers of the model.
            moves: Whether streams may move between its versions.
        """
        versions = next((batcher.versions for batcher in batchers if batcher.versions is not None), None) or cls()
        versions._batchers = batchers
        for batcher in batchers:
            batcher.versions = versions if moves and len(batchers) > 1 else None
        for decoding, running in itertools.permutations(batchers, 2):  # a request may be run by another than decodes it
            for version in running.served.halves or (running.served,):
                running.deps.runner.needed.update(needed_inputs(decoding.served.manifest, version.manifest))

    def batcher_of(self, name: str, requested: Batcher) -> Batcher:
        """Return the batcher to which a timestep of a stream is submitted.

        If several have timesteps of it, those in one of them are moved on to another, one by one: later timesteps
        follow those that have not been moved yet. A stream that none has is submitted to the one that has its record;
        if there is none, what steps it is decided when the record is loaded.
        """
        chosen = next((batcher for batcher, names in self._submitted.items() if name in names), None)
        if chosen is None or not chosen.queue.holds(name):
            batchers = [requested, *self._others(requested)]
            chosen = next((batcher for batcher in batchers if batcher.queue.holds(name)), None) or next(
                (batcher for batcher in batchers if name in batcher.cache), requested
            )
        self.on_submitted((name,), chosen)
        return chosen

    def on_submitted(self, names: Sequence[str], batcher: Batcher) -> None:
        """Note that timesteps of streams were submitted to a batcher."""
        for other, submitted in self._submitted.items():
            if other is not batcher and submitted:
                submitted.difference_update(names)
        self._submitted.setdefault(batcher, set()).update(names)

    def on_released(self, names: Sequence[str], batcher: Batcher) -> None:
        """Note that a batch with timesteps of streams has ended."""
        if submitted := self._submitted.get(batcher):
            submitted.difference_update(batcher.queue.without_items(names))
            if not submitted:
                del self._submitted[batcher]

    def follows_older(self, row: QueuedStep, batcher: Batcher) -> bool:
        """Queue a timestep after an older one of its stream, if there is one; whether there was.

        Timesteps can be in another order when they were moved between batchers by more than one change of a release.
        """
        waiting = batcher.queue.next_waiting(row.name)
        if waiting is not None and is_older(waiting, row):
            batcher.requeue(row)
            return True
        for other in self._others(batcher):
            first = other.queue.first(row.name)
            if first is not None and is_older(first, row):
                other.requeue(row)
                return True
        return False

    def split(
        self, names: Sequence[str], rows: Sequence[int], requested: Batcher
    ) -> list[tuple[Batcher, Sequence[int]]]:
        """Return which batchers have the records of streams, each with the indices of its streams in `names`.

        Args:
            names: Keys of the streams' records.
            rows: Indices of those that can be reserved in the queue of `requested`.
            requested: The batcher of the version that the request leads to.

        Returns:
            The streams that no other batcher has are of `requested`. Those of which a timestep waits or runs in another
            one are left out.
        """
        others = [*self._others(requested)]
        left = [i for i in rows if not any(other.queue.holds(names[i]) for other in others)]
        parts: list[tuple[Batcher, Sequence[int]]] = []
        for other in others:
            if own := other.cache.indices_of(names, left):
                parts.append((other, own))
                taken = set(own)
                left = [i for i in left if i not in taken]
        return [*parts, (requested, left)] if left else parts

    def _others(self, batcher: Batcher) -> Iterable[Batcher]:
        return (other for other in self._batchers if other is not batcher)
