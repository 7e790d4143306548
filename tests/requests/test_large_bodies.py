"""The thread that decodes large bodies: what it made of a rejected one is freed there, not on the event loop."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from stepwell.errors import ServiceError
from stepwell.requests.large_bodies import LargeBodies


class Document:
    """What a body was decoded to; it notes the thread that frees it."""

    def __init__(self, freed_by: list[str]) -> None:
        self._freed_by = freed_by

    def __del__(self) -> None:
        self._freed_by.append(threading.current_thread().name.partition("_")[0])


def reject(freed_by: list[str]) -> Any:
    """Decode to a document, which the fast path rejects, and to another, in which the exact path finds an error."""
    try:
        decode_fast(freed_by)
    except ValueError:
        document = Document(freed_by)
        raise ServiceError("bad_json", f"{type(document)} is wrong.", fix="Send another.") from None


def decode_fast(freed_by: list[str]) -> None:
    document = Document(freed_by)
    raise ValueError(str(document))


async def awaited(bodies: LargeBodies, decode: Callable[[], Any]) -> ServiceError:
    with pytest.raises(ServiceError) as found:
        await bodies.decode(decode)
    return found.value


async def submitted(bodies: LargeBodies, decode: Callable[[], Any]) -> ServiceError:
    failed = asyncio.get_running_loop().create_future()
    bodies.submit(decode, lambda _: None, failed.set_result)
    error = await failed
    assert isinstance(error, ServiceError)
    return error


@pytest.mark.parametrize("decode", [awaited, submitted])
def test_what_a_rejected_body_was_decoded_to_is_freed_in_the_thread(decode: Callable[..., Any]) -> None:
    freed_by = list[str]()
    error = asyncio.run(decode(LargeBodies(), lambda: reject(freed_by)))

    assert freed_by == ["large-body"] * 2
    assert "in reject" in "".join(traceback.format_exception(error))  # where it happened is still known
