"""Answers as documents of plain values, ready for `formats.encode`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from model_export.manifest import Array, OutputSpec
from service.codec.formats import JSON, Format, encode
from service.ids import encode_state_id, encode_state_ids, encode_state_ids_ascii
from service.types import BatchOutput, BulkPrediction, Prediction, ReturnMode, StreamPosition

_encode_json = msgspec.json.Encoder().encode
_BATCH = attrgetter("batch")
_NO_STATE = bytes(16)


def encode_step(answered: Prediction, form: Format, *, chunk: bool, keep: ReturnMode = "all") -> bytes:
    """Return the answer to a step or a chunk, written out: `step_response` in `form`, made in one go where it is hot."""
    if form is not JSON or chunk:
        return encode(step_response(answered, form, chunk=chunk, keep=keep), form)
    return encode_json_step(answered)


def encode_json_step(answered: Prediction) -> bytes:
    """Return the answer to one timestep, written out in JSON: what nearly all are."""
    made = answered.batch
    if not made.encoded_rows:
        made.encoded_rows = _in_json(made)
    text = made.encoded_rows[answered.row]
    if answered.replayed or answered.created:
        return b"%b%b%b}" % (
            text[:-1],
            b',"replayed":true' * answered.replayed,
            b',"created":true' * answered.created,
        )
    return text


def _in_json(made: BatchOutput) -> list[bytes]:
    """Return the answer to each row.

    All rows are encoded at once, and then parted: a row alone takes several times as long.
    """
    shape, columns = _outputs_in_json(made.arrays)
    text = b'{"outputs":{%b},"step":%%d,"state_id":"%%b"}' % shape
    return [text % row for row in zip(*columns, made.steps, encode_state_ids_ascii(made.state_ids), strict=True)]


def _outputs_in_json(arrays: Mapping[str, Array]) -> tuple[bytes, list[list[bytes]]]:
    """Return the members of a JSON object with the last predictions of a row, and what is put in of each row."""
    members, columns = [], []
    for name, array in arrays.items():
        last, label = array[:, -1], _encode_json(name).replace(b"%", b"%%")
        if last.ndim == 2 and last.size:
            members.append(label + b":[%b]")
            columns.append(_encode_json(last.tolist())[2:-2].split(b"],["))
        else:
            members.append(label + b":%b")
            columns.append([_encode_json(row) for row in last.tolist()])
    return b",".join(members), columns


def step_response(answered: Prediction, form: Format, *, chunk: bool, keep: ReturnMode = "all") -> dict[str, Any]:
    """Return the answer to a step or a chunk; only a whole chunk (`keep` is `all`) has a time axis."""
    if keep == "none":
        outputs: dict[str, Any] = {}
    elif chunk and keep == "all":
        outputs = {name: encode_tensor(array, form) for name, array in answered.outputs.items()}
    else:
        outputs = {name: encode_tensor(array[-1], form) for name, array in answered.outputs.items()}
    answer = {"outputs": outputs, "step": answered.step, "state_id": encode_state_id(answered.state_id)}
    if answered.replayed:
        answer["replayed"] = True
    if answered.created:
        answer["created"] = True
    return answer


def bulk_response(
    answered: BulkPrediction, specs: Sequence[OutputSpec], form: Format, *, chunk: bool, keep: ReturnMode
) -> dict[str, Any]:
    """Return the answer to columns where every stream moved, none for the second time; otherwise see `bulk_response_of_rows`."""
    made = answered.batch
    rows, arrays = len(made.steps), made.arrays
    outputs = {}
    for spec in specs if keep != "none" else ():
        array = arrays[spec.name]
        shape = array.shape if chunk and keep == "all" else (rows, *spec.row_shape)
        outputs[spec.name] = encode_tensor(array.reshape(shape).astype(spec.dtype, copy=False), form)
    return {
        "outputs": outputs,
        "step": made.steps,
        "state_id": encode_state_ids(made.state_ids),
        "errors": {},
    }


def bulk_response_of_rows(
    results: Sequence[Prediction | None],
    errors: Mapping[int, Mapping[str, Any]],
    specs: Sequence[OutputSpec],
    form: Format,
    *,
    length: int,
    chunk: bool,
    keep: ReturnMode = "all",
) -> dict[str, Any]:
    """Return the answer to columns.

    Args:
        results: One per stream, None where it failed.
        errors: The problem document of each that failed, by index.
        specs: The outputs that the model answers.
        form: The answer's format: where a row failed, JSON has null, and msgpack zeros (nil in `step`, `state_id`).
        length: T of the request.
        chunk: The request had a time axis.
        keep: Which predictions were asked for.
    """
    time = (length,) if chunk and keep == "all" else ()
    outputs: dict[str, Any] = {}
    for spec in specs if keep != "none" else ():
        shape = (len(results), *time, *spec.row_shape)
        together = _together(results, spec.name, (length, *spec.row_shape)) if keep == "all" and not errors else None
        missing = []
        if together is not None:
            column = together.reshape(shape).astype(spec.dtype, copy=False)
        else:
            column = np.zeros(shape, spec.dtype)
            for i, result in enumerate(results):
                rows = None if result is None else result.outputs.get(spec.name)
                # A stream that an older version of the model began goes on with that one; its outputs may be others.
                if rows is None or rows.shape[1:] != spec.row_shape:
                    missing.append(i)
                else:
                    column[i] = rows if time else rows[-1]
        outputs[spec.name] = encode_tensor(column, form)
        if form is JSON:
            for i in missing:
                outputs[spec.name][i] = None
    answer: dict[str, Any] = {
        "outputs": outputs,
        "step": [result and result.step for result in results],
        "state_id": _state_ids(results),
        "errors": {str(i): problem for i, problem in sorted(errors.items())},
    }
    if replayed := [i for i, result in enumerate(results) if result is not None and result.replayed]:
        answer["replayed"] = replayed
    return answer


def _together(results: Sequence[Prediction | None], name: str, shape: tuple[int, ...]) -> Array | None:
    """Return the predictions of all rows behind each other; None where one is not there, or of another shape."""
    parts = []
    for made, run in groupby(results, _BATCH):  # rows that were asked for together were mostly made together
        array = made.arrays.get(name)
        if array is None or array.shape[1:] != shape:
            return None
        parts.append(array[[result.row for result in run if result is not None]])
    return np.concatenate(parts)


def _state_ids(results: Sequence[Prediction | None]) -> list[str | None]:
    """Return each row's state id, all made at once; None where a row failed."""
    texts = encode_state_ids([_NO_STATE if result is None else result.state_id for result in results])
    return [text if result is not None else None for text, result in zip(texts, results, strict=True)]


def position_response(position: Prediction | StreamPosition) -> dict[str, Any]:
    """Return the answer to what put a stream somewhere."""
    answer: dict[str, Any] = {"step": position.step, "state_id": encode_state_id(position.state_id)}
    return {**answer, "replayed": True} if position.replayed else answer


def rfc3339(milliseconds: int) -> str:
    """Return a time as RFC 3339 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode_tensor(array: Array, form: Format) -> Any:
    """Return an array as nested lists, or packed for msgpack."""
    if form is JSON:
        return array.tolist()
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"d": array.dtype.name, "s": list(array.shape), "b": raw.tobytes()}
