"""Refusals in the words of Triton, whose clients know them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

from service.errors import ServiceError


class TritonError(ServiceError):
    """A refusal whose words are the whole text.

    Attributes:
        status: The HTTP status, where it is not its code's.
    """

    def __init__(self, code: str, words: str, *, status: int | None = None) -> None:
        super().__init__(code, words)
        self.status = status


def missing_start_flag(model: str, sequence: int | str) -> TritonError:
    """Return the refusal of a timestep of a sequence that is not there."""
    return TritonError(
        "stream_not_found",
        f"inference request for sequence {sequence} to model '{model}' must specify the START flag on the first "
        "request of the sequence",
    )


def unknown_model(model: str, version: str | None) -> TritonError:
    """Return the refusal of a model that is not there, or not in that version."""
    which = "" if version is None else f" version {quote(version)[1:-1]}"
    return TritonError("model_not_found", f"Request for unknown model: {quote(model)}{which} is not found")


def bad_request(words: str, *, code: str = "bad_request") -> NoReturn:
    """Refuse a request."""
    raise TritonError(code, words)


def refuse_name(kind: str, name: str, model: str) -> NoReturn:
    """Refuse an input or output that the model does not have."""
    raise TritonError("bad_input", f"unexpected inference {kind} {quote(name)} for model '{model}'")


def not_supported(what: str) -> NoReturn:
    """Refuse what the protocol has and this server has not."""
    raise TritonError("bad_request", f"{what} is not supported", status=501)


def quote(text: str) -> str:
    """Return what a client sent, for a message: short, printable, in quotes."""
    return f"'{ascii(text[:64])[1:-1]}'"


def listed(names: Iterable[str]) -> str:
    """Return names for a message."""
    return f"[{','.join(quote(name) for name in [*names][:20])}]"


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape for a message."""
    return f"[{','.join(map(str, shape[:32]))}]"
