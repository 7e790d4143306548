"""Request bodies of stream operations: reset, fork, snapshot, and the import of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.codec.step_bodies import TENSORS, PackedStateText, StateId
from stepwell.codec.strict.bodies import check_envelope
from stepwell.codec.strict.parse import bad_request, parse, preview
from stepwell.codec.strict.tensors import read_tensor
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell_client.wire.formats import Format
from stepwell_client.wire.ids import NAME, SEQ_LIMIT, STREAM_ID, decode_state_id, snapshot_name_problem
from stepwell_export.runtime.manifest import Array, TensorSpec
from stepwell_export.runtime.state_packing import DecodedState, StateField, decode_packed_state

T = TypeVar("T", bound=Struct)
_FINGERPRINT_BYTES = 8
_SNAPSHOT_SOURCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["snapshot"],
    "properties": {"snapshot": {"type": "string", "pattern": f"^{NAME.pattern}$"}},
}

Position = Annotated[int, Meta(ge=0, lt=SEQ_LIMIT)]
Fingerprint = Annotated[
    str,
    Meta(
        description="Identifies the model that wrote the state. A model that is not loaded is rejected, unless "
        "`version` names the version that accepts the state.",
        pattern=f"^[0-9a-fA-F]{{{2 * _FINGERPRINT_BYTES}}}$",
        max_length=2 * _FINGERPRINT_BYTES,
        extra={"expected": f"{2 * _FINGERPRINT_BYTES} hexadecimal digits, as in the response to GET"},
    ),
]
States = Annotated[
    dict[str, Any],
    Meta(
        description="One tensor per state of the model.",
        extra={"expected": "an object with a tensor for each state"},
        extra_json_schema={**TENSORS, "example": {"h": [0.1, 0.2]}},
    ),
]


class SnapshotBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that creates a snapshot."""

    after: StateId | UnsetType = UNSET

    @property
    def after_bytes(self) -> bytes | None:
        """The 16 bytes of `after`, or None."""
        return None if self.after is UNSET else decode_state_id(self.after)


class ResetBody(SnapshotBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a reset."""

    to: Annotated[Any, Meta(extra_json_schema={"anyOf": [{"const": "initial"}, _SNAPSHOT_SOURCE]})] = "initial"


class ForkBody(SnapshotBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a fork."""

    to: Annotated[
        str,
        Meta(
            description="The stream to create.",
            extra={"expected": "the id of the stream to create"},
            extra_json_schema={"pattern": f"^{STREAM_ID.pattern}$"},
        ),
    ]
    source: Annotated[Any, Meta(extra_json_schema={"anyOf": [{"const": "present"}, _SNAPSHOT_SOURCE]})] = msgspec.field(
        name="from", default="present"
    )


class StateBody(SnapshotBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that imports a state, in `states` or packed; it is not yet checked against a model."""

    states: States | UnsetType = UNSET
    state: PackedStateText | UnsetType = UNSET
    step: Position = 0
    fingerprint: Fingerprint | None = None

    @property
    def fingerprint_bytes(self) -> bytes | None:
        """The 8 bytes of `fingerprint`, or None."""
        return None if self.fingerprint is None else bytes.fromhex(self.fingerprint)


def read_reset(body: bytes, body_format: Format) -> tuple[bytes | None, str | None]:
    """Decode a reset's body, which may be empty: `after`, and the snapshot's name or None for the initial state.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    reset = _read(body, body_format, ResetBody) if body.strip() else ResetBody()
    return reset.after_bytes, _snapshot(reset.to, "to", "initial")


def check_no_fields(body: bytes, body_format: Format) -> None:
    """Check that a body is empty or an empty object: its members would have no effect.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    if body.strip() and (document := parse(body, body_format)) != {}:
        bad_request(f"The body is {preview(document)}; expected none, or an empty object.")


def read_fork(body: bytes, body_format: Format) -> tuple[str, bytes | None, str | None]:
    """Decode a fork's body: the id of the stream to create, `after`, and the snapshot's name or None for the present.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    fork = _read(body, body_format, ForkBody)
    return check_stream_id(fork.to), fork.after_bytes, _snapshot(fork.source, "from", "present")


def read_snapshot(body: bytes, body_format: Format) -> bytes | None:
    """Decode the body of a request that creates a snapshot, which may be empty: `after`.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    return (_read(body, body_format, SnapshotBody) if body.strip() else SnapshotBody()).after_bytes


def read_state(body: bytes, body_format: Format) -> StateBody:
    """Decode the body of a request that imports a state; `states_of` decodes its tensors.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    decoded = _read(body, body_format, StateBody)
    if (decoded.states is UNSET) == (decoded.state is UNSET):
        found = "neither `states` nor `state`" if decoded.states is UNSET else "both `states` and `state`"
        bad_request(f"The body has {found}; expected one of them.")
    if decoded.state is not UNSET and decoded.fingerprint is not None:
        bad_request("The body has `fingerprint` beside `state`; expected none: a packed state has its own.")
    return decoded


def states_of(states: dict[str, Any], fields: Sequence[StateField]) -> dict[str, Array]:
    """Decode the tensors of an imported state: one row per state, its declared shape and dtype, every value finite.

    Raises:
        ServiceError: `bad_input`: names, shape or dtype differ; `non_finite`.
    """
    names = [field.name for field in fields]
    if states.keys() != set(names):
        raise ServiceError(
            "bad_input",
            f"`states` has {', '.join(map(preview, list(states)[:20])) or 'no names'}; the model has "
            f"{', '.join(map(preview, names)) or 'none'}.",
            fix="Send each state of the model once, and no other.",
        )
    return {
        field.name: read_tensor(
            states[field.name],
            TensorSpec(name=field.name, dtype=field.dtype.name, shape=list(field.shape)),
            (),
            f"State {field.name!r}",
        )
        for field in fields
    }


def check_snapshot_name(text: str) -> str:
    """Return a snapshot's name after checking it.

    Raises:
        ServiceError: `bad_request`: the name is not valid.
    """
    if NAME.fullmatch(text) is None:
        raise ServiceError("bad_request", snapshot_name_problem(text), fix="Use such a name.")
    return text


def read_packed_state(text: str) -> DecodedState:
    """Decode a packed state; whether it belongs to a model is not checked.

    Raises:
        ServiceError: `bad_request`: it is not the text of a packed state.
    """
    try:
        return decode_packed_state(text)
    except ValueError as exc:
        raise ServiceError(
            "bad_request",
            f"`state` has {exc}; expected a packed state.",
            fix="Send a state as it was received, or null for the initial state.",
        ) from exc


def _read(body: bytes, body_format: Format, body_type: type[T]) -> T:
    document = check_envelope(parse(body, body_format), body_type)
    fields = msgspec.structs.fields(body_type)
    return body_type(**{field.name: document[field.encode_name] for field in fields if field.encode_name in document})


def _snapshot(value: Any, key: str, no_snapshot: str) -> str | None:
    """Return the snapshot's name in a field, None if the field has the value for "no snapshot"."""
    if value == no_snapshot:
        return None
    name = value.get("snapshot") if isinstance(value, dict) and value.keys() == {"snapshot"} else None
    if not isinstance(name, str):
        bad_request(f'`{key}` is {preview(value)}; expected "{no_snapshot}" or {{"snapshot": NAME}}.')
    return name
