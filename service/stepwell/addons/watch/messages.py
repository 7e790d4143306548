"""The messages of `/v1/watch`, a struct each, from which `/asyncapi.json` is derived.

Those that are frequent are built as plain values of the same fields, in `events.py`; tests compare both.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.addons.api_schemas.responses import Document, Tensors
from stepwell.codec.step_bodies import StateId, StreamId
from stepwell_client.wire.ids import SEQ_LIMIT

HEARTBEAT_S: Final = 10.0
"""Heartbeat interval of idle watchers, in seconds."""

_MAX_SUBSCRIPTIONS = 100
ModelVersion = Annotated[int, Meta(ge=1)]


class WatchEntry(Struct, forbid_unknown_fields=True):
    """One subscription: a stream, the streams whose ids have a prefix, or all streams of a model."""

    model: Annotated[str, Meta(min_length=1, max_length=64)]
    stream: Annotated[str | None, Meta(description="The stream to watch.")] = None
    prefix: Annotated[str, Meta(max_length=128, description="Without `stream`: the start of the stream ids.")] = ""
    since: Annotated[
        Annotated[int, Meta(ge=0, lt=SEQ_LIMIT)] | None,
        Meta(description="The last step of the stream that you have received: later events are sent first."),
    ] = None


class WatchRequest(Struct, forbid_unknown_fields=True):
    """The first message of a watcher."""

    watch: Annotated[list[WatchEntry], Meta(min_length=1, max_length=_MAX_SUBSCRIPTIONS)]
    inputs: Annotated[bool, Meta(description="Events have the inputs too.")] = False
    candidate: Annotated[bool, Meta(description="Events have the outputs of a release's candidate too.")] = False


class WatchingReply(Document, kw_only=True):
    """The reply to a watcher's first message: every later commit is sent."""

    watching: Annotated[int, Meta(ge=1, description="The number of subscriptions.")]


class CandidateMessage(Document, kw_only=True):
    """What the candidate of a release computed from the same timestep."""

    version: ModelVersion
    outputs: Tensors


class CommitMessage(Document, kw_only=True):
    """One commit of a watched stream; tensors of a chunk have a leading time axis."""

    model: str
    stream: StreamId
    step: Annotated[int, Meta(ge=1, description="The number of the last timestep of the commit.")]
    state_id: StateId
    outputs: Annotated[Tensors, Meta(description="The predictions that the request asked for.")]
    version: Annotated[ModelVersion, Meta(description="The model version that responded.")] | UnsetType = UNSET
    inputs: Tensors | UnsetType = UNSET
    candidate: CandidateMessage | UnsetType = UNSET


class EventsMessage(Document, kw_only=True):
    """Several commits in their order, in the place of one message for each; without any, a heartbeat."""

    events: list[CommitMessage]


class GapMessage(Document, kw_only=True):
    """Timesteps whose events this watcher does not receive."""

    gap: Annotated[int, Meta(ge=0, description="Their number; there may be more if the number is not known exactly.")]
