"""The documents of responses about drift and data quality."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from stepwell.addons.api_schemas.responses import Document


class FeatureDrift(Document, kw_only=True):
    """One number of an input or output, in a window."""

    count: Annotated[int, Meta(ge=0, description="Sampled values that were there.")]
    missing: Annotated[float, Meta(ge=0, le=1, description="Share of the sampled values that were missing.")]
    min: float | None
    max: float | None
    quantiles: Annotated[dict[str, float], Meta(description='By their share: `"0.5"` is the median.')]
    outside: Annotated[
        float | None,
        Meta(description="Share of the values outside the reference's range; null without a reference or values."),
    ]
    psi: Annotated[
        float | None,
        Meta(description="The greater of `psi_all` and `psi_tenth`; null if there is neither."),
    ]
    psi_all: Annotated[
        float | None,
        Meta(
            description="Population stability index of all values against the reference's deciles; null without a "
            "reference, or below 500 values."
        ),
    ]
    psi_tenth: Annotated[
        float | None,
        Meta(description="The same of the tenth of the streams that deviates most."),
    ]


class DriftWindow(Document, kw_only=True):
    """The features of a model in a window, by name: `x[0]` is the first number of `x`."""

    inputs: dict[str, FeatureDrift]
    outputs: dict[str, FeatureDrift]


class DriftResponse(Document, kw_only=True):
    """What live streams look like beside the reference."""

    reference: Annotated[bool, Meta(description="Whether the model's manifest has a reference.")]
    windows: Annotated[dict[str, DriftWindow], Meta(description="`1h` and `24h`.")]
