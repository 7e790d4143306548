"""`or_skip`: skips a test whose broker is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.addons.connect.brokers import BrokerMissingError

Broker = TypeVar("Broker")


@contextlib.contextmanager
def or_skip(start: Callable[[Path], AbstractContextManager[Broker]], folder: Path) -> Iterator[Broker]:
    """Run a broker until the block ends; the test is skipped where it is not installed."""
    with contextlib.ExitStack() as stack:
        try:
            broker = stack.enter_context(start(folder))
        except BrokerMissingError as exc:
            pytest.skip(str(exc))
        yield broker
