"""`StrictDecoder`: decodes request bodies from plain values; it defines what is valid, and gives exact errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from stepwell.codec.sources import check_source
from stepwell.codec.step_bodies import (
    BulkBody,
    BulkMessage,
    DecodedBulk,
    DecodedRun,
    DecodedStep,
    FeedMessage,
    PeekBody,
    RunBody,
    StepBody,
    StreamMessage,
    correlation_in,
)
from stepwell.codec.strict.bodies import check_envelope
from stepwell.codec.strict.parse import bad_request, parse, preview
from stepwell.codec.strict.tensors import may_be_missing, missing_values, read_column, read_tensor
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import Format, encode
from stepwell_export.runtime.manifest import Array, InputSpec

B = TypeVar("B", bound=msgspec.Struct)


class SlowBodyError(Exception):
    """A body is too long to be decoded strictly on the event loop; nothing is known of it yet."""


class StrictDecoder:
    """Decodes request bodies for one model, from plain values."""

    def __init__(self, specs: Sequence[InputSpec], *, max_bytes: float = math.inf) -> None:
        """Create it for the declared inputs.

        Args:
            specs: The inputs.
            max_bytes: For a longer body, each method raises `SlowBodyError`.
        """
        self._max_bytes = max_bytes
        self._specs = {spec.name: spec for spec in specs}
        self._required = {spec.name for spec in specs if not may_be_missing(spec)}

    def step(self, body: bytes, body_format: Format, body_type: type[StepBody], *, chunk: bool = False) -> DecodedStep:
        """Decode a body that steps one stream; `chunk` is whether the inputs have a time axis, unless it has a field.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input` or `non_finite`.
        """
        document = check_envelope(self._parse(body, body_format), body_type)
        if issubclass(body_type, PeekBody):
            chunk = _chunk(document)
        return self._step(document, body_type, body_format, chunk=chunk)

    def bulk(self, body: bytes, body_format: Format, body_type: type[BulkBody], *, chunk: bool) -> DecodedBulk:
        """Decode columns; an error of a single row is not raised.

        Raises:
            ServiceError: As for `step`.
        """
        document = check_envelope(self._parse(body, body_format), body_type)
        return self._bulk(document, body_type, body_format, chunk=chunk)

    def run(self, body: bytes, body_format: Format) -> DecodedRun:
        """Decode timesteps whose states are in the body; an error of a single row of columns is not raised.

        Raises:
            ServiceError: As for `step`.
        """
        document = check_envelope(self._parse(body, body_format), RunBody)
        given = _body(document, RunBody, body_format)
        if isinstance(given.state, list):
            inputs, faults = self._columns(document["inputs"], len(given.state), chunk=False)
            return DecodedRun(given, inputs, faults)
        inputs = self._rows(document["inputs"], chunk=False)
        return DecodedRun(given, {name: array[None] for name, array in inputs.items()})

    def message(
        self, message: bytes, message_format: Format, correlation: dict[str, Any], *, many: bool
    ) -> DecodedStep | DecodedBulk:
        """Decode a message of a feed, for one or for many streams; `correlation` is filled even if it is rejected.

        Raises:
            ServiceError: As for `step`.
        """
        document = self._parse(message, message_format)
        correlation |= correlation_in(document, message_format)
        if many and isinstance(document, dict) and "streams" in document:
            check_envelope(document, BulkMessage)
            return self._bulk(document, BulkMessage, message_format, chunk=_chunk(document))
        message_type = StreamMessage if many else FeedMessage
        check_envelope(document, message_type)
        return self._step(document, message_type, message_format, chunk=_chunk(document))

    # ---------------------------------------------------------------- helpers

    def _parse(self, body: bytes, body_format: Format) -> Any:
        if len(body) > self._max_bytes:
            raise SlowBodyError
        return parse(body, body_format)

    def _step(
        self, document: dict[str, Any], body_type: type[StepBody], body_format: Format, *, chunk: bool
    ) -> DecodedStep:
        step = DecodedStep(_body(document, body_type, body_format), self._rows(document["inputs"], chunk=chunk), chunk)
        check_source(step.body.source, step.length)
        return step

    def _rows(self, value: Any, *, chunk: bool) -> dict[str, Array]:
        """Return the inputs of one row, `(T, *row)` by name."""
        lead = (None,) if chunk else ()
        given = self._by_name(value)
        inputs = {
            name: read_tensor(value, self._specs[name], lead, f"Input {name!r}")
            for name, value in given.items()
            if value is not None or not may_be_missing(self._specs[name])
        }
        if not chunk:
            inputs = {name: array[None] for name, array in inputs.items()}
        if len(inputs) < len(given):
            length = next(iter(map(len, inputs.values())), None if chunk else 1)
            inputs = self._fill_in(inputs, () if length is None else (length,))
        return inputs

    def _bulk(
        self, document: dict[str, Any], body_type: type[BulkBody], body_format: Format, *, chunk: bool
    ) -> DecodedBulk:
        inputs, faults = self._columns(document["inputs"], len(document["streams"]), chunk=chunk)
        return DecodedBulk(_body(document, body_type, body_format), inputs, chunk, faults)

    def _columns(self, value: Any, rows: int, *, chunk: bool) -> tuple[dict[str, Array], dict[int, ServiceError]]:
        """Return the inputs of all rows, `(rows, T, *row)` by name, and the errors of single rows."""
        inputs: dict[str, Array] = {}
        faults: dict[int, ServiceError] = {}
        given = self._by_name(value)
        for name, item in given.items():
            if item is None and may_be_missing(self._specs[name]):
                continue
            column, column_faults = read_column(item, self._specs[name], rows, chunk=chunk, what=f"Input {name!r}")
            inputs[name] = column if chunk else column[:, None]
            faults = column_faults | faults
        if len(inputs) < len(given):
            lengths = [column.shape[1] for column in inputs.values()] if chunk else [1]
            inputs = self._fill_in(inputs, (rows, lengths[0]) if lengths else ())
        if rows and len(faults) == rows and all(fault.code == "bad_input" for fault in faults.values()):
            raise faults[0]
        return inputs, faults

    def _fill_in(self, inputs: dict[str, Array], lead: tuple[int, ...]) -> dict[str, Array]:
        """Return all declared inputs, those that are not given as missing values; `lead`: their leading dimensions."""
        if not lead:
            raise ServiceError(
                "bad_input",
                "`inputs` has a chunk in which every input is left out; its number of timesteps is not known.",
                fix="Send one `null` for each timestep.",
            )
        return {
            name: inputs[name] if name in inputs else missing_values(spec, lead) for name, spec in self._specs.items()
        }

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        """Return the value of each declared input by name; for a model with one input, its value alone is valid too."""
        only = next(iter(self._specs)) if len(self._specs) == 1 else None
        packed = isinstance(inputs, dict) and isinstance(inputs.get("b"), bytes) and only not in inputs
        if only is not None and (packed or not isinstance(inputs, dict)):
            return {only: inputs}
        if isinstance(inputs, dict) and self._required <= inputs.keys() <= self._specs.keys():
            return {name: inputs.get(name) for name in self._specs}
        found = f"has {_listed(inputs)}" if isinstance(inputs, dict) else f"is {preview(inputs)}"
        raise ServiceError(
            "bad_input",
            f"`inputs` {found}; expected an object with {_listed(self._specs)}.",
            fix="Send each declared input once, and no other.",
        )


def _body(document: dict[str, Any], body_type: type[B], body_format: Format) -> B:
    """Return a checked document as its struct; `inputs` is left empty."""
    fields = msgspec.structs.fields(body_type)
    values = {field.name: document[field.encode_name] for field in fields if field.encode_name in document}
    values["inputs"] = Raw()
    if "id" in values:
        values["id"] = Raw(encode(values["id"], body_format))
    if "source" in values:
        [source_type] = [field.type for field in fields if field.name == "source"]
        values["source"] = msgspec.convert(values["source"], source_type)
    return body_type(**values)


def _chunk(document: dict[str, Any]) -> bool:
    chunk: bool = document.get("chunk", False)
    if "return" in document and not chunk:
        bad_request(f"`return` is {preview(document['return'])} without `chunk`; expected it with `chunk: true` only.")
    return chunk


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(preview(name) for name in islice(names, 20)) or "no names"
