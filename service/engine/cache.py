"""The worker's hot records. It can only save a read: no refusal and no replay is ever decided on it alone."""

from __future__ import annotations

from collections import OrderedDict

from service.engine.types import StreamKey
from service.store.record import Record

_OVERHEAD = 600  # bytes of Python objects around one record: key, two dict slots, fields


class StateCache:
    """Records by stream, the least recently used forgotten first, bounded in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._records: OrderedDict[StreamKey, Record] = OrderedDict()
        self._bytes = 0

    def get(self, key: StreamKey) -> Record | None:
        """Return the record last seen, which may be stale."""
        record = self._records.get(key)
        if record is not None:
            self._records.move_to_end(key)
        return record

    def put(self, key: StreamKey, record: Record) -> None:
        """Remember what the store was last seen to hold."""
        self.drop(key)
        self._records[key] = record
        self._bytes += record.nbytes + _OVERHEAD
        while self._bytes > self._limit and self._records:
            _, oldest = self._records.popitem(last=False)
            self._bytes -= oldest.nbytes + _OVERHEAD

    def drop(self, key: StreamKey) -> None:
        """Forget a stream: on any doubt."""
        record = self._records.pop(key, None)
        if record is not None:
            self._bytes -= record.nbytes + _OVERHEAD

    def __len__(self) -> int:
        """Streams remembered."""
        return len(self._records)
