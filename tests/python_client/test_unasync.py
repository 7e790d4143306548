"""The client for threads is what `scripts/unasync.py` makes of the client for asyncio."""

from __future__ import annotations

import pytest

from scripts import unasync


def test_the_client_for_threads_is_written_from_the_one_for_asyncio() -> None:
    pytest.importorskip("ruff", reason="it formats what the script writes")

    assert unasync.TARGET.read_text() == unasync.without_async(unasync.SOURCE.read_text()), (
        "aio.py or sync.py was changed alone: change aio.py, and run `python -m scripts.unasync`"
    )
