"""Checks the fields of a parsed body against its struct; the errors give the field and its value."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from stepwell.codec.strict.parse import bad_request, json_type, preview


class _FieldCheck(NamedTuple):
    """What a field's value must be: its type, and the same in words; None: any value."""

    required: bool
    type: Any
    expected: str | None


def check_envelope(document: Any, body_type: type[msgspec.Struct]) -> dict[str, Any]:
    """Return a body's document after checking its keys, and all its values but the tensors.

    Raises:
        ServiceError: `bad_request`.
    """
    checks = _checks(body_type)
    required = [key for key, check in checks.items() if check.required]
    if not isinstance(document, dict):
        bad_request(
            f"The body is {json_type(document)}; expected an object{' with ' if required else ''}"
            f"{' and '.join(required)}."
        )
    for key in document:
        if key not in checks:
            bad_request(f"The body has the key {preview(key)}; expected {', '.join(checks)}.")
    for key in required:
        if key not in document:
            bad_request(f"The body has no `{key}`; it has {', '.join(map(preview, list(document)[:20])) or 'no keys'}.")
    for key, value in document.items():
        _, field_type, expected = checks[key]
        if expected is not None and not _fits(value, field_type):
            bad_request(f"`{key}` is {_shown(value)}; expected {expected}.")
    return document


@cache
def _checks(body_type: type[msgspec.Struct]) -> dict[str, _FieldCheck]:
    """Return the check of each key, the required keys first."""
    info: Any = inspect.type_info(body_type)
    types = {field.name: field.type for field in msgspec.structs.fields(body_type)}
    fields = sorted(info.fields, key=lambda field: not field.required)
    return {
        field.encode_name: _FieldCheck(field.required, types[field.name], _expected(field.type)) for field in fields
    }


def _expected(info: Any) -> str | None:
    """Return in words what a value of a type is; None: any value is accepted here."""
    match info:
        case inspect.Metadata(extra={"expected": str(words)}):
            return words
        case inspect.Metadata(type=inner):
            return _expected(inner)
        case inspect.IntType(ge=low, lt=int(limit)):
            return f"an integer from {low} to {limit - 1}"
        case inspect.IntType(ge=low):
            return f"an integer of at least {low}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(f'"{value}"' for value in values)
        case inspect.UnionType(types=types):
            [value] = [_expected(one) for one in types if not isinstance(one, inspect.NoneType)]
            return f"{value}, or null"
        case inspect.ListType(item_type=item):
            return f"a list of one per stream: {_expected(item)}"
        case inspect.AnyType() | inspect.RawType():
            return None
    raise TypeError(f"{info} has no words; give it `Meta(extra={{'expected': ..}})`.")


def _fits(value: Any, field_type: Any) -> bool:
    try:
        msgspec.convert(value, field_type)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True


def _shown(value: Any) -> str:
    """Return a preview of a value; a short list is shown by its items."""
    if isinstance(value, list) and len(value) <= 4:
        return f"[{', '.join(map(preview, value))}]"
    return preview(value)
