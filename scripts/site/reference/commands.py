"""The page of all commands: what `--help` prints for each."""

from __future__ import annotations

from typing import Any

import typer

from stepwell.commands import cli

_HEAD = """\
# Commands

Every command of the `stepwell` program, as `--help` prints it. In a clone of the repository the program is
`./stepwell`. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused to start, 130 interrupted.
"""
_WIDTH = 100


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for path, text in help_texts().items():
        level = "#" * (1 + len(path))
        parts.append(f"{level} {' '.join(('stepwell', *path))}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def help_texts() -> dict[tuple[str, ...], str]:
    """Return the help of each command and of each of their commands, by its words after `stepwell`."""
    found: dict[tuple[str, ...], str] = {}
    for name in _commands(cli.make_app(None)):
        command = _commands(cli.make_app(name))[name]
        if name == "test":  # has no --help of its own: its arguments go to pytest
            found[name,] = command.help or ""
            continue
        found[name,] = _help(command, f"stepwell {name}")
        for inner, one in getattr(command, "commands", {}).items():
            found[name, inner] = _help(one, f"stepwell {name} {inner}")
    return found


def _commands(app: typer.Typer) -> dict[str, Any]:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
    return commands


def _help(command: Any, words: str) -> str:
    context = command.make_context(
        words, ["--help"], resilient_parsing=True, terminal_width=_WIDTH, max_content_width=_WIDTH
    )
    text: str = command.get_help(context)
    return text.strip()
