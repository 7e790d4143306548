"""The flag `--feedback`: which output becomes which input in a rollout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from service.commands.tables import named_values

Feedback = Annotated[
    list[str] | None,
    typer.Option(
        "--feedback",
        metavar="OUTPUT=INPUT|JSON",
        help="For rollouts: the output that becomes an input, or a JSON object of rules by input. Repeatable.",
    ),
]
"""Type of a command's `feedback` parameter."""


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


def _object(text: str) -> dict[str, Any]:
    try:
        rules: dict[str, Any] = json.loads(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is not a JSON object: {exc}.", param_hint="--feedback") from exc
    return rules
