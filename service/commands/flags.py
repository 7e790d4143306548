"""`with_setting_flags`: a decorator that adds a flag for every setting to a command."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from service.settings import PREFIX, Settings

_METAVARS = {
    "models": "FOLDER",
    "data_dir": "FOLDER",
    "api_keys_file": "FILE",
    "redis": "URL",
    "jwt_keys": "FILE|URL",
}


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's `**flags` by one flag per setting; a flag that is not given is None."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += [_flag(name, text) for name, text in Settings.descriptions().items()]
    # typer reads one of these two
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return command


def _flag(name: str, description: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind = _plain(field.annotation)
    option = f"--{name.replace('_', '-')}"
    declared = f"{option}/--no-{option[2:]}" if kind is bool else option
    sentences = [description, _choices(field.annotation), _default(name), f"[{PREFIX}{name.upper()}]"]
    metavar = _METAVARS.get(name)
    hint = typer.Option(declared, help=" ".join(filter(None, sentences)), show_default=False, metavar=metavar)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, hint]
    )


def _default(name: str) -> str:
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    if default is None or default is False or default == []:
        return ""
    return f"Default: {', '.join(map(str, default)) if isinstance(default, list) else default}."


def _choices(annotation: Any) -> str:
    return f"One of {', '.join(get_args(annotation))}." if get_origin(annotation) is Literal else ""


def _plain(annotation: Any) -> Any:
    """Return the type that typer parses: without None, bounds and choices, which `Settings` checks."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not type(None)))
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin is list:
        return list[_plain(get_args(annotation)[0])]  # type: ignore[misc]  # built at run time
    return str if origin is Literal else annotation
