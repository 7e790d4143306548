"""`patched`: other attributes of frameworks and layers, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes, and restore them afterwards; one that the object itself had not is removed again.

    Args:
        changes: An object, class or module, an attribute's name, and its value.
    """
    with ExitStack() as restored:
        for owner, name, value in changes:
            if name in vars(owner):
                restored.callback(setattr, owner, name, vars(owner)[name])
            else:
                restored.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield
