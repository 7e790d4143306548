"""`DecidedOffsets`: how far all is decided, where a broker of Kafka's protocol keeps no text beside an offset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

_SUFFIX: Final = ".decided"
_CLOSE_S: Final = 10.0


class DecidedOffsets:
    """The offsets that a second group has committed, one of each partition.

    All before such an offset is decided: it was applied, became a dead letter, or waits. What waits is newer than the
    position of its stream, so that the others are told from it when they are read again.
    """

    def __init__(self, group: str, connection: Mapping[str, Any]) -> None:
        """Create it; nothing is opened yet.

        Args:
            group: The group that reads.
            connection: The options of a consumer.
        """
        self._consumer: Any = AIOKafkaConsumer(**connection, group_id=group + _SUFFIX, enable_auto_commit=False)
        self._is_open = False
        self._before: dict[TopicPartition, int] = {}

    def __contains__(self, partition: TopicPartition) -> bool:
        return partition in self._before

    def before(self, partition: TopicPartition) -> int:
        """Return the offset before which all was decided when `read` was called; 0 if it was not."""
        return self._before.get(partition, 0)

    async def read(self, partition: TopicPartition, default: int, end: int | None) -> None:
        """Read the offset of a partition.

        Args:
            partition: The partition.
            default: What is committed if there is none, or one of a topic that was deleted.
            end: The offset behind the newest message; None: it is not known.

        Raises:
            KafkaError: The broker does not respond, or refuses it.
        """
        if not self._is_open:
            await self._consumer.start()
            self._is_open = True
        partitions = [*self._before, partition]
        self._consumer.assign(partitions)  # without a member of the group: nobody else gets them
        self._consumer.pause(*partitions)  # only offsets are wanted
        found = await self._consumer.committed(partition)
        if found is None or (end is not None and found > end):
            await self._consumer.commit({partition: default})
            found = default
        self._before[partition] = found

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the offsets of partitions that were read; raises as `read` does."""
        if offsets:
            await self._consumer.commit(dict(offsets))

    def forget(self) -> None:
        """Forget all partitions: others may commit theirs meanwhile."""
        self._before.clear()

    async def close(self) -> None:
        """Disconnect; never fails."""
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await asyncio.wait_for(self._consumer.stop(), _CLOSE_S)
