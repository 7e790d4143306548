"""Request bodies: fork, snapshot, and the import of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from stepwell.addons.api_schemas.responses import Position
from stepwell.codec.resets import SNAPSHOT_SOURCE, AfterBody, read_body, snapshot_in
from stepwell.codec.step_bodies import TENSORS, PackedStateText
from stepwell.codec.strict.parse import bad_request, preview
from stepwell.codec.strict.tensors import read_tensor
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell_client.wire.formats import Format
from stepwell_client.wire.ids import STREAM_ID
from stepwell_export.runtime.manifest import Array, TensorSpec
from stepwell_export.runtime.state_packing import StateField

_FINGERPRINT_BYTES = 8

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


class SnapshotBody(AfterBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that creates a snapshot."""


class ForkBody(AfterBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a fork."""

    to: Annotated[
        str,
        Meta(
            description="The stream to create.",
            extra={"expected": "the id of the stream to create"},
            extra_json_schema={"pattern": f"^{STREAM_ID.pattern}$"},
        ),
    ]
    source: Annotated[Any, Meta(extra_json_schema={"anyOf": [{"const": "present"}, SNAPSHOT_SOURCE]})] = msgspec.field(
        name="from", default="present"
    )


class StateBody(AfterBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that imports a state, in `states` or packed; it is not yet checked against a model."""

    states: States | UnsetType = UNSET
    state: PackedStateText | UnsetType = UNSET
    step: Position = 0
    fingerprint: Fingerprint | None = None

    @property
    def fingerprint_bytes(self) -> bytes | None:
        """The 8 bytes of `fingerprint`, or None."""
        return None if self.fingerprint is None else bytes.fromhex(self.fingerprint)


def read_fork(body: bytes, body_format: Format) -> tuple[str, bytes | None, str | None]:
    """Decode a fork's body: the id of the stream to create, `after`, and the snapshot's name or None for the present.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    fork = read_body(body, body_format, ForkBody)
    return check_stream_id(fork.to), fork.after_bytes, snapshot_in(fork.source, "from", "present")


def read_snapshot(body: bytes, body_format: Format) -> bytes | None:
    """Decode the body of a request that creates a snapshot, which may be empty: `after`.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    return (read_body(body, body_format, SnapshotBody) if body.strip() else SnapshotBody()).after_bytes


def read_state(body: bytes, body_format: Format) -> StateBody:
    """Decode the body of a request that imports a state; `states_of` decodes its tensors.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    decoded = read_body(body, body_format, StateBody)
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
