"""Parses a whole body strictly to plain Python values, for rare bodies and for the words of errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from stepwell.codec.msgpack_maps import duplicate_key
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import JSON, Format

MAX_DEPTH = 32
_PREVIEW_CHARACTERS = 60
_PREVIEW_MEMBERS = 8
_LARGE_CHARACTERS = 256 * 1024


class _DuplicateKeyError(Exception):
    """A key that occurs twice in one object."""


def parse(body: bytes, body_format: Format) -> Any:
    """Return the document as plain values; in JSON, `NaN`, `Infinity` and `1e999` are infinite.

    Raises:
        ServiceError: `bad_json`: not JSON or not msgpack, a key twice in one object, not UTF-8, an unpaired
            surrogate, or nested deeper than 32.
    """
    document = _parse_json(body) if body_format is JSON else _parse_msgpack(body)
    _check_depth(document)
    if body_format is not JSON and (twice := duplicate_key(document, body)) is not None:
        _reject_duplicate(twice[0])
    return document


def preview(value: Any) -> str:
    """Return a value for a message: short, printable, and never a literal that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, (dict, list, tuple)):
        return _short(value) or f"{json_type(value)} of {len(value)}"
    if isinstance(value, str):
        text = json.dumps(value[: _PREVIEW_CHARACTERS + 1])
    elif value is None or isinstance(value, (bool, float, int)):
        text = (
            json.dumps(value)
            if not isinstance(value, int) or abs(value) < 10**_PREVIEW_CHARACTERS
            else "a very long integer"
        )
    else:
        text = json_type(value)
    return text if len(text) <= _PREVIEW_CHARACTERS else f"{text[:_PREVIEW_CHARACTERS]}..."


def _short(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> str:
    """Return a small object or array of plain values as JSON; of others an empty text."""
    members = [*value, *value.values()] if isinstance(value, dict) else value
    is_keyed = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
    if not 0 < len(value) <= _PREVIEW_MEMBERS or not is_keyed or not all(map(_is_plain, members)):
        return ""
    text = json.dumps(value)
    return text if len(text) <= _PREVIEW_CHARACTERS else ""


def _is_plain(value: Any) -> bool:
    """Whether a value is null, true, false, a finite number or a short text."""
    if isinstance(value, str):
        return len(value) <= _PREVIEW_CHARACTERS
    if isinstance(value, (int, float)):
        return math.isfinite(value) if isinstance(value, float) else abs(value) < 10**_PREVIEW_CHARACTERS
    return value is None


def json_type(value: Any) -> str:
    """Return the JSON type of a value, for a message."""
    names: Sequence[tuple[type | tuple[type, ...], str]] = (
        (dict, "an object"),
        ((list, tuple), "an array"),
        (str, "text"),
        (bool, "a boolean"),
        ((int, float), "a number"),
        (bytes, "bytes"),
    )
    return "null" if value is None else next((name for types, name in names if isinstance(value, types)), "a value")


def _parse_json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        _bad_json(f"The body is not UTF-8 at byte {exc.start}; expected JSON in UTF-8.", exc)
    try:
        # In a thread, a function that is called for each number lets the event loop run in between.
        hooks: dict[str, Any] = {"parse_float": _float, "parse_int": _int} if len(text) > _LARGE_CHARACTERS else {}
        document = json.loads(text, object_pairs_hook=_object_with_unique_keys, parse_constant=_constant, **hooks)
    except _DuplicateKeyError as exc:
        _reject_duplicate(exc.args[0], exc)
    except json.JSONDecodeError as exc:
        _bad_json(f"The body is not JSON: {exc.msg} at character {exc.pos} of {len(text)}.", exc)
    except RecursionError as exc:
        _bad_json(_too_deep(), exc)
    except ValueError as exc:  # an integer of more digits than Python converts
        _bad_json("The body has an integer of more than 4300 digits; expected a number that a tensor can hold.", exc)
    if "\\u" in text:
        _check_surrogates(document)
    return document


def _constant(literal: str) -> float:
    """Return infinity for each literal that JSON does not have: its `NaN` stands for no missing value."""
    del literal
    return math.inf


def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


def _parse_msgpack(body: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(body)
    except RecursionError as exc:
        _bad_json(_too_deep(), exc)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as exc:
        _bad_json(f"The body is not msgpack: {str(exc)[:200]}.", exc)


def _object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return unique


def _check_depth(document: Any) -> None:
    level = [document] if isinstance(document, (list, dict)) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return
    _bad_json(_too_deep())


def _check_surrogates(document: Any) -> None:
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as exc:
                _bad_json(f"The body has an unpaired surrogate in {preview(value)}; expected Unicode text.", exc)


def _too_deep() -> str:
    return f"The body is nested deeper than {MAX_DEPTH}; expected an object with arrays of the model's shape."


def _reject_duplicate(key: Any, cause: BaseException | None = None) -> NoReturn:
    _bad_json(f"The body has the key {preview(key)} twice in one object; expected once.", cause)


def _bad_json(problem: str, cause: BaseException | None = None) -> NoReturn:
    raise ServiceError("bad_json", problem, fix="Send one well-formed document.") from cause


def bad_request(problem: str) -> NoReturn:
    """Raise `bad_request`; `problem` gives what was found and what was expected."""
    raise ServiceError("bad_request", problem, fix="Send the body as /docs describes it.")
