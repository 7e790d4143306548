"""`VettingSettings`: how long the trial of a model file may take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stepwell.settings import AddonSettings, CheckModelFile, Settings


class VettingSettings(AddonSettings):
    """The settings of vetting."""

    model_probe_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 30
    """Maximum seconds to load a new model file and run it once, in a separate process; 0: no such check."""

    def check_model_file(self, settings: Settings, folder: Path | None) -> CheckModelFile | None:
        """Return what loads a file in a separate process; None: nothing does."""
        if not self.model_probe_s:
            return None
        from stepwell.addons.vetting.vetting import ModelVetting

        return ModelVetting(settings, self.model_probe_s, folder).check
