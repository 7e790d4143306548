"""Request bodies of stream operations: reset, fork, snapshot, and the import of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from model_export.manifest import NAME, Array, TensorSpec
from service.codec.envelopes import bad_request, check_envelope
from service.codec.formats import Format
from service.codec.strict_parse import parse, preview
from service.codec.strict_tensors import read_tensor
from service.errors import ServiceError
from service.ids import SEQ_LIMIT, check_stream_id, decode_state_id

_FINGERPRINT_BYTES = 8


class StateSpec(Protocol):
    """A model's declaration of a state, as in `model_export.state_rows.StateField`."""

    @property
    def name(self) -> str:
        """The state's name."""
        ...

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its dtype in request bodies."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        ...


class ForkBody(NamedTuple):
    """A decoded fork request.

    Attributes:
        to: Id of the stream to create, checked.
        snapshot: The snapshot to copy, or None for the stream's current state.
        after: State id, 16 bytes, or None.
    """

    to: str
    snapshot: str | None
    after: bytes | None


class StateBody(NamedTuple):
    """A decoded request that imports a state; the tensors are not yet checked against a model.

    Attributes:
        states: Tensors by name, not yet checked.
        step: The stream's step from then on.
        fingerprint: Fingerprint of the model that wrote the state, or None if not given.
        after: State id, 16 bytes, or None.
    """

    states: dict[str, Any]
    step: int
    fingerprint: bytes | None
    after: bytes | None


def read_reset(body: bytes, body_format: Format) -> tuple[bytes | None, str | None]:
    """Decode a reset's body, which may be empty: `after`, and the snapshot's name or None for the initial state.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = _optional(body, body_format, ("to", "after"))
    return _after(document), _snapshot(document, "to", "initial")


def read_fork(body: bytes, body_format: Format) -> ForkBody:
    """Decode a fork's body.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = check_envelope(parse(body, body_format), ("from", "after"), required=("to",))
    if not isinstance(document["to"], str):
        bad_request(f"`to` is {preview(document['to'])}; expected the id of the stream to create.")
    return ForkBody(check_stream_id(document["to"]), _snapshot(document, "from", "present"), _after(document))


def read_snapshot(body: bytes, body_format: Format) -> bytes | None:
    """Decode the body of a request that creates a snapshot, which may be empty: `after`.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    return _after(_optional(body, body_format, ("after",)))


def read_state(body: bytes, body_format: Format) -> StateBody:
    """Decode the body of a request that imports a state; `states_of` decodes its tensors.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = check_envelope(parse(body, body_format), ("step", "fingerprint", "after"), required=("states",))
    states, step, fingerprint = document["states"], document.get("step", 0), document.get("fingerprint")
    if not isinstance(states, dict):
        bad_request(f"`states` is {preview(states)}; expected an object with a tensor for each state.")
    if type(step) is not int or not 0 <= step < SEQ_LIMIT:
        bad_request(f"`step` is {preview(step)}; expected an integer from 0 to {SEQ_LIMIT - 1}.")
    return StateBody(states, step, None if fingerprint is None else _fingerprint(fingerprint), _after(document))


def states_of(states: dict[str, Any], specs: Sequence[StateSpec]) -> dict[str, Array]:
    """Decode the tensors of an imported state: one row per state, its declared shape and dtype, every value finite.

    Raises:
        ServiceError: `bad_input`: names, shape or dtype differ; `non_finite`.
    """
    names = [spec.name for spec in specs]
    if states.keys() != set(names):
        raise ServiceError(
            "bad_input",
            f"`states` has {', '.join(map(preview, list(states)[:20])) or 'no names'}; the model has "
            f"{', '.join(map(preview, names)) or 'none'}.",
            fix="Send each state of the model once, and no other.",
        )
    return {
        spec.name: read_tensor(
            states[spec.name],
            TensorSpec(name=spec.name, dtype=spec.dtype.name, shape=list(spec.shape)),
            (),
            f"State {spec.name!r}",
        )
        for spec in specs
    }


def check_snapshot_name(text: str) -> str:
    """Return a snapshot's name after checking it.

    Raises:
        ServiceError: `bad_request`: the name is not valid.
    """
    if NAME.fullmatch(text) is None:
        raise ServiceError(
            "bad_request",
            f"The snapshot's name is {text[:70]!a} ({len(text)} characters); expected 1 to 64 of A-Z a-z 0-9 . _ -, "
            "the first a letter or digit.",
            fix="Use such a name.",
        )
    return text


def _optional(body: bytes, body_format: Format, keys: tuple[str, ...]) -> dict[str, Any]:
    return check_envelope(parse(body, body_format), keys, required=()) if body.strip() else {}


def _after(document: dict[str, Any]) -> bytes | None:
    return decode_state_id(document["after"]) if "after" in document else None


def _snapshot(document: dict[str, Any], key: str, no_snapshot: str) -> str | None:
    """Return the snapshot's name in a field, None if the field is missing or has the value for "no snapshot"."""
    value = document.get(key, no_snapshot)
    if value == no_snapshot:
        return None
    name = value.get("snapshot") if isinstance(value, dict) and value.keys() == {"snapshot"} else None
    if not isinstance(name, str):
        bad_request(f'`{key}` is {preview(value)}; expected "{no_snapshot}" or {{"snapshot": NAME}}.')
    return name


def _fingerprint(value: Any) -> bytes:
    try:
        fingerprint = bytes.fromhex(value)
    except (TypeError, ValueError):
        fingerprint = b""
    if len(fingerprint) != _FINGERPRINT_BYTES:
        bad_request(
            f"`fingerprint` is {preview(value)}; expected {2 * _FINGERPRINT_BYTES} hexadecimal digits, as in the "
            "response to GET."
        )
    return fingerprint
