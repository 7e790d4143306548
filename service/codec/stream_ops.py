"""Bodies that are not about timesteps: resets, forks, snapshots, and states from outside."""

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
    """What a model declares of a state: what `model_export.state_rows.StateField` has."""

    @property
    def name(self) -> str:
        """The state's name."""
        ...

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its type on the wire."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """One row."""
        ...


class ForkBody(NamedTuple):
    """What a fork asks for.

    Attributes:
        to: The stream to begin; its id is checked.
        snapshot: The snapshot to go on from, or None.
        after: 16 bytes, or None.
    """

    to: str
    snapshot: str | None
    after: bytes | None


class StateBody(NamedTuple):
    """A state from outside, still to be held against a model.

    Attributes:
        states: As they came.
        step: Timesteps that the stream is to count.
        fingerprint: The model that wrote it, as far as told.
        after: 16 bytes, or None.
    """

    states: dict[str, Any]
    step: int
    fingerprint: bytes | None
    after: bytes | None


def read_reset(body: bytes, form: Format) -> tuple[bytes | None, str | None]:
    """Return `after` and the snapshot's name of a reset's body; the body may be empty.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = _optional(body, form, ("to", "after"))
    return _after(document), _snapshot(document, "to", "initial")


def read_fork(body: bytes, form: Format) -> ForkBody:
    """Return what a fork asks for.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = check_envelope(parse(body, form), ("from", "after"), needed=("to",))
    if not isinstance(document["to"], str):
        bad_request(f"`to` is {preview(document['to'])}; expected the id of the stream to begin.")
    return ForkBody(check_stream_id(document["to"]), _snapshot(document, "from", "present"), _after(document))


def read_snapshot(body: bytes, form: Format) -> bytes | None:
    """Return `after` of the body that takes a snapshot; the body may be empty.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    return _after(_optional(body, form, ("after",)))


def read_state(body: bytes, form: Format) -> StateBody:
    """Return a state from outside; `states_of` reads its tensors.

    Raises:
        ServiceError: `bad_json` or `bad_request`.
    """
    document = check_envelope(parse(body, form), ("step", "fingerprint", "after"), needed=("states",))
    states, step, fingerprint = document["states"], document.get("step", 0), document.get("fingerprint")
    if not isinstance(states, dict):
        bad_request(f"`states` is {preview(states)}; expected an object with a tensor for each state.")
    if type(step) is not int or not 0 <= step < SEQ_LIMIT:
        bad_request(f"`step` is {preview(step)}; expected an integer from 0 to {SEQ_LIMIT - 1}.")
    return StateBody(states, step, None if fingerprint is None else _fingerprint(fingerprint), _after(document))


def states_of(states: dict[str, Any], specs: Sequence[StateSpec]) -> dict[str, Array]:
    """Return one row per state, shape and dtype as the model declares, every value finite.

    Raises:
        ServiceError: `bad_input`: names, shape or dtype; `non_finite`.
    """
    names = [spec.name for spec in specs]
    if states.keys() != set(names):
        raise ServiceError(
            "bad_input",
            f"`states` has {', '.join(map(preview, list(states)[:20])) or 'no names'}; the model carries "
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
    """Return the name as given.

    Raises:
        ServiceError: `bad_request`.
    """
    if NAME.fullmatch(text) is None:
        raise ServiceError(
            "bad_request",
            f"The snapshot's name is {text[:70]!a} ({len(text)} characters); expected 1 to 64 of A-Z a-z 0-9 . _ -, "
            "the first a letter or digit.",
            fix="Name the snapshot so.",
        )
    return text


def _optional(body: bytes, form: Format, keys: tuple[str, ...]) -> dict[str, Any]:
    return check_envelope(parse(body, form), keys, needed=()) if body.strip() else {}


def _after(document: dict[str, Any]) -> bytes | None:
    return decode_state_id(document["after"]) if "after" in document else None


def _snapshot(document: dict[str, Any], key: str, else_: str) -> str | None:
    """Return the snapshot that a key names, None where it says in a word that there is none."""
    value = document.get(key, else_)
    if value == else_:
        return None
    name = value.get("snapshot") if isinstance(value, dict) and value.keys() == {"snapshot"} else None
    if not isinstance(name, str):
        bad_request(f'`{key}` is {preview(value)}; expected "{else_}" or {{"snapshot": NAME}}.')
    return name


def _fingerprint(value: Any) -> bytes:
    try:
        fingerprint = bytes.fromhex(value)
    except (TypeError, ValueError):
        fingerprint = b""
    if len(fingerprint) != _FINGERPRINT_BYTES:
        bad_request(
            f"`fingerprint` is {preview(value)}; expected {2 * _FINGERPRINT_BYTES} hexadecimal digits, as GET answers."
        )
    return fingerprint
