"""Work in the background goes on after an error, logs it, and ends when it is stopped."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from stepwell.background import cancel, run_forever, run_until

NAME = "Counting"


class Rounds:
    """Work that fails in some of its rounds and is over after the last one."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = list(errors)
        self.done = threading.Event()

    def __call__(self) -> None:
        if not self._errors:
            self.done.set()
        elif (error := self._errors.pop(0)) is not None:
            raise error


async def in_a_task(work: Rounds) -> None:
    async def one() -> None:
        work()

    task = asyncio.create_task(run_forever(one, every_s=0, name=NAME))
    while not work.done.is_set():  # noqa: ASYNC110 - the work is the thread's, too, and has no asyncio event
        await asyncio.sleep(0)
    await cancel([task])
    assert task.cancelled()


async def in_a_thread(work: Rounds) -> None:
    stopped = threading.Event()
    thread = threading.Thread(target=run_until, args=(stopped, work), kwargs={"every_s": 0.001, "name": NAME})
    thread.start()
    await asyncio.to_thread(work.done.wait, 10)
    stopped.set()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


@pytest.fixture(params=[in_a_task, in_a_thread])
def run(request: pytest.FixtureRequest) -> Callable[[Rounds], object]:
    return request.param  # type: ignore[no-any-return]


async def test_work_goes_on_after_any_error(run: Callable[..., object]) -> None:
    work = Rounds(OSError("gone"), ValueError("odd"), None, RuntimeError("odd again"))

    await run(work)  # type: ignore[misc]

    assert work.done.is_set()


async def test_an_error_is_logged_once_as_long_as_it_stays_the_same(
    run: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="stepwell.background"):
        await run(Rounds(OSError("gone"), OSError("gone"), OSError("full"), None, OSError("gone")))  # type: ignore[misc]

    assert [(one.levelname, one.exc_info and str(one.exc_info[1])) for one in caplog.records] == [
        ("ERROR", "gone"),
        ("ERROR", "full"),
        ("INFO", None),
        ("ERROR", "gone"),
        ("INFO", None),
    ]
    assert all(one.getMessage().startswith(NAME) for one in caplog.records)


async def test_what_is_cancelled_in_the_middle_of_its_work_ends_there() -> None:
    begun = asyncio.Event()
    rounds = []

    async def work() -> None:
        rounds.append(1)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run_forever(work, every_s=0, name=NAME))
    await begun.wait()
    await cancel([task])

    assert task.cancelled()
    assert rounds == [1]


async def test_cancelling_waits_until_all_have_ended_also_one_that_had_failed() -> None:
    ended = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async def fails() -> None:
        raise OSError("gone")

    tasks = [asyncio.create_task(slow_to_end()), asyncio.create_task(fails())]
    await asyncio.sleep(0)
    await cancel(tasks)

    assert ended.is_set()
