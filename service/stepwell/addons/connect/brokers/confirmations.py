"""`all_confirmed`: waits until a broker has confirmed messages, as long as it confirms any."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any


async def all_confirmed(
    confirmations: Iterable[asyncio.Future[Any]], timeout_s: float, *, but: Sequence[type[Exception]] = ()
) -> None:
    """Wait until all messages are confirmed.

    A poll may have thousands of messages, so a slow broker may need long for all of them. If it had a limit for them
    together, they would be published again and again, and never be confirmed in time.

    Args:
        confirmations: One for each message.
        timeout_s: Seconds within which any of them has to arrive.
        but: Errors of one message, which concern no other: they are left in its confirmation.

    Raises:
        TimeoutError: None arrived for so long; all others are what a confirmation has raised.
    """
    every = set(confirmations)
    pending = every
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            if not done:
                raise TimeoutError(f"no message was confirmed within {timeout_s:g} s")
            for one in done:
                error = one.exception()
                if error is not None and not isinstance(error, tuple(but)):
                    raise error
    finally:
        for one in pending:
            one.cancel()
        await asyncio.gather(*every, return_exceptions=True)  # also of those that failed at the same time
