"""What things are called in the store. One stream's keys share a hash tag, so a Cluster keeps them together."""

from __future__ import annotations

from service.store.record import blake2b_128

PREFIX = "swl:1:"

ALL_RECORDS = f"{PREFIX}{{*}}"
"""The SCAN pattern of every record."""


def record_key(tenant: str, model: str, stream: str) -> str:
    """Return the key of a stream's record."""
    return f"{PREFIX}{{{tenant}/{model}/{stream}}}"


def idempotency_key_of(record: str, idempotency_key: str) -> str:
    """Return the key of the entry that remembers what an idempotency key of this stream answered."""
    return f"{record}:k:{blake2b_128(idempotency_key.encode()).hex()}"


def snapshots_key(record: str) -> str:
    """Return the key of a stream's snapshots; `commit.lua` knows it too."""
    return f"{record}:s"


def event_log_key(record: str) -> str:
    """Return the key of a stream's history: its newest events, for watchers that come back."""
    return f"{record}:h"


def end_entry_key(record: str) -> str:
    """Return the key of the entry that remembers the answer to the request that ended it; `commit.lua` knows it."""
    return f"{record}:end"


def is_record(name: str) -> bool:
    """Whether a key is a stream's record, and none of those beside it."""
    return name.endswith("}")


def records_pattern(tenant: str, model: str, prefix: str) -> str:
    """Return the SCAN pattern of a model's records whose stream id begins with `prefix`.

    None of the characters that stream ids may have is special in a pattern.
    """
    return f"{PREFIX}{{{tenant}/{model}/{prefix}*}}"


def tenant_of(record: str) -> str:
    """Return the tenant in a record's key."""
    return record[len(PREFIX) + 1 :].partition("/")[0]


def stream_of(record: str) -> str:
    """Return the stream id in a record's key."""
    return record[:-1].rsplit("/", 1)[1]
