"""The flag `--feedback`: which output feeds which input in a rollout."""

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
        help="For rollouts: the output that feeds an input, or rules by input as a JSON object. Repeatable.",
    ),
]
"""What a command takes."""


def feedback_of(texts: Iterable[str] | None) -> dict[str, Any]:
    """Return a rule by input, as a manifest has them.

    Raises:
        typer.BadParameter: A text is neither OUTPUT=INPUT nor a JSON object, or an input has two rules.
    """
    rules: dict[str, Any] = {}
    for text in texts or ():
        if text.lstrip().startswith("{"):
            found = _object(text)
        else:
            found = {given: output for output, given in named_values("--feedback", [text], "OUTPUT=INPUT").items()}
        for name, rule in found.items():
            if name in rules:
                raise typer.BadParameter(f"{name!r} has two rules.", param_hint="--feedback")
            rules[name] = rule
    return rules


def _object(text: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is not a JSON object: {exc}.", param_hint="--feedback") from exc
    return found
