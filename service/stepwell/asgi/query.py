"""Reads the parameters of a request's query."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import HTTPConnection

from stepwell.errors import ServiceError


def version_of(request: HTTPConnection) -> int | None:
    """Return `?version=`, or None.

    Raises:
        ServiceError: `bad_request`: it is not a positive integer below 2**31.
    """
    return number_of(request.query_params, "version", 1, 2**31 - 1) if request.scope["query_string"] else None


def number_of(query: Mapping[str, str], name: str, minimum: int, maximum: int) -> int | None:
    """Return an integer of the query, or None if it is missing.

    Raises:
        ServiceError: `bad_request`: it is not an integer from `minimum` to `maximum`.
    """
    text = query.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 16 and minimum <= int(text) <= maximum:
        return int(text)
    raise ServiceError(
        "bad_request",
        f"`{name}` is {text[:40]!a}; expected an integer from {minimum} to {maximum}.",
        fix=f"Leave `{name}` out, or send such a number.",
    )


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """Return a boolean of the query; False if it is missing.

    Raises:
        ServiceError: `bad_request`: it is neither `true` nor `false`.
    """
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise ServiceError(
            "bad_request", f"`{name}` is {text[:40]!a}; expected true or false.", fix=f"Leave `{name}` out for false."
        )
    return text == "true"
