"""`RolloutSettings`: the limits of a rollout."""

from __future__ import annotations

from collections.abc import Mapping

from stepwell.settings import AddonSettings, Count


class RolloutSettings(AddonSettings):
    """The settings of rollouts."""

    max_horizon: Count = 4096
    """Maximum timesteps of one rollout."""
    max_samples: Count = 256
    """Maximum samples of one rollout."""

    def limits(self) -> Mapping[str, float]:
        """Return both."""
        return self.model_dump()
