"""`LargeBodies`: decodes large bodies in a thread, so that the event loop goes on with the requests of others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from stepwell.codec.request_decoder import RequestDecoder
from stepwell.codec.typed_decoder import LARGE_BYTES, SlowBodyError
from stepwell.errors import ServiceError
from stepwell.requests.problems import internal_error

_log = logging.getLogger(__name__)
_SWITCH_S: Final = 0.0005  # after which the event loop gets the interpreter lock from a thread that decodes
T = TypeVar("T")


class LargeBodies:
    """Decodes one large body at a time: a second thread would only take the interpreter lock from the first."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-body")

    @staticmethod
    def is_large(body: bytes) -> bool:
        """Whether decoding a body would block the event loop for milliseconds."""
        return len(body) > LARGE_BYTES

    def run(
        self,
        body: bytes,
        decoder: RequestDecoder,
        decode: Callable[[RequestDecoder], T],
        submit: Callable[[T], None],
        failed: Callable[[ServiceError], None],
    ) -> None:
        """Decode a body and submit it: at once, or by the thread if that takes long.

        Args:
            body: The body.
            decoder: That of its model.
            decode: Decodes it by that, or by what is for the event loop.
            submit: Called with what it returns.
            failed: Called with the error that one of both raises, if the thread is used.

        Raises:
            ServiceError: What is wrong with the body, if the thread is not used.
        """
        if not self.is_large(body):
            try:
                decoded = decode(decoder.on_loop)
            except SlowBodyError:
                pass
            else:
                submit(decoded)
                return
        self.submit(lambda: decode(decoder), submit, failed)

    async def decode_by(self, body: bytes, decoder: RequestDecoder, decode: Callable[[RequestDecoder], T]) -> T:
        """Return what `decode` returns, called at once or in the thread; raises what it raises; otherwise as `run`."""
        if not self.is_large(body):
            with contextlib.suppress(SlowBodyError):
                return decode(decoder.on_loop)
        return await self.decode(lambda: decode(decoder))

    async def decode(self, decode: Callable[[], T]) -> T:
        """Return what a function returns that decodes a body; raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _decode, decode)

    def submit(
        self, decode: Callable[[], T], submit: Callable[[T], None], failed: Callable[[ServiceError], None]
    ) -> None:
        """Decode a body in the thread, then submit it on the event loop.

        Args:
            decode: Decodes the body.
            submit: Called with what it returns.
            failed: Called with the error that one of both raises.
        """
        decoding = asyncio.get_running_loop().run_in_executor(self._thread, _decode, decode)

        def on_decoded(decoded: asyncio.Future[Any]) -> None:
            if decoded.cancelled():
                return
            try:
                submit(decoded.result())
            except ServiceError as exc:
                failed(exc)
            except Exception:  # noqa: BLE001 - a failed request must not end the event loop's callback; it is logged
                _log.exception("A large body could not be decoded or submitted")
                failed(internal_error())

        decoding.add_done_callback(on_decoded)


def _decode(decode: Callable[[], T]) -> T:
    """Decode in the thread. The event loop needs the interpreter lock several times for each request of others."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        return decode()
    except Exception as exc:
        _free_what_was_decoded(exc)
        raise
    finally:
        sys.setswitchinterval(before)


def _free_what_was_decoded(error: BaseException | None) -> None:
    """Clear the local variables in an error's traceback, and in those of the errors before it.

    They are the document, which the event loop would free with the error: 420,000 numbers took it 10 to 30 ms.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
