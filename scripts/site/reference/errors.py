"""The page of all error codes of requests: status, meaning, and what to do with the request."""

from __future__ import annotations

from scripts.site.markdown import slug, table
from stepwell.error_codes import CODES

_HEAD = """\
# Error codes

Every code that the response to a request can have in `code`. Use the code in programs, not the text. Each links to its
causes in [Errors](../docs/errors.md), which also explains `applied` and `retry`: `same` (send the identical request
again), `resend_from` (send your timesteps again from `expected` on) or `never`.
"""


def page() -> str:
    """Return the page."""
    rows = [
        (f"[`{code}`](../docs/errors.md#{slug(code)})", row.status, row.title, f"`{row.retry}`", row.advice)
        for code, row in CODES.items()
    ]
    return f"{_HEAD}\n{table(('code', 'status', 'means', '`retry`', 'what to do'), rows)}"
