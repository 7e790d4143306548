"""`InferCodec`: infer requests to packed rows, and predictions to responses; tensors as JSON, or as raw bytes after it.

A header gives the length of the JSON document in a body. The first axis of tensors is the batch: `[1, *row]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
from msgspec import UNSET, Raw

from stepwell.addons.oip.errors import TritonError, bad_request, listed, not_supported, quote, reject_name
from stepwell.addons.oip.infer_bodies import (
    ID_LIMIT,
    InferBody,
    InferInput,
    InferOutput,
    InferResponse,
    Parameters,
    may_repeat_keys,
)
from stepwell.addons.oip.infer_parameters import (
    read_binary_size,
    read_flag,
    read_idempotency_key,
    read_peek,
    read_source,
    read_step,
    reject_shared_memory,
)
from stepwell.addons.oip.tensors import DeclaredTensor, raw_bytes
from stepwell.codec.strict.parse import parse, preview
from stepwell.ids import check_stream_id
from stepwell.types import Source
from stepwell_client.wire.formats import JSON
from stepwell_export.runtime.manifest import Array, Manifest


class RawTensor(NamedTuple):
    """An input tensor of a request that is no JSON document.

    Attributes:
        name: Its name.
        datatype: The protocol's name of its dtype.
        shape: Its shape.
        parameters: Its parameters.
        data: Its values, little-endian, row-major.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: Parameters
    data: bytes


class InferRequest(NamedTuple):
    """A decoded infer request.

    Attributes:
        rows: Each row's bytes of each input, sorted by input name, checked and finite; one row if there is a sequence.
        name: The client's id of the request, or None.
        sequence: The sequence's id as given, or None.
        start: Reset the sequence before the timestep.
        end: Delete the sequence after the timestep.
        step: Number of the timestep in its sequence, or None.
        idempotency_key: 1 to 255 characters, or None.
        outputs: The outputs to return, each with whether as raw bytes.
        source: Where the timestep stands in its log, or None.
        peek: Return what the timestep would return, and apply nothing.
    """

    rows: Sequence[tuple[bytes, ...]]
    name: str | None
    sequence: int | str | None
    start: bool
    end: bool
    step: int | None
    idempotency_key: str | None
    outputs: Sequence[tuple[DeclaredTensor, bool]]
    source: Source | None = None
    peek: bool = False

    @property
    def stream(self) -> str | None:
        """The stream id of the sequence: `42` and `"42"` are the same stream."""
        return None if self.sequence is None else str(self.sequence)


_decode = msgspec.json.Decoder(InferBody).decode
_encode = msgspec.json.Encoder().encode


