"""The parameters of an infer request, and of its tensors: what each may be."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from stepwell.addons.oip.errors import bad_request, not_supported, quote
from stepwell.addons.oip.infer_bodies import KEY_LIMIT, InferInput, Parameters
from stepwell.codec.strict.parse import preview
from stepwell.types import Source
from stepwell_client.wire.ids import POSITION_LIMIT, SEQ_LIMIT


def read_binary_size(tensor: InferInput, parameters: Parameters) -> int | None:
    """Return the size of a tensor's raw bytes after the document, None if its values are in the document."""
    reject_shared_memory(tensor.name, parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        bad_request(f"Unable to parse 'binary_data_size': it is {preview(size)}; expected the number of bytes")
    if tensor.data is not UNSET:
        bad_request(f"input {quote(tensor.name)} has both 'data' and 'binary_data_size'; expected one of them")
    return size


def reject_shared_memory(tensor: str, parameters: Parameters) -> None:
    """Check that no parameter of an input tensor names a shared memory."""
    for name in parameters:
        if name.startswith("shared_memory_"):
            not_supported(f"input {quote(tensor)}: the parameter '{name}'")


def read_flag(parameters: Parameters, name: str, *, default: bool = False) -> bool:
    """Return a parameter that is true or false."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        bad_request(f"Unable to parse '{name}': it is {preview(value)}; expected true or false")
    return value


def read_step(step: Any, *, start: bool, sequence: int | str | None) -> int | None:
    """Return the number of a timestep in its sequence, None if the request has none."""
    if step is None or sequence is None:
        return None
    if type(step) is not int or not 1 <= step < SEQ_LIMIT:
        bad_request(f"Unable to parse 'step': it is {preview(step)}; expected an integer from 1 to {SEQ_LIMIT - 1}")
    if start and step != 1:
        bad_request(f"'step' is {step} with 'sequence_start'; expected 1, the number of a sequence's first timestep")
    return step


def read_source(parameters: Parameters, sequence: int | str | None) -> Source | None:
    """Return the log of a timestep and its position, None if the request has none."""
    source_id, at = parameters.get("source_id"), parameters.get("source_at")
    if source_id is None and at is None:
        return None
    if sequence is None:
        bad_request("the parameters 'source_id' and 'source_at' are of a sequence; expected 'sequence_id' with them")
    if type(source_id) is not str or not 1 <= len(source_id) <= KEY_LIMIT:
        bad_request(
            f"Unable to parse 'source_id': it is {preview(source_id)}; expected text of 1 to {KEY_LIMIT} characters"
        )
    if type(at) is not int or not 0 <= at < POSITION_LIMIT:
        bad_request(
            f"Unable to parse 'source_at': it is {preview(at)}; expected an integer from 0 to {POSITION_LIMIT - 1}"
        )
    return Source.of(source_id, (at,))


def read_peek(parameters: Parameters, *, start: bool, end: bool) -> bool:
    """Return whether nothing is to be applied."""
    peek = read_flag(parameters, "peek")
    if peek and (start or end or "source_id" in parameters):
        bad_request("'peek' applies nothing; expected it without 'sequence_start', 'sequence_end' and 'source_id'")
    return peek


def read_idempotency_key(idempotency_key: Any) -> str | None:
    """Return the idempotency key, None if the request has none."""
    if idempotency_key is None:
        return None
    if type(idempotency_key) is not str or not 1 <= len(idempotency_key) <= KEY_LIMIT:
        bad_request(
            f"Unable to parse 'idempotency_key': it is {preview(idempotency_key)}; expected text of 1 to {KEY_LIMIT} "
            "characters"
        )
    return idempotency_key
