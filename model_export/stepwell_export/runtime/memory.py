"""Gives memory back to the system between the parts of an export."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_LARGE = 2**24
"""Bytes of weights from which on memory is worth a tenth of a second."""


def release(nbytes: int) -> None:
    """Collect what refers to itself, and give back what the allocator of C has free; nothing for small models.

    Args:
        nbytes: Of the model's weights.
    """
    if nbytes < _LARGE:
        return
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc gives memory back by itself, or never
        ctypes.CDLL(None).malloc_trim(0)
