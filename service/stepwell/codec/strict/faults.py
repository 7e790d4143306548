"""`FaultFinder`: finds what is wrong with a body that the typed decoders have refused, and words it.

It decides nothing: it parses the body to plain values, and raises the first fault that it meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn

from stepwell.codec.step_bodies import BulkBody, BulkMessage, FeedMessage, PeekBody, StreamMessage, correlation_in
from stepwell.codec.strict.bodies import check_envelope
from stepwell.codec.strict.parse import bad_request, parse, preview
from stepwell.codec.strict.tensors import column_fault, may_be_missing, read_tensor, row_faults
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import Format
from stepwell_export.runtime.manifest import InputSpec


class FaultFinder:
    """Finds the faults of bodies for one model."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Create it for the declared inputs."""
        self._specs = {spec.name: spec for spec in specs}
        self._required = {spec.name for spec in specs if not may_be_missing(spec)}

    def of_body(self, body: bytes, body_format: Format, body_type: type[Any], *, chunk: bool) -> NoReturn:
        """Raise what is wrong with a body.

        Args:
            body: The body.
            body_format: Its format.
            body_type: What it should be.
            chunk: Whether the inputs have a time axis, unless the body has a field for that.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input` or `non_finite`.
        """
        self._of_document(parse(body, body_format), body_type, chunk=chunk)

    def of_message(
        self, message: bytes, message_format: Format, correlation: dict[str, Any], *, many: bool
    ) -> NoReturn:
        """Raise what is wrong with a message of a feed, for one or for many streams, after filling `correlation`.

        Raises:
            ServiceError: As for `of_body`.
        """
        document = parse(message, message_format)
        correlation |= correlation_in(document, message_format)
        has_streams = many and isinstance(document, dict) and "streams" in document
        kind = BulkMessage if has_streams else StreamMessage if many else FeedMessage
        self._of_document(document, kind, chunk=False)

    def of_rows(
        self, body: bytes, body_format: Format, wrong: Mapping[str, Sequence[int]], length: int, *, chunk: bool
    ) -> dict[int, ServiceError]:
        """Return what is wrong with rows of columns.

        Args:
            body: The body.
            body_format: Its format.
            wrong: The rows, by input.
            length: How many timesteps the other rows have.
            chunk: Whether they have a time axis.
        """
        faults: dict[int, ServiceError] = {}
        given = self._by_name(parse(body, body_format)["inputs"])
        for name, rows in wrong.items():
            spec, left = self._specs[name], [i for i in rows if i not in faults]
            faults |= row_faults(given[name], spec, left, length, chunk=chunk, what=f"Input {name!r}")
        return faults

    def _of_document(self, document: Any, body_type: type[Any], *, chunk: bool) -> NoReturn:
        check_envelope(document, body_type)
        if issubclass(body_type, (PeekBody, BulkMessage)):
            chunk = document.get("chunk", False)
            if "return" in document and not chunk:
                found = preview(document["return"])
                bad_request(f"`return` is {found} without `chunk`; expected it with `chunk: true` only.")
        given, lead = self._by_name(document["inputs"]), (None,) if chunk else ()
        columns = document["streams"] if issubclass(body_type, BulkBody) else document.get("state")
        for name, value in given.items():
            spec, what = self._specs[name], f"Input {name!r}"
            if value is None and may_be_missing(spec):
                continue
            if isinstance(columns, list):
                column_fault(value, spec, len(columns), chunk=chunk, what=what)
            else:
                read_tensor(value, spec, lead, what)
        if columns == []:
            found, one = ("streams", "stream id") if "streams" in document else ("state", "state, or null")
            problem = f"`{found}` is empty; expected at least one {one}."
            raise ServiceError("bad_input", problem, fix="Send one entry per stream in every column.")
        if all(value is None for value in given.values()):
            raise ServiceError(
                "bad_input",
                "`inputs` has a chunk in which every input is left out; its number of timesteps is not known.",
                fix="Send one `null` for each timestep.",
            )
        bad_request("The body cannot be read; expected one as /docs describes it.")

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


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(preview(name) for name in islice(names, 20)) or "no names"
