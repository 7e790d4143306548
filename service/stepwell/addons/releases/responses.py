"""The documents of responses about releases."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from stepwell.addons.api_schemas.responses import Document
from stepwell.addons.releases.bodies import Mode, Take
from stepwell.codec.step_bodies import StateId

Status = Literal["inactive", "ramping", "current", "draining", "drained"]
Seconds = Annotated[float, Meta(description="Seconds since 1970, by the store's clock.")]


class EndedResponse(Document, kw_only=True):
    """How the last candidate ended."""

    how: Literal["promoted", "aborted"]
    why: str | None
    at: Seconds
    candidate: int


class VersionStatus(Document, kw_only=True):
    """A version of the model, by its fingerprint, and how many streams it has."""

    version: Annotated[int | None, Meta(description="Null if no replica has the file any more.")]
    fingerprint: str
    streams: Annotated[int, Meta(ge=0, description="Streams of all tenants; a pair counts for what responds.")]
    status: Status


class NumberComparison(Document, kw_only=True):
    """The absolute differences between current version and candidate."""

    max_abs: float
    mean_abs: float
    p99_abs: Annotated[float, Meta(description="To 10 %.")]


class OutputComparison(NumberComparison, kw_only=True):
    """The absolute differences of one output between current version and candidate."""

    disagree: Annotated[
        float | None, Meta(description="Share of timesteps whose arg max differs; null for an output of one number.")
    ]
    labels: Annotated[dict[str, NumberComparison], Meta(description="The same of each number that has a label.")]


class ErrorComparison(Document, kw_only=True):
    """The errors of both versions against the truth, in one number of an output; null: not known yet."""

    current: Annotated[float | None, Meta(description="Mean absolute error.")]
    candidate: Annotated[float | None, Meta(description="Mean absolute error.")]
    ratio: Annotated[float | None, Meta(description="The candidate's error in errors of the current version.")]
    low: Annotated[float | None, Meta(description="Lower end of the ratio's 95 % interval over streams.")]
    high: Annotated[float | None, Meta(description="Upper end.")]
    n: Annotated[int, Meta(description="Truths that both were compared with.")]


class ComparisonResponse(Document, kw_only=True):
    """The comparison of the last candidate with the current version, over all replicas."""

    steps: int
    lost: int
    fell_back: int
    non_finite: int
    outputs: dict[str, OutputComparison]
    error: Annotated[
        dict[str, dict[str, ErrorComparison]] | None,
        Meta(description="By output and label; null: the model has no truth."),
    ]


class ReleaseResponse(Document, kw_only=True):
    """The release of a model."""

    model: str
    revision: Annotated[int, Meta(description="Grows with each change; 0: the model has no release.")]
    current: Annotated[int, Meta(description="The version of new streams.")]
    candidate: Annotated[int | None, Meta(description="The version that is tried.")]
    mode: Mode | None
    percent: Annotated[float, Meta(description="The candidate's share that is in force now.")]
    schedule: Annotated[list[tuple[float, float]], Meta(description="`[seconds, percent]` points.")]
    take: Take
    warm_steps: int
    existing: bool
    rollback: bool
    gate: dict[str, Any] | None
    started_at: Annotated[float | None, Meta(description="When the last candidate started.")]
    ended: EndedResponse | None
    versions: list[VersionStatus]
    counted_at: Annotated[float | None, Meta(description="When the streams were counted last.")]
    compared: ComparisonResponse
    moved: Annotated[int, Meta(description="Streams that the last sweep has moved.")]
    left: Annotated[int, Meta(description="Streams that it has still to move.")]


class StreamMoveResponse(Document, kw_only=True):
    """The position of a stream after its move to another version."""

    step: int
    state_id: StateId
    version: int
    replayed: bool | UnsetType = UNSET
