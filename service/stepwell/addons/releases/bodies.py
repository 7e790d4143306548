"""Request bodies of releases: PUT, promote, abort, the sweep, and the move of one stream."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.codec.step_bodies import StateId
from stepwell.codec.strict.bodies import check_envelope
from stepwell.codec.strict.parse import parse, preview
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import Format
from stepwell_client.wire.ids import decode_state_id

T = TypeVar("T", bound=Struct)
Points = tuple[tuple[float, float], ...]
Version = Annotated[int, Meta(ge=1, lt=2**31, description="A version of the model.")]
Revision = Annotated[
    int, Meta(ge=0, lt=2**53, description="The revision that the release must have; otherwise it was changed since.")
]
Text = Annotated[str, Meta(max_length=1000, extra={"expected": "a text of at most 1000 characters"})]
Mode = Literal["shadow", "ramp", "switch"]
Take = Literal["keep", "translate", "reset"]

_MAX_POINTS: Final = 1000
_NUMBER_LIMIT: Final = 1e12  # seconds: more than any release lasts
_SHARE: Final = {"type": "number", "minimum": 0, "maximum": 100}
_PERCENT: Final = {
    "anyOf": [
        _SHARE,
        {
            "type": "array",
            "minItems": 1,
            "maxItems": _MAX_POINTS,
            "items": {"type": "array", "prefixItems": [{"type": "number", "minimum": 0}, _SHARE], "items": False},
        },
    ],
    "description": "The candidate's share of the streams, or `[seconds, percent]` points from this request on.",
    "example": [[0, 1], [600, 10], [3600, 100]],
}


_Limit = Annotated[float, Meta(ge=0)]


class GateBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The limits of a release; a limit that is left out is no limit."""

    min_compared: Annotated[int, Meta(ge=0)] = 1000
    max_abs: dict[str, _Limit | dict[str, _Limit]] = {}
    max_disagree: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_non_finite: Annotated[int, Meta(ge=0)] | None = None
    max_lost: Annotated[int, Meta(ge=0)] | None = None
    max_run_ratio: Annotated[float, Meta(gt=0)] | None = None
    max_error_ratio: Annotated[float, Meta(gt=0)] | None = None


class ReleaseBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a PUT of a release."""

    current: Version | UnsetType = UNSET
    candidate: Version | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET
    percent: Annotated[Any, Meta(extra_json_schema=_PERCENT)] | UnsetType = UNSET
    take: Take | UnsetType = UNSET
    warm_steps: (
        Annotated[int, Meta(ge=0, lt=2**31, description="With `reset`: timesteps before the candidate responds.")]
        | UnsetType
    ) = UNSET
    existing: Annotated[bool, Meta(description="Whether streams that exist take part.")] | UnsetType = UNSET
    rollback: (
        Annotated[bool, Meta(description="Whether `abort` is possible within an hour of `promote`.")] | UnsetType
    ) = UNSET
    salt: Annotated[str, Meta(max_length=100, extra={"expected": "a text of at most 100 characters"})] | UnsetType = (
        UNSET
    )
    gate: (
        Annotated[
            dict[str, Any] | None,
            Meta(
                description="Limits on the comparison; a broken one aborts the release. Null: none.",
                extra={"expected": "an object with limits, or null"},
                extra_json_schema={"anyOf": [{"$ref": "#/components/schemas/GateBody"}, {"type": "null"}]},
            ),
        ]
        | UnsetType
    ) = UNSET
    revision: Revision | UnsetType = UNSET

    @property
    def schedule(self) -> Points | UnsetType:
        """The points of `percent`; a number is one point at second 0."""
        if self.percent is UNSET or isinstance(self.percent, tuple):
            return self.percent
        return ((0.0, float(self.percent)),)


class EndBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a promotion or an abort, which may be empty."""

    why: Annotated[Text, Meta(description="The reason, which the release then shows.")] | UnsetType = UNSET
    revision: Revision | UnsetType = UNSET


class SweepBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that moves all sleeping streams, which may be empty."""

    limit_per_s: (
        Annotated[int, Meta(ge=1, lt=2**31, description="Streams per second; default: no limit.")] | UnsetType
    ) = UNSET


class StreamMoveBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that moves one stream to a version."""

    version: Version
    take: Take = "keep"
    after: StateId | UnsetType = UNSET

    @property
    def after_bytes(self) -> bytes | None:
        """The 16 bytes of `after`, or None."""
        return None if self.after is UNSET else decode_state_id(self.after)


