"""The garbage collector of long-lived processes: it does not walk again and again over what is never freed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector, and exempt what is there afterwards: modules are no garbage, and never become any.

    Importing what `stepwell serve` needs makes some 200,000 objects; walking them was a tenth of the start's CPU.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_startup_objects(*, threshold: int = 50_000) -> None:
    """Exclude the objects of the start from garbage collection, and make collections rare.

    Imports and routes are some hundred thousand objects that are never freed; traversing them was visible in the
    slowest responses of a service under load, and in the CPU of a connector. Later objects are traversed rarely, but
    often enough that closed connections, which are reference cycles, do not accumulate.

    Args:
        threshold: Number of new objects after which the young ones are traversed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(threshold, 10, 10)
