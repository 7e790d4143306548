"""The responses to timesteps whose state is in the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from stepwell.addons.api_schemas.responses import Document, Problem, Tensors
from stepwell.codec.step_bodies import PackedStateText
from stepwell_client.wire.formats import JSON, Format, encode_tensor
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.state_packing import encode_packed_state


class RunResponse(Document, kw_only=True):
    """The response to timesteps whose state is in the request; a row that failed is null in each column."""

    outputs: Tensors
    state: Annotated[
        PackedStateText | list[PackedStateText | None],
        Meta(description="The state after the timestep; of columns a list, with null for a row that failed."),
    ]
    errors: Annotated[dict[str, Problem], Meta(description="Of columns: by row index, as text.")] | UnsetType = UNSET


def run_response(
    outputs: Mapping[str, Array], states: Array, fingerprint: bytes, body_format: Format
) -> dict[str, Any]:
    """Return the response to one timestep.

    Args:
        outputs: `(1, *row)` by output.
        states: The packed state after the timestep, `(1, bytes)` uint8.
        fingerprint: Of the model.
        body_format: The response's format.
    """
    return {
        "outputs": {name: encode_tensor(array[0], body_format) for name, array in outputs.items()},
        "state": encode_packed_state(fingerprint, states.tobytes()),
    }


def run_columns_response(
    outputs: Mapping[str, Array],
    states: Array,
    fingerprint: bytes,
    errors: Mapping[int, Mapping[str, Any]],
    body_format: Format,
) -> dict[str, Any]:
    """Return the response to a timestep of each of several rows.

    Args:
        outputs: `(N, *row)` by output; zeros for a row that failed, for which JSON has null.
        states: The packed states after the timestep, `(N, bytes)` uint8.
        fingerprint: Of the model.
        errors: The problem document of each row that failed, by index.
        body_format: The response's format.
    """
    columns = {name: encode_tensor(array, body_format) for name, array in outputs.items()}
    texts: list[str | None] = _texts(states, fingerprint)
    for row in errors:
        texts[row] = None
        for values in columns.values() if body_format is JSON else ():
            values[row] = None
    return {
        "outputs": columns,
        "state": texts,
        "errors": {str(row): problem for row, problem in sorted(errors.items())},
    }


def _texts(states: Array, fingerprint: bytes) -> list[str | None]:
    raw, size = states.tobytes(), states.shape[1]
    return [encode_packed_state(fingerprint, raw[row * size : (row + 1) * size]) for row in range(len(states))]
