"""The keys of what workers tell each other of reloads."""

from __future__ import annotations

from typing import Final

RELOAD: Final = "swl:{fleet}:reload"
"""The key of the newest announcement of a reload."""

WORKERS: Final = "swl:{fleet}:workers"
"""The key of the hash of all workers: when each was last alive, and the newest announcement that it has followed."""

UNLOADED: Final = "swl:{fleet}:unloaded"
"""The key of the hash whose fields are the models that are not served although their files are there."""
