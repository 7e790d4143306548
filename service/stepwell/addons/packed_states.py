"""Decodes the packed states of requests, and checks them against the model that is to continue from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stepwell.engine.packing import finite_rows
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.models.served import ServedModel
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.state_packing import DecodedState, decode_packed_state


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


def row_in(packed: DecodedState, served: ServedModel, models: ModelRegistry) -> bytes:
    """Return the packed state row in a packed state; whether its values are finite is not checked.

    Args:
        packed: The packed state.
        served: The model version that is to continue from it.
        models: The loaded models, for the words of the error.

    Raises:
        ServiceError: `model_changed`: another version or model wrote it; `bad_request`: it has another number of bytes.
    """
    if packed.fingerprint != served.fingerprint:
        writer = models.by_fingerprint(served.name, packed.fingerprint)
        fix = f"Send ?version={writer.version}." if writer is not None and models.is_current(writer) else ""
        fix = f"{fix} Or send a state of version {served.version}, or null in `run`.".strip()
        raise models.changed_error(served.name, packed.fingerprint, served, fix=fix)
    if len(packed.state) != served.step_model.state_bytes:
        raise ServiceError(
            "bad_request",
            f"`state` has {len(packed.state)} bytes of states; expected {served.step_model.state_bytes}.",
            fix="Send a state as it was received.",
        )
    return packed.state


def states_in(packed: DecodedState, served: ServedModel, models: ModelRegistry) -> dict[str, Array]:
    """Return the states in a packed state, `*row` by name.

    Raises:
        ServiceError: As for `row_in`, and `non_finite_state`.
    """
    rows = served.step_model.unpack(np.frombuffer(row_in(packed, served, models), np.uint8)[None])
    if errors := non_finite_rows(rows):
        raise errors[0]
    return {name: array[0] for name, array in rows.items()}


def non_finite_rows(states: Mapping[str, Array]) -> dict[int, ServiceError]:
    """Return the error of each row of given states, `(rows, *row)` by name, that has NaN or infinity."""
    return {
        row: ServiceError(
            "non_finite_state",
            f"`state` has NaN or infinity in {name!r}; expected finite numbers only.",
            fix="Send an earlier state.",
        )
        for row, name in (finite_rows(states)[1] if states else {}).items()
    }
