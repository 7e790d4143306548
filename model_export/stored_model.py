"""`StoredStepModel`: a step graph as it is served, with its states stored after every call."""

from __future__ import annotations

from collections.abc import Mapping

from model_export.manifest import Array
from model_export.step_model import StepModel


class StoredStepModel(StepModel):
    """Brings the states into their stored form and back after every call.

    What a narrower type in the store does over time is seen only where it is done at every timestep.
    """

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """See `StepModel.step`."""
        outputs, after = super().step(inputs, states)
        return outputs, self._stored(after)

    def chunk(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """See `StepModel.chunk`."""
        outputs, after = super().chunk(inputs, states)
        return outputs, self._stored(after)

    def _stored(self, states: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(next(iter(states.values()))) if states else 0
        return self.unpack(self.pack(states, rows=rows))
