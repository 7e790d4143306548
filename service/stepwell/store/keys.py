"""The keys of the store. All keys of one stream share a hash tag, so a Cluster keeps them in one slot."""

from __future__ import annotations

from stepwell.store.record import blake2b_128

PREFIX = "swl:1:"

ALL_RECORDS = f"{PREFIX}{{*}}"
"""The SCAN pattern of every record."""


def source_key(digest: bytes) -> str:
    """Return the key of the id of a source, by the digest that records have of it; see `store/source_ids.py`."""
    return f"swl:source:{{{digest.hex()}}}"


def record_key(tenant: str, model: str, stream: str) -> str:
    """Return the key of a stream's record."""
    return f"{PREFIX}{{{tenant}/{model}/{stream}}}"


def idempotency_key_of(record: str, idempotency_key: str) -> str:
    """Return the key of the idempotency entry that stores the response to a request with this idempotency key."""
    return f"{record}:k:{blake2b_128(idempotency_key.encode()).hex()}"


def snapshots_key(record: str) -> str:
    """Return the key of a stream's snapshots; `commit.lua` builds the same key."""
    return f"{record}:s"


def event_log_key(record: str) -> str:
    """Return the key of a stream's event log: its newest events, for watchers that reconnect."""
    return f"{record}:h"


def shard_channel(record: str) -> str:
    """Return the channel of a stream's events in a Cluster, in the stream's slot; `commit.lua` builds the same name."""
    return f"{record}:w"


def end_entry_key(record: str) -> str:
    """Return the key of the entry that stores the response to the request that ended a stream; see `commit.lua`."""
    return f"{record}:end"


def is_record(name: str) -> bool:
    """Whether a key is that of a stream's record, not one of the stream's other keys."""
    return name.endswith("}")


def records_pattern(tenant: str, model: str, prefix: str) -> str:
    """Return the SCAN pattern of a model's records whose stream id begins with `prefix`.

    Stream ids contain no character that is special in a pattern.
    """
    return f"{PREFIX}{{{tenant}/{model}/{prefix}*}}"


def tenant_of(record: str) -> str:
    """Return the tenant in a record's key."""
    return record[len(PREFIX) + 1 :].partition("/")[0]


def stream_of(record: str) -> str:
    """Return the stream id in a record's key."""
    return record[:-1].rsplit("/", 1)[1]
