"""`DriftSettings`: whether live values are observed, and how many."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stepwell.settings import AddonSettings


class DriftSettings(AddonSettings):
    """The settings of drift."""

    drift: bool = True
    """Observe how the inputs and outputs of live streams are distributed, for GET /v1/models/{model}/drift."""
    drift_max_features: Annotated[int, Field(ge=1, le=4096)] = 64
    """Maximum numbers of the inputs and outputs of a model version whose distributions are observed."""
