"""Flags that several commands have: one for every setting, `--feedback`, and parsers of NAME=VALUE."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from stepwell.settings import PREFIX, describe_settings, setting_groups

_METAVARS = {
    "models": "FOLDER",
    "data_dir": "FOLDER",
    "api_keys_file": "FILE",
    "redis": "URL",
}

USUAL = (
    *("models", "host", "port", "workers", "redis", "data_dir", "durability", "stream_ttl_s", "history"),
    *("api_keys_file", "allowed_origins", "insecure", "production"),
    *("request_timeout_s", "max_body_bytes", "queue_limit", "cache_bytes", "log_format", "watch_models"),
)
"""The settings that services usually set, which come first; the values of all others are good for most."""

Grid = Annotated[
    str | None,
    typer.Option("--every", metavar="1s", help="The time from one timestep to the next in the training data."),
]
"""Type of a command's `every` parameter, where it describes a model."""

Feedback = Annotated[
    list[str] | None,
    typer.Option(
        "--feedback",
        metavar="OUTPUT=INPUT|JSON",
        help="For rollouts: the output that becomes an input, or a JSON object of rules by input. Repeatable.",
    ),
]
"""Type of a command's `feedback` parameter."""


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's `**flags` by one flag per setting, `USUAL` first; a flag that is not given is None."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    described = describe_settings()
    names = dict.fromkeys([*USUAL, *described])
    parameters += [_flag(name, described[name]) for name in names]
    # typer reads one of these two
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # functions take attributes
    command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return command


def named_values(flag: str, texts: Iterable[str], form: str = "NAME=VALUE") -> dict[str, str]:
    """Return the values of a repeatable flag by name.

    Raises:
        typer.BadParameter: A text does not have the form, or a name is given twice (exit code 2).
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} does not have the form {form}.", param_hint=flag)
        if name in values:
            raise typer.BadParameter(f"{name!r} is given twice.", param_hint=flag)
        values[name] = value
    return values


def check_ending(flag: str, file: Path | None, ending: str) -> None:
    """Check that a file that is written is named as what it is; None: it is not written.

    Raises:
        typer.BadParameter: It has another ending (exit code 2).
    """
    if file is not None and file.suffix.lower() != ending:
        raise typer.BadParameter(f"{file} would be a {ending[1:].upper()} file: name it {ending}.", param_hint=flag)


def axes_of(flag: str, texts: Iterable[str] | None) -> dict[str, int | None]:
    """Read axes by input, counted from 0; None: the input has none.

    Raises:
        typer.BadParameter: One is neither INPUT=NUMBER nor INPUT=none, or an input is given twice (exit code 2).
    """
    axes: dict[str, int | None] = {}
    for name, text in named_values(flag, texts or (), "INPUT=AXIS").items():
        if text != "none" and not text.removeprefix("-").isdecimal():
            raise typer.BadParameter(f"{name}={text}: an axis is a number, counted from 0, or none.", param_hint=flag)
        axes[name] = None if text == "none" else int(text)
    return axes


def feedback_of(texts: Iterable[str] | None) -> dict[str, Any]:
    """Return the rules by input name, as in a manifest.

    Raises:
        typer.BadParameter: A text is neither OUTPUT=INPUT nor a JSON object, or an input has two rules.
    """
    rules: dict[str, Any] = {}
    for text in texts or ():
        if text.lstrip().startswith("{"):
            parsed = _object(text)
        else:
            parsed = {given: output for output, given in named_values("--feedback", [text], "OUTPUT=INPUT").items()}
        for name, rule in parsed.items():
            if name in rules:
                raise typer.BadParameter(f"input {name!r} has two rules; give one.", param_hint="--feedback")
            rules[name] = rule
    return rules


def _flag(name: str, description: str) -> inspect.Parameter:
    field = setting_groups()[name].model_fields[name]
    kind = _plain(field.annotation)
    option = f"--{name.replace('_', '-')}"
    declared = f"{option}/--no-{option[2:]}" if kind is bool else option
    repeatable = "Repeatable." if get_origin(kind) is list else ""
    sentences = [description, _choices(field.annotation), repeatable, _default(name), f"[{PREFIX}{name.upper()}]"]
    metavar = _METAVARS.get(name)
    hint = typer.Option(declared, help=" ".join(filter(None, sentences)), show_default=False, metavar=metavar)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, hint]
    )


def _default(name: str) -> str:
    default = setting_groups()[name].model_fields[name].get_default(call_default_factory=True)
    if default is None or default is False or default == []:
        return ""
    values = default if isinstance(default, list) else ["on" if default is True else default]
    return f"Default: {', '.join(map(str, values))}."


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


def _object(text: str) -> dict[str, Any]:
    try:
        rules: dict[str, Any] = json.loads(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is not a JSON object: {exc}.", param_hint="--feedback") from exc
    return rules
