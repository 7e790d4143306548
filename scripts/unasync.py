"""Writes the client for threads from the client for asyncio, by replacing words: `python -m scripts.unasync`.

What differs by more than words is in `on_asyncio.py` and `on_threads.py`, which are written by hand and have the same
names. What only the client for asyncio has is between the comments `unasync: off` and `unasync: on`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "clients" / "python" / "stepwell_client" / "aio.py"
TARGET: Final = SOURCE.with_name("sync.py")

_HEADER = "# Written from aio.py by `python -m scripts.unasync`: change that file, and run the script.\n\n"
_REPLACEMENTS = (
    (r"^ *# unasync: off\n(?s:.*?)^ *# unasync: on\n\n", ""),
    (r"\b(async|await) ", ""),
    (r"\bAsync(?=[A-Z])", ""),  # of our classes, and of AsyncIterator
    (r"_async(?=\b|_)", ""),  # drive_async, open_async_socket
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\baclose\b", "close"),
    (r"\baclosing\b", "closing"),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\bon_asyncio\b", "on_threads"),
    (r"\bthe client for asyncio\b", "the client for scripts and threads"),
    (r"\bTasks of one event loop\b", "Threads"),
)


def without_async(source: str) -> str:
    """Return the source of the client for threads, without unused imports and formatted."""
    for pattern, replacement in _REPLACEMENTS:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    source = _ruff("check", "--fix", "--quiet", "--select=F401,I", source=_HEADER + source)
    return _ruff("format", source=source)


def _ruff(*arguments: str, source: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, f"--stdin-filename={TARGET}", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True, cwd=ROOT).stdout


if __name__ == "__main__":
    TARGET.write_text(without_async(SOURCE.read_text()))
