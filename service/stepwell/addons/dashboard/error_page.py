"""The page of error codes: what each one means, and what to do."""

from __future__ import annotations

import re
from html import escape

from stepwell.error_codes import CODES, ErrorCode

_RETRIES = {"same": "the same request", "resend_from": "from expected on", "never": "no"}


def error_page() -> bytes:
    """Return the page as HTML; each row has the id of its code."""
    rows = "".join(_row(code, row) for code, row in CODES.items())
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("code", "status", "what happened", "what to do", "retry")
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Stepwell: errors</title>'
        '<link rel="icon" href="../dashboard/icon.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="../dashboard/style.css"><link rel="stylesheet" href="../reference/reference.css">'
        '</head><body class="reference"><header class="top"><h1 class="brand">'
        '<img src="../dashboard/icon.svg" alt="" width="26" height="26">Stepwell errors</h1>'
        '<div class="controls"><a class="button" href="../docs">API</a> '
        '<a class="button" href="../">Dashboard</a></div>'
        "</header><main><p>The <code>detail</code> of an error says what was found and what was expected. "
        "<code>applied</code> says whether the request has changed the stream.</p>"
        f'<div class="wide"><table class="errors"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</main></body></html>"
    ).encode()


def _row(code: str, row: ErrorCode) -> str:
    cells = (str(row.status), escape(row.title), _marked(row.advice), _RETRIES[row.retry])
    return (
        f'<tr id="{code}" data-code="{code}" data-title="{escape(row.title)}"><th scope="row"><code>{code}</code></th>'
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    )


def _marked(text: str) -> str:
    """Return text as HTML, with parts between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
