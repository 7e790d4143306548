"""`Script`: a Lua script that the store runs atomically."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """A Lua script that the store runs atomically.

    Attributes:
        text: Its source.
        sha: SHA-1 of its source, by which EVALSHA runs it.
    """

    text: str
    sha: str

    @classmethod
    def of(cls, file: str, package: str = __name__) -> Script:
        """Load a script by its file name and its package, by default this one."""
        text = files(package).joinpath(file).read_text()
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())
