"""The reference: pages that are made from the code each time the site is built."""

from __future__ import annotations

import json
import re

from scripts.site.markdown import table, title_of
from scripts.site.reference import commands, errors, http_api, metrics, python_api, settings, websockets

_PAGES = {
    "python": python_api.page,
    "commands": commands.page,
    "settings": settings.page,
    "http": http_api.page,
    "websockets": websockets.page,
    "errors": errors.page,
    "metrics": metrics.page,
}


def files() -> dict[str, str]:
    """Return the text of each file of the reference, by its path in the site."""
    pages = {f"reference/{name}.md": page() for name, page in _PAGES.items()}
    rows = [(f"[{title_of(text)}]({path.removeprefix('reference/')})", _summary(text)) for path, text in pages.items()]
    index = f"# Reference\n\nThese pages are made from the code of this version.\n\n{table(('page', 'has'), rows)}"
    documents = {
        "reference/openapi.json": json.dumps(http_api.document(), indent=1),
        "reference/asyncapi.json": json.dumps(websockets.document(), indent=1),
    }
    return {"reference/README.md": index, **pages, **documents}


def _summary(text: str) -> str:
    """Return the first sentence after the title."""
    return re.split(r"(?<=\.)\s", text.split("\n\n")[1], maxsplit=1)[0]
