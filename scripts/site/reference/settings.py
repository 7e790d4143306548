"""The page of all settings: their flags, variables, types, defaults and descriptions."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from stepwell.settings import PREFIX, describe_settings, setting_groups

_HEAD = f"""\
# Settings

Every setting of the service, with its flag of `stepwell serve` and its environment variable. A flag overrides the
variable. A `{PREFIX}...` variable that is no setting is refused at the start. [Deploying](../docs/deploying.md)
explains which ones a deployment needs.
"""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for name, text in describe_settings().items():
        field = setting_groups()[name].model_fields[name]
        parts.append(
            f"## {name}\n\n{text}\n\n"
            f"* flag: `{_flag(name, field)}`\n"
            f"* variable: `{PREFIX}{name.upper()}`\n"
            f"* type: {_type(field.annotation)}{_bounds(field)}\n"
            f"* default: {_default(field)}\n"
        )
    return "\n".join(parts)


def _flag(name: str, field: FieldInfo) -> str:
    flag = name.replace("_", "-")
    return f"--{flag} / --no-{flag}" if field.annotation is bool else f"--{flag}"


def _type(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    words = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return words[annotation]


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    values = [(words, getattr(one, sign, None)) for one in field.metadata for sign, words in signs.items()]
    found = [f"{words} {value:g}" for words, value in values if value is not None]
    return f", {' and '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`{','.join(map(str, value))}`" if value else "empty"
    return f"`{value}`"
