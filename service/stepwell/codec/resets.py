"""The body of a reset, and what bodies of other operations on a stream share with it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.codec.step_bodies import StateId
from stepwell.codec.strict.bodies import check_envelope
from stepwell.codec.strict.parse import bad_request, parse, preview
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import Format
from stepwell_client.wire.ids import NAME, decode_state_id, snapshot_name_problem

T = TypeVar("T", bound=Struct)
SNAPSHOT_SOURCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["snapshot"],
    "properties": {"snapshot": {"type": "string", "pattern": f"^{NAME.pattern}$"}},
}
"""The JSON schema of a snapshot as the state that a stream continues from."""


class AfterBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """A body with `after`, which is the state id that the stream must have."""

    after: StateId | UnsetType = UNSET

    @property
    def after_bytes(self) -> bytes | None:
        """The 16 bytes of `after`, or None."""
        return None if self.after is UNSET else decode_state_id(self.after)


class ResetBody(AfterBody, kw_only=True, forbid_unknown_fields=True):
    """The body of a reset."""

    to: Annotated[Any, Meta(extra_json_schema={"anyOf": [{"const": "initial"}, SNAPSHOT_SOURCE]})] = "initial"


def read_reset(body: bytes, body_format: Format) -> tuple[bytes | None, str | None]:
    """Decode a reset's body, which may be empty: `after`, and the snapshot's name or None for the initial state.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    reset = read_body(body, body_format, ResetBody) if body.strip() else ResetBody()
    return reset.after_bytes, snapshot_in(reset.to, "to", "initial")


def check_snapshot_name(text: str) -> str:
    """Return a snapshot's name after checking it.

    Raises:
        ServiceError: `bad_request`: the name is not valid.
    """
    if NAME.fullmatch(text) is None:
        raise ServiceError("bad_request", snapshot_name_problem(text), fix="Use such a name.")
    return text


def read_body(body: bytes, body_format: Format, body_type: type[T]) -> T:
    """Decode a body as a struct.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = check_envelope(parse(body, body_format), body_type)
    fields = msgspec.structs.fields(body_type)
    return body_type(**{field.name: document[field.encode_name] for field in fields if field.encode_name in document})


def snapshot_in(value: Any, key: str, no_snapshot: str) -> str | None:
    """Return the snapshot's name in a field, None if the field has the value for "no snapshot"."""
    if value == no_snapshot:
        return None
    name = value.get("snapshot") if isinstance(value, dict) and value.keys() == {"snapshot"} else None
    if not isinstance(name, str):
        bad_request(f'`{key}` is {preview(value)}; expected "{no_snapshot}" or {{"snapshot": NAME}}.')
    return name
