"""`llms.txt`: the list of all pages, as Markdown for language models (llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.site.markdown import prose, title_of

_HEAD = """\
# Stepwell

> Serve recurrent models on live streams: one POST per timestep, state in Redis, every step exactly once.

Each link leads to the Markdown of a page; the same path with `.html` is the page.
"""


def llms_text(pages: Path, nav: list[dict[str, Any]]) -> str:
    """Return the file's text.

    Args:
        pages: The folder with the pages' Markdown.
        nav: The navigation; its top entries become sections.
    """
    parts = [_HEAD]
    for entry in nav:
        for section, listed in entry.items():
            lines = [_line(pages, page) for page in _flat(listed)]
            parts.append("\n".join([f"## {section}\n", *lines, ""]))
    return "\n".join(parts)


def _flat(listed: Any) -> Iterator[str]:
    if isinstance(listed, str):
        yield listed
    else:
        for entry in listed.values() if isinstance(listed, dict) else listed:
            yield from _flat(entry)


def _line(pages: Path, page: str) -> str:
    text = (pages / page).read_text()
    return f"- [{title_of(text)}]({page}): {_first_sentence(text)}"


def _first_sentence(text: str) -> str:
    """Return the first sentence of a page's prose, without links."""
    without_comments = re.sub(r"<!--.*?-->", "", prose(text), flags=re.DOTALL)
    paragraphs = [part.strip() for part in without_comments.split("\n\n")]
    first = next((part for part in paragraphs if re.match(r"[A-Z`\"*]", part)), "")
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(first.split()))
    return re.split(r"(?<=[.:]) ", plain.replace("**", "").lstrip("* "), maxsplit=1)[0].rstrip(":")
