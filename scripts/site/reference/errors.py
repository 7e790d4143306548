"""The page of all error codes of requests: status, meaning, and what to do with the request."""

from __future__ import annotations

from scripts.site.markdown import slug, table
from service.errors import CODES, Retry
from service.requests.problems import PROBLEMS

_HEAD = """\
# Error codes

Every code that the response to a request can have in `code`. Use the code in programs, not the text. Each links to its
causes and remedies in [Errors](../docs/errors.md), which also explains `applied` and the other fields.
"""
_WHAT_TO_DO: dict[Retry, str] = {
    "same": "Send the identical request again, after `Retry-After` seconds if that header is present.",
    "resend_from": "Send your timesteps again from the step in `expected` on.",
    "never": "Do not send the same request again: its cause has to be removed first.",
}


def page() -> str:
    """Return the page."""
    rows = [
        (f"[`{code}`](../docs/errors.md#{slug(code)})", status, title, f"`{CODES[code]}`", _WHAT_TO_DO[CODES[code]])
        for code, (status, title) in PROBLEMS.items()
    ]
    return f"{_HEAD}\n{table(('code', 'status', 'means', '`retry`', 'what to do'), rows)}"
