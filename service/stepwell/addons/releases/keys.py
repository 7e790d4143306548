"""The keys of releases in the store; those of one model share a slot in a Cluster."""

from __future__ import annotations

from stepwell.store.keys import PREFIX

STREAM_COUNTS = f"{PREFIX}release:streams"
"""The key of the numbers of streams by model and version; see `stream_counts.py`."""

COUNT_LEASE = f"{PREFIX}release:lease"
"""The key of the worker that counts streams for all others."""


def release_key(model: str) -> str:
    """Return the key of a model's release document."""
    return f"{PREFIX}release:{{{model}}}:document"


def release_revision_key(model: str) -> str:
    """Return the key of the largest revision that a model's release document has had."""
    return f"{PREFIX}release:{{{model}}}:revision"


def trial_key(model: str, revision: int) -> str:
    """Return the key of the counts of a trial, a hash; see `counters.py`."""
    return f"{PREFIX}release:{{{model}}}:trial:{revision}"


def sweep_key(model: str) -> str:
    """Return the key of the newest sweep of a model's streams, a hash: `sweep_progress.py`."""
    return f"{PREFIX}release:{{{model}}}:sweep"


def sweep_lease_key(model: str) -> str:
    """Return the key of the worker that sweeps a model's streams."""
    return f"{PREFIX}release:{{{model}}}:sweeper"
