"""`SharedWants`: workers tell each other what is followed through them, so that each knows what to publish."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from service.background import cancel, run_forever
from service.engine.audience import TOPIC, Audience, Want

_log = logging.getLogger(__name__)

_RENEW_S: Final = 5.0
_LASTS_S: Final = 15.0  # that what a worker wants is remembered, once it says no more
_ANSWER_S: Final = 1.0


class Messages(Protocol):
    """What is needed of the store's channel."""

    async def start(self, listener: Any) -> None:
        """Begin to hear: `listener` is told of messages, and where they are missed."""

    async def close(self) -> None:
        """Hear no more."""

    async def listen(self, topics: Iterable[str]) -> None:
        """Listen to more topics; when this returns, what is published on them is heard."""

    def leave(self, topics: Iterable[str]) -> None:
        """Listen to topics no more."""

    async def publish(self, topic: str, message: bytes) -> int | None:
        """Send a message and return how many workers took it; 0 also where the store is away, None: nobody knows."""
        ...


class _Word(msgspec.Struct, omit_defaults=True):
    """What a worker tells.

    Attributes:
        sender: The topic on which it hears answers.
        wants: What is followed through it.
        ask: To be answered with this, once `wants` is noted.
        hello: It has just come, so the answer is to say what is followed elsewhere.
        answer: What was asked with.
    """

    sender: str
    wants: list[Want] = []
    ask: bytes = b""
    hello: bool = False
    answer: bytes = b""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Word).decode


class SharedWants:
    """What is followed through this worker, told to the others; and theirs, told to the `Audience`.

    Attributes:
        own_topic: Where this worker hears answers.
    """

    def __init__(self, audience: Audience, messages: Messages, own: Callable[[], list[Want]]) -> None:
        """Prepare.

        Args:
            audience: Takes note of what is followed anywhere.
            messages: To the other workers.
            own: Gives what is followed through this worker.
        """
        self.own_topic = f"{TOPIC}:{secrets.token_hex(8)}"
        self._audience = audience
        self._messages = messages
        self._own = own
        self._answers: dict[bytes, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sure_at = float("inf")

    async def start(self) -> None:
        """Begin to listen and to renew what is wanted; at first, what others want is still to be heard."""
        self.be_unsure()
        await self._messages.listen([TOPIC, self.own_topic])
        await self._greet()
        self._spawn(run_forever(self._renew, every_s=_RENEW_S, name="Renewing what is watched"))

    async def close(self) -> None:
        """Stop."""
        await cancel(self._tasks)

    async def tell(self, wants: Sequence[Want]) -> None:
        """Tell every worker what is wanted more; when this returns, they know it, or are too slow to say so."""
        self._audience.want(wants, self._until())
        if not await self._ask(_Word(self.own_topic, wants=list(wants))):
            _log.warning("Not every worker has confirmed within %g s that it tells what is watched", _ANSWER_S)

    def be_unsure(self) -> None:
        """Say that this worker does not hear the others, so that it tells everything."""
        self._audience.unsure = True
        self._sure_at = float("inf")

    def listen_again(self) -> None:
        """Say that this worker hears the others again."""
        self._spawn(self._greet())

    def hear(self, topic: str, message: bytes) -> bool:
        """Take a message; False: it is not about wants."""
        if topic not in (TOPIC, self.own_topic):
            return False
        word = _decode(message)
        self._audience.want(word.wants, self._until())
        if word.ask:
            known = self._own() if word.hello else []
            answer = _encode(_Word(self.own_topic, wants=known, answer=word.ask))
            self._spawn(self._messages.publish(word.sender, answer))
        if (answers := self._answers.get(word.answer)) is not None:
            answers.release()
        return True

    # ---------------------------------------------------------------- helpers

    async def _greet(self) -> None:
        """Ask every worker what is followed through it."""
        self._sure_at = self._until()  # by then each has said it by itself
        if await self._ask(_Word(self.own_topic, hello=True)):
            self._audience.unsure = False

    async def _ask(self, word: _Word) -> bool:
        """Send a word and wait for an answer from each worker that took it; False: not all came in time."""
        word.ask = secrets.token_bytes(8)
        answers = self._answers[word.ask] = asyncio.Semaphore(0)
        workers: int | None = 0
        try:
            async with asyncio.timeout(_ANSWER_S):
                workers = await self._messages.publish(TOPIC, _encode(word))
                if workers is None:
                    await asyncio.sleep(_ANSWER_S)  # each has its time
                for _ in range(workers or 0):
                    await answers.acquire()
        except TimeoutError:
            return workers is None
        finally:
            del self._answers[word.ask]
        return workers != 0

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._audience.unsure and now >= self._sure_at:
            self._audience.unsure = False
        self._audience.drop(now)
        if wants := self._own():
            self._audience.want(wants, self._until())
            await self._messages.publish(TOPIC, _encode(_Word(self.own_topic, wants=wants)))

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + _LASTS_S

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
