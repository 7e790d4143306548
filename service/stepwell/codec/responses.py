"""Responses as documents of plain values for `formats.encode`, and the frequent ones already encoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from stepwell.types import BatchOutput, BulkParts, BulkPrediction, Prediction, StreamPosition
from stepwell_client.wire.formats import JSON, Format, encode, encode_tensor, encode_tensors
from stepwell_client.wire.ids import encode_state_id, encode_state_ids, encode_state_ids_ascii
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.manifest import Array, OutputSpec

_encode_json = msgspec.json.Encoder().encode
_NO_STATE = bytes(16)


def encode_step(prediction: Prediction, body_format: Format, *, chunk: bool, keep: ReturnMode = "all") -> bytes:
    """Return the encoded response to a step or a chunk: that of `step_response`, on the fast path if there is one."""
    if body_format is not JSON or chunk:
        return encode(step_response(prediction, body_format, chunk=chunk, keep=keep), body_format)
    return encode_json_step(prediction)


def encode_json_step(prediction: Prediction) -> bytes:
    """Return the encoded JSON response to one timestep, the most frequent response."""
    batch = prediction.batch
    if prediction.skipped or prediction.source_changed or prediction.versions:
        return encode(step_response(prediction, JSON, chunk=False), JSON)
    if not batch.encoded_rows:
        batch.encoded_rows = _encode_rows(batch)
    text = batch.encoded_rows[prediction.row]
    if prediction.replayed or prediction.created or prediction.shows_version:
        return b"%b%b%b%b}" % (
            text[:-1],
            b',"replayed":true' * prediction.replayed,
            b',"created":true' * prediction.created,
            b',"version":%d' % prediction.version if prediction.shows_version else b"",
        )
    return text


def _encode_rows(batch: BatchOutput) -> list[bytes]:
    """Return the encoded JSON response to each row.

    All rows are encoded in one call, and then split: encoding each row alone takes several times as long. A single row
    is encoded as it is.
    """
    if len(batch.steps) == 1:
        outputs = {name: array[0, -1].tolist() for name, array in batch.arrays.items()}
        state_id = encode_state_id(batch.state_ids[0])
        return [_encode_json({"outputs": outputs, "step": batch.steps[0], "state_id": state_id})]
    template, columns = _encode_outputs(batch.arrays)
    text = b'{"outputs":{%b},"step":%%d,"state_id":"%%b"}' % template
    return [text % row for row in zip(*columns, batch.steps, encode_state_ids_ascii(batch.state_ids), strict=True)]


def _encode_outputs(arrays: Mapping[str, Array]) -> tuple[bytes, list[list[bytes]]]:
    """Return a template of the JSON members of a row's last predictions, and the texts of each row to insert."""
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


def step_response(
    prediction: Prediction, body_format: Format, *, chunk: bool, keep: ReturnMode = "all"
) -> dict[str, Any]:
    """Return the response to a step or a chunk; only a whole chunk (`keep` is `all`) has a time axis."""
    if keep == "none":
        outputs: dict[str, Any] = {}
    elif chunk and keep == "all":
        outputs = encode_tensors(prediction.outputs, body_format)
        if body_format is JSON and prediction.unknown:
            for values in outputs.values():
                values[: prediction.unknown] = [None] * prediction.unknown
    else:
        outputs = {name: encode_tensor(array[-1], body_format) for name, array in prediction.outputs.items()}
    state_id = encode_state_id(prediction.state_id) if prediction.state_id else None
    response = {"outputs": outputs, "step": prediction.step, "state_id": state_id}
    if prediction.replayed:
        response["replayed"] = True
    if prediction.created:
        response["created"] = True
    if prediction.shows_version:
        response["version"] = prediction.version
    if prediction.versions and chunk and keep == "all":
        response["versions"] = _or_null(prediction.versions)
    if prediction.skipped:
        response["skipped"] = prediction.skipped
    if prediction.source_changed:
        response["source_changed"] = True
    if prediction.unknown and body_format is not JSON:
        response["unknown"] = prediction.unknown
    return response


def has_outputs(batch: BatchOutput, specs: Sequence[OutputSpec], keep: ReturnMode) -> bool:
    """Whether a batch has each output that is returned: streams stay with a version whose outputs may be others."""
    shapes = {name: array.shape[2:] for name, array in batch.arrays.items()}
    return keep == "none" or all([shapes.get(spec.name) == spec.row_shape for spec in specs])  # noqa: C419 - few


def bulk_response(
    prediction: BulkPrediction, specs: Sequence[OutputSpec], body_format: Format, *, chunk: bool, keep: ReturnMode
) -> dict[str, Any]:
    """Return the response to columns whose results are columns too; else see `bulk_response_of_parts`."""
    batch = prediction.batch
    rows, arrays = len(batch.steps), batch.arrays
    outputs = {}
    for spec in specs if keep != "none" else ():
        array = arrays[spec.name]
        shape = array.shape if chunk and keep == "all" else (rows, *spec.row_shape)
        outputs[spec.name] = encode_tensor(array.reshape(shape).astype(spec.dtype, copy=False), body_format)
    response = {
        "outputs": outputs,
        "step": batch.steps,
        "state_id": encode_state_ids(batch.state_ids),
        "errors": {},
    }
    if prediction.replayed:
        response["replayed"] = [*range(rows)]
    if prediction.shows_version:
        response["version"] = list(prediction.versions)
    return response


