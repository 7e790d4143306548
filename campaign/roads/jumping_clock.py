"""`stepwell` as a program whose clock is wrong by the seconds in a file, which may change while it runs."""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

_EVERY_S = 0.1


def jumping(file: Path) -> None:
    """Make `time.time` of this process wrong."""
    right, monotonic = time.time, time.monotonic
    read_at, jump = 0.0, 0.0

    def wrong() -> float:
        nonlocal read_at, jump
        if monotonic() - read_at > _EVERY_S:
            read_at, jump = monotonic(), float(file.read_text() or jump)
        return right() + jump

    time.time = wrong


if __name__ == "__main__":
    jumping(Path(sys.argv.pop(1)))
    sys.argv[0] = "stepwell"
    runpy.run_module("stepwell", run_name="__main__", alter_sys=True)
