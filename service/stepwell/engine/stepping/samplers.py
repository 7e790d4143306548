"""What an add-on sees of committed batches: a `Sampler` for each model version that is stepped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel
    from stepwell_export.runtime.manifest import Array


class Sampler(Protocol):
    """Sees committed batches of one model version."""

    def skips(self) -> bool:
        """Whether the batch that was committed now is not wanted; called once for each."""

    def add(self, names: Sequence[str], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Take a committed batch; the arrays do not change later.

        Args:
            names: The keys of the streams' records.
            inputs: `(rows, T, *row)` by input.
            outputs: `(rows, T', *row)` by output; T' is smaller if only some predictions are returned.
        """


class Samplers(Protocol):
    """Gives the samplers of model versions."""

    def sampler(self, served: ServedModel) -> Sampler | None:
        """Return the sampler of a model version that begins to be stepped; None: nothing is sampled."""

    def end_sampler(self, served: ServedModel) -> None:
        """End what `sampler` began: the model version is not stepped any more."""


class _Several:
    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self._samplers = samplers
        self._wanted: list[Sampler] = []

    def skips(self) -> bool:
        self._wanted = [each for each in self._samplers if not each.skips()]
        return not self._wanted

    def add(self, names: Sequence[str], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for each in self._wanted:
            each.add(names, inputs, outputs)


def sampler_of(served: ServedModel, sources: Iterable[Samplers]) -> Sampler | None:
    """Return one sampler that stands for those of all sources; None: there is none."""
    found = [sampler for source in sources if (sampler := source.sampler(served)) is not None]
    return _Several(found) if len(found) > 1 else found[0] if found else None