def bulk_response_of_parts(
    results: BulkParts,
    errors: Mapping[int, Mapping[str, Any]],
    specs: Sequence[OutputSpec],
    body_format: Format,
    *,
    length: int,
    chunk: bool,
    keep: ReturnMode = "all",
) -> dict[str, Any]:
    """Return the response to columns.

    Args:
        results: The results of all rows.
        errors: The problem document of each stream that failed, by index.
        specs: The outputs that the model returns.
        body_format: The response's format. For a row that failed, JSON has null, and msgpack zeros (nil in `step` and
            `state_id`).
        length: T of the request.
        chunk: The request has a time axis.
        keep: Which predictions were requested.
    """
    time, rows = (length,) if chunk and keep == "all" else (), range(results.n_rows)
    found = {i: result for i, result in sorted(results.others.items()) if isinstance(result, Prediction)}
    versions = {i: result.version for i, result in found.items() if result.shows_version}
    replayed = [i for i, result in found.items() if result.replayed]
    rows_of = defaultdict[BatchOutput, tuple[list[int], list[int]]](lambda: ([], []))
    for part, columns, at in results.columns:
        in_response, in_batch = rows_of[columns.batch]
        in_response.extend(part)
        in_batch.extend(at)
        replayed += part if columns.replayed else ()
        if columns.shows_version:
            versions |= zip(part, [columns.versions[j] for j in at], strict=True)
    for i, result in found.items():
        in_response, in_batch = rows_of[result.batch]
        in_response.append(i)
        in_batch.append(result.row)
    steps: list[int | None] = [None] * len(rows)
    state_ids: list[bytes] = [b""] * len(rows)
    for batch, indices_of in rows_of.items():
        for i, j in zip(*indices_of, strict=True):
            steps[i], state_ids[i] = batch.steps[j], batch.state_ids[j]
    unknown_of = {i: result.unknown for i, result in found.items() if result.unknown}
    outputs: dict[str, Any] = {}
    for spec in specs if keep != "none" else ():
        column, missing = _column(rows_of, spec, len(rows), time)
        outputs[spec.name] = encode_tensor(column, body_format)
        if body_format is JSON:
            for i in missing:
                outputs[spec.name][i] = None
            for i, unknown in unknown_of.items() if time else ():
                if i not in missing:
                    outputs[spec.name][i][:unknown] = [None] * unknown
    response: dict[str, Any] = {
        "outputs": outputs,
        "step": steps,
        "state_id": _encode_state_ids(state_ids),
        "errors": {str(i): problem for i, problem in sorted(errors.items())},
    }
    if replayed:
        response["replayed"] = sorted(replayed)
    if skipped := {i: result.skipped for i, result in found.items() if result.skipped}:
        response["skipped"] = [skipped.get(i, 0) for i in rows]
    if changed := [i for i, result in found.items() if result.source_changed]:
        response["source_changed"] = changed
    if versions:
        response["version"] = [versions.get(i) for i in rows]
    if chunk and keep == "all" and (by_timestep := {i: r.versions for i, r in found.items() if r.versions}):
        response["versions"] = [_or_null(by_timestep[i]) if i in by_timestep else None for i in rows]
    if unknown_of and body_format is not JSON:
        response["unknown"] = [unknown_of.get(i, 0) for i in rows]
    return response


def _or_null(versions: Sequence[int]) -> list[int | None] | None:
    """Return the version of each timestep, None where it is not known; None: all are `version`."""
    return [version or None for version in versions] or None


def _column(
    rows_of: Mapping[BatchOutput, tuple[list[int], list[int]]], spec: OutputSpec, n_rows: int, time: tuple[int, ...]
) -> tuple[Array, set[int]]:
    """Return one output of all rows, and the rows that do not have it, which are zeros.

    A stream stays with the model version that created it, whose outputs may differ.

    Args:
        rows_of: For each batch, its rows' indices in the response and in the batch.
        spec: The output.
        n_rows: How many rows the response has.
        time: The axes between rows and values.
    """
    column = np.zeros((n_rows, *time, *spec.row_shape), spec.dtype)
    missing = set(range(n_rows))
    for batch, (at, rows) in rows_of.items():
        array = batch.arrays.get(spec.name)
        if array is not None and array.shape[2:] == spec.row_shape:
            column[at] = array[rows] if time else array[rows, -1]
            missing.difference_update(at)
    return column, missing


def _encode_state_ids(state_ids: Sequence[bytes]) -> list[str | None]:
    """Return the text of each state id, None for an empty one; all are encoded in one call."""
    texts = encode_state_ids([state_id or _NO_STATE for state_id in state_ids])
    return [text if state_id else None for text, state_id in zip(texts, state_ids, strict=True)]


def position_response(position: Prediction | StreamPosition) -> dict[str, Any]:
    """Return the response to a reset, a fork, a snapshot or an imported state."""
    response: dict[str, Any] = {"step": position.step, "state_id": encode_state_id(position.state_id)}
    return {**response, "replayed": True} if position.replayed else response


def rfc3339(milliseconds: int) -> str:
    """Format a time, milliseconds since the Unix epoch, as RFC 3339 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
