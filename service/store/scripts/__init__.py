"""`Script`: what the store runs in one go."""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple


class Script(NamedTuple):
    """A script that the store runs in one go.

    Attributes:
        text: What it says.
        sha: The name by which a store that has seen it knows it.
    """

    text: str
    sha: str

    @classmethod
    def of(cls, file: str) -> Script:
        """Return a script of this package by its file's name."""
        text = files(__name__).joinpath(file).read_text()
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())
