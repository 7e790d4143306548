"""Markdown as GitHub reads it: the links and anchors of a page, and cells of tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """Return a page's text without blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Return the targets of a page's links that stay in the repository."""
    return [target for target in _LINK.findall(prose(text)) if not target.startswith(("http:", "https:", "mailto:"))]


def slug(heading: str, _separator: str = "-") -> str:
    """Return the anchor of a heading; the site's anchors are made by this function, too."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings; of equal ones, the second has `-1` at its end, and so on."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        anchor = slug(heading)
        names.add(f"{anchor}-{found[anchor]}" if found[anchor] else anchor)
        found[anchor] += 1
    return names


def title_of(text: str) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# (.+)$", prose(text), re.MULTILINE)
    return found[1] if found else ""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    """Return a cell in one line; a bar outside of code is escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(value).split()))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)