class InferCodec:
    """Decodes infer requests to one model and encodes the responses.

    Attributes:
        manifest: The model's manifest.
    """

    def __init__(self, model: str, manifest: Manifest, *, stateful: bool, max_rows: int) -> None:
        """Create the codec of a model.

        Args:
            model: The model's name.
            manifest: Its manifest.
            stateful: It has a state, so a request belongs to a sequence and has one row.
            max_rows: Largest batch of one request to a model without state.
        """
        self.manifest = manifest
        self._model = model
        self._stateful = stateful
        self._max_rows = max_rows
        self._names = sorted([spec.name for spec in manifest.inputs])
        self._inputs = {spec.name: DeclaredTensor(spec, model) for spec in manifest.inputs}
        self._outputs = {spec.name: DeclaredTensor(spec, model) for spec in manifest.answered}
        outputs = self._outputs.values()
        self._all_outputs = {binary: [(output, binary) for output in outputs] for binary in (False, True)}

    # ---------------------------------------------------------------- requests

    def read(self, body: bytes, document_bytes: int | None) -> InferRequest:
        """Decode an infer request.

        Args:
            body: The request's body.
            document_bytes: Length of the JSON document, from the header; None: the whole body; 0: none, and the
                body is the tensor of the model's only input.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input` or `non_finite`.
        """
        if document_bytes == 0:
            return self._read_raw(body)
        document = _document(body, document_bytes)
        return self.check(
            document.id,
            document.parameters or {},
            document.inputs,
            [(output.name, output.parameters or {}) for output in document.outputs] if document.outputs else (),
            body,
            len(body) if document_bytes is None else document_bytes,
        )

    def check(  # noqa: PLR0917 - the parts of a request
        self,
        name: str | None,
        parameters: Parameters,
        tensors: Sequence[InferInput | RawTensor],
        outputs: Sequence[tuple[str, Parameters]],
        body: bytes = b"",
        offset: int = 0,
    ) -> InferRequest:
        """Check the parts of a request, and decode its tensors to rows.

        Args:
            name: The client's id of the request, or None.
            parameters: Its parameters.
            tensors: Its inputs.
            outputs: Name and parameters of each output to return; empty: all.
            body: Has the raw bytes of the tensors that are in no document, in the order of the inputs.
            offset: Where in `body` they begin.

        Raises:
            ServiceError: `bad_request`, `bad_input` or `non_finite`.
        """
        for parameter in parameters:
            if parameter.startswith("triton_"):
                bad_request(
                    "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
                )
        sequence = self._sequence(parameters.get("sequence_id", 0))
        start, end = read_flag(parameters, "sequence_start"), read_flag(parameters, "sequence_end")
        rows = self._rows(tensors, body, offset, one_row=sequence is not None)
        return InferRequest(
            rows,
            name,
            sequence,
            start,
            end,
            read_step(parameters.get("step"), start=start, sequence=sequence),
            read_idempotency_key(parameters.get("idempotency_key")),
            self._requested_outputs(outputs, binary=read_flag(parameters, "binary_data_output")),
            read_source(parameters, sequence),
            read_peek(parameters, start=start, end=end),
        )

    def _read_raw(self, body: bytes) -> InferRequest:
        """Decode a body that is one tensor's bytes."""
        self._sequence(0)
        if len(self._inputs) != 1:
            bad_request(
                f"a body without a document is for models with 1 input; '{self._model}' has {len(self._inputs)}"
            )
        [one] = self._inputs.values()
        rows = self._check_rows(one.rows_of_bytes(len(body)), one_row=False)
        columns = {one.name: one.from_bytes(body, 0, len(body), rows)}
        return InferRequest(self._joined(columns), None, None, False, False, None, None, self._all_outputs[True])

    def _sequence(self, sequence: Any) -> int | str | None:
        if type(sequence) is str:
            if sequence:
                return check_stream_id(sequence)
        elif type(sequence) is not int or not 0 <= sequence < ID_LIMIT:
            bad_request(
                f"Unable to parse 'sequence_id': it is {preview(sequence)}; expected an integer of 64 bits or text"
            )
        elif sequence:
            return sequence
        if self._stateful:
            bad_request(
                f"inference request to model '{self._model}' must specify a non-zero or non-empty correlation ID"
            )
        return None

    def _rows(
        self, tensors: Sequence[InferInput | RawTensor], body: bytes, offset: int, *, one_row: bool
    ) -> Sequence[tuple[bytes, ...]]:
        columns: dict[str, Sequence[bytes]] = {}
        rows = 0
        for tensor in tensors:
            name = tensor.name
            declared = self._inputs.get(name) or reject_name("input", name, self._model)
            if tensor.datatype != declared.datatype:
                bad_request(
                    f"inference input {quote(name)} data-type is {quote(tensor.datatype)}, but model "
                    f"'{self._model}' expects '{declared.datatype}'",
                    code="bad_input",
                )
            tensor_rows = self._check_rows(declared.rows(tensor.shape), one_row=one_row)
            if rows not in (0, tensor_rows):
                bad_request(
                    f"input '{name}' batch size does not match other inputs for '{self._model}'", code="bad_input"
                )
            rows = tensor_rows
            if isinstance(tensor, RawTensor):
                reject_shared_memory(name, tensor.parameters)
                columns[name] = declared.from_bytes(tensor.data, 0, len(tensor.data), rows)
                continue
            size = None if tensor.parameters is None else read_binary_size(tensor, tensor.parameters)
            if size is not None:
                columns[name] = declared.from_bytes(body, offset, size, rows)
                offset += size
            elif isinstance(tensor.data, Raw):
                columns[name] = declared.from_json(tensor.data, rows)
            else:
                bad_request(f"Unable to parse 'data': input '{name}' has neither 'data' nor 'binary_data_size'")
        n_given = len(columns)
        rows = rows or int(one_row)  # also if every input is left out
        if rows and n_given < len(self._inputs):
            left_out = (declared for name, declared in self._inputs.items() if name not in columns)
            columns |= {declared.name: declared.missing(rows) for declared in left_out if declared.may_be_missing}
        if len(columns) != len(self._inputs) or len(tensors) != n_given:
            bad_request(
                f"expected {len(self._inputs)} inputs but got {len(tensors)} inputs for model '{self._model}'. Got "
                f"input(s) {listed(tensor.name for tensor in tensors)}, but missing required input(s) "
                f"{listed(name for name in self._inputs if name not in columns)}. Please provide all required "
                "input(s).",
                code="bad_input",
            )
        if offset < len(body):
            bad_request(f"unexpected additional input data for model '{self._model}': {len(body) - offset} bytes")
        return self._joined(columns)

    def _joined(self, columns: Mapping[str, Sequence[bytes]]) -> Sequence[tuple[bytes, ...]]:
        if len(columns) == 1:
            return [(row,) for row in columns[self._names[0]]]
        return [*zip(*[columns[name] for name in self._names], strict=True)]

    def _check_rows(self, rows: int, *, one_row: bool) -> int:
        """Check the size of a batch, and return it."""
        if one_row and rows > 1:
            bad_request(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of "
                "sequence batcher",
                code="bad_input",
            )
        if rows > self._max_rows:
            bad_request(
                f"inference request batch-size must be <= {self._max_rows} for '{self._model}'", code="bad_input"
            )
        return rows

    def _requested_outputs(
        self, requested: Sequence[tuple[str, Parameters]], *, binary: bool
    ) -> Sequence[tuple[DeclaredTensor, bool]]:
        if not requested:
            return self._all_outputs[binary]
        outputs = []
        for name, parameters in requested:
            declared = self._outputs.get(name) or reject_name("output", name, self._model)
            for parameter in parameters:
                if parameter == "classification" or parameter.startswith("shared_memory_"):
                    not_supported(f"output {quote(name)}: the parameter '{parameter}'")
            outputs.append((declared, read_flag(parameters, "binary_data", default=binary)))
        return outputs

    # ---------------------------------------------------------------- responses

    def write(
        self, request: InferRequest, outputs: Mapping[str, Array], version: int, parameters: Parameters | None
    ) -> tuple[bytes, int | None]:
        """Return the body of a response, and the length of its JSON document if raw bytes follow, else None.

        Args:
            request: The request.
            outputs: `(rows, *row)` per returned output.
            version: The model version that computed them.
            parameters: The parameters of the response.
        """
        tensors, parts = [], [b""]
        for declared, binary in request.outputs:
            array = outputs[declared.name]
            tensor = InferOutput(declared.name, declared.datatype, array.shape)
            if binary:
                parts.append(raw_bytes(array))
                tensor.parameters = {"binary_data_size": array.nbytes}
            else:
                tensor.data = array.ravel().tolist()
            tensors.append(tensor)
        name = UNSET if request.name is None else request.name
        document = _encode(InferResponse(self._model, str(version), tensors, name, parameters or UNSET))
        if len(parts) == 1:
            return document, None
        parts[0] = document
        return b"".join(parts), len(document)


def _document(body: bytes, document_bytes: int | None) -> InferBody:
    if document_bytes is not None and document_bytes > len(body):
        bad_request(
            f"Unable to parse Inference-Header-Content-Length: it is {document_bytes}, and the body has "
            f"{len(body)} bytes"
        )
    document = body if document_bytes is None else body[:document_bytes]
    try:
        request = _decode(document)
    except msgspec.ValidationError as exc:
        bad_request(f"failed to parse the request: {exc}")
    except RecursionError:
        _not_json("it is nested too deeply")
    except (ValueError, OverflowError) as exc:
        _not_json(str(exc)[:200])
    if may_repeat_keys(document, request):
        parse(document, JSON)
    return request


def _not_json(reason: str) -> NoReturn:
    raise TritonError("bad_json", f"failed to parse the request JSON buffer: {reason}")