def read_release(body: bytes, body_format: Format) -> tuple[ReleaseBody, GateBody | None]:
    """Decode the body of a PUT, `percent` as points, and its gate.

    Raises:
        ServiceError: `bad_json`; `bad_request`: it is not an object; `bad_release`: a field has a wrong type, or the
            fields do not belong together.
    """
    release = _read(body, body_format, ReleaseBody)
    if release.percent is not UNSET:
        release.percent = _points(release.percent)
    _check_fields(release)
    return release, _gate(release.gate)


def read_end(body: bytes, body_format: Format) -> EndBody:
    """Decode the body of a promotion or an abort.

    Raises:
        ServiceError: As for `read_release`.
    """
    return _read(body, body_format, EndBody) if body.strip() else EndBody()


def read_sweep(body: bytes, body_format: Format) -> SweepBody:
    """Decode the body of a request that moves all sleeping streams.

    Raises:
        ServiceError: As for `read_release`.
    """
    return _read(body, body_format, SweepBody) if body.strip() else SweepBody()


def read_stream_move(body: bytes, body_format: Format) -> StreamMoveBody:
    """Decode the body of a request that moves one stream.

    Raises:
        ServiceError: As for `read_release`.
    """
    return _read(body, body_format, StreamMoveBody)


def bad_release(problem: str, fix: str = "See PUT of a release in /docs for its fields.") -> NoReturn:
    """Raise the error for a release that is not well formed.

    Raises:
        ServiceError: `bad_release`.
    """
    raise ServiceError("bad_release", problem, fix=fix)


def _read(body: bytes, body_format: Format, body_type: type[T]) -> T:
    document = parse(body, body_format)
    try:
        check_envelope(document, body_type)
    except ServiceError as exc:
        if isinstance(document, dict):
            bad_release(exc.problem)
        raise
    return body_type(**document)


def _check_fields(release: ReleaseBody) -> None:
    """Check that the given fields belong together."""
    given = [name for name, value in msgspec.structs.asdict(release).items() if value is not UNSET]
    of_trial = [name for name in given if name not in ("current", "revision")]
    if release.candidate is UNSET:
        if of_trial not in ([], ["percent"]):
            bad_release(f"The body has {', '.join(of_trial)} without `candidate`.", "Name the candidate.")
        if not of_trial and release.current is UNSET:
            bad_release("The body names no version.", "Send `candidate`, `current` or `percent`.")
        if of_trial and release.current is not UNSET:
            bad_release("The body has `percent` and `current` without `candidate`.", "Name the candidate.")
        return
    for name in ("mode", "percent"):
        if name not in given:
            bad_release(f"The body has a `candidate` without `{name}`.", f"Send `{name}`.")
    if release.candidate == release.current:
        bad_release(f"Version {release.candidate} is both `candidate` and `current`.", "Name two versions.")


def _points(percent: Any) -> Points:
    if _is_number(percent):
        percent = [[0, percent]]
    is_list = isinstance(percent, list) and 1 <= len(percent) <= _MAX_POINTS
    if not is_list or not all(isinstance(point, list) and len(point) == 2 for point in percent):
        bad_release(f"`percent` is {preview(percent)}; expected a number, or a list of [seconds, percent] points.")
    for point in percent:
        if not all(map(_is_number, point)) or point[0] < 0 or not 0 <= point[1] <= 100:
            bad_release(f"`percent` has {preview(point)}; expected seconds from 0, and 0 to 100 percent.")
    seconds = [point[0] for point in percent]
    if any(later <= earlier for earlier, later in pairwise(seconds)):
        bad_release("The seconds in `percent` do not ascend.", "Sort the points by their seconds.")
    return tuple((float(s), float(share)) for s, share in percent)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < _NUMBER_LIMIT and math.isfinite(value)


def _gate(gate: Any) -> GateBody | None:
    if gate is UNSET or gate is None:
        return None
    try:
        return msgspec.convert(gate, GateBody)
    except (msgspec.ValidationError, OverflowError) as exc:
        bad_release(f"`gate` cannot be used: {exc}.")
