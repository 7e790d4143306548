"""Errors with Triton's texts, which Triton's clients recognise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

import msgspec

from stepwell.errors import ServiceError
from stepwell.requests.error_formats import ErrorFormat
from stepwell.requests.problems import status_of

_DRAINING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
_KEPT: Final = frozenset(
    {401, 403, 404, 405, 413, 415, 429, 500, 503}
)  # of our statuses; Triton has 400 for the others


class TritonError(ServiceError):
    """An error whose message is the whole text of the response.

    Attributes:
        status: The HTTP status; None if it is that of the code.
    """

    def __init__(self, code: str, message: str, *, status: int | None = None) -> None:
        super().__init__(code, message)
        self.status = status


def missing_start_flag(model: str, sequence: int | str) -> TritonError:
    """Return the error for a timestep of a sequence that does not exist."""
    return TritonError(
        "stream_not_found",
        f"inference request for sequence {sequence} to model '{model}' must specify the START flag on the first "
        "request of the sequence",
    )


def unknown_model(model: str, version: str | None) -> TritonError:
    """Return the error for a model that is not loaded, or not in that version."""
    suffix = "" if version is None else f" version {quote(version)[1:-1]}"
    return TritonError("model_not_found", f"Request for unknown model: {quote(model)}{suffix} is not found")


def bad_request(message: str, *, code: str = "bad_request") -> NoReturn:
    """Reject a request."""
    raise TritonError(code, message)


def reject_name(kind: str, name: str, model: str) -> NoReturn:
    """Reject an input or output that the model does not have."""
    raise TritonError("bad_input", f"unexpected inference {kind} {quote(name)} for model '{model}'")


def not_supported(what: str) -> NoReturn:
    """Reject a feature of the protocol that this server does not support."""
    raise TritonError("bad_request", f"{what} is not supported", status=501)


def quote(text: str) -> str:
    """Return a client's text for a message: short, printable, in quotes."""
    return f"'{ascii(text[:64])[1:-1]}'"


def listed(names: Iterable[str]) -> str:
    """Return names for a message."""
    return f"[{','.join(quote(name) for name in [*names][:20])}]"


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape for a message."""
    return f"[{','.join(map(str, shape[:32]))}]"


def oip_status(error: ServiceError) -> int:
    """Return the HTTP status of an error of the Open Inference Protocol."""
    if isinstance(error, TritonError) and error.status is not None:
        return error.status
    status = status_of(error)
    return 400 if status not in _KEPT or error.code == "stream_not_found" else status


def oip_message(error: ServiceError) -> str:
    """Return the text of an error of the Open Inference Protocol.

    Errors that Triton does not have add our code, and whether the request was applied.
    """
    if isinstance(error, TritonError):
        return str(error)
    if error.code == "draining":
        return _DRAINING
    return f"{str(error).replace('`seq`', '`step`')} (code: {error.code}, applied: {error.applied})"


def _oip_body(error: ServiceError) -> bytes:
    return msgspec.json.encode({"error": oip_message(error)})


OIP: Final = ErrorFormat("oip", "application/json", oip_status, _oip_body)
"""The protocol's error format: a document with the one key `error`, and Triton's statuses."""
