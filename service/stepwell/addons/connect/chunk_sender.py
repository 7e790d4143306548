"""`ChunkSender`: steps streams by the chunks of a round, and finds the single timestep that the service rejects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Final

from stepwell.addons.connect.chunks import PollLimits, StreamChunk, columns_of, frames_of
from stepwell.addons.connect.mapping.poll_mapper import MappedPoll
from stepwell.addons.connect.messages import ConnectError
from stepwell.addons.connect.service_feed import ServiceFeed
from stepwell_client.errors import ClientError
from stepwell_client.protocol import decoding
from stepwell_client.protocol.decoding import BulkReply
from stepwell_client.results import StepResult
from stepwell_export.runtime.manifest import Array

_PASSED: Final = {"source_passed", "seq_passed"}
_OF_A_TIMESTEP: Final = {"bad_input", "non_finite", "non_finite_state", "too_large", "bad_request"}
_OF_A_STREAM: Final = {
    *("seq_gap", "seq_conflict", "state_changed", "stream_exists", "stream_not_found", "model_changed"),
    "state_corrupt",
}


@dataclass(frozen=True, slots=True)
class AppliedChunks:
    """Chunks of one length T, with what the service returned for them.

    Attributes:
        chunks: One for each stream.
        steps: The step of each one's last timestep.
        state_ids: The state id behind it; None: the stream is beyond it.
        versions: The version that made the prediction of each one's last timestep.
        outputs: The predictions, `(chunks, T, *row)`.
        skipped: The first timesteps of each chunk that were not applied, because they are before its stream's position;
            empty: all were applied.
        unknown: The first timesteps of each chunk whose predictions are not known any more.
        by_timestep: The version of each timestep, of chunks that have several; empty: no chunk has.
    """

    chunks: list[StreamChunk]
    steps: Sequence[int]
    state_ids: Sequence[str | None]
    versions: Sequence[int | None]
    outputs: Mapping[str, Array]
    skipped: Sequence[int]
    unknown: int = 0
    by_timestep: Sequence[Sequence[int | None] | None] = ()

    def version_of(self, number: int, place: int) -> int | None:
        """Return the version that made a prediction: of a chunk by its index, and a timestep by its place in it."""
        own = self.by_timestep[number] if self.by_timestep else None
        return own[place] if own else self.versions[number]

    @property
    def n_timesteps(self) -> int:
        """Timesteps of all chunks that were applied now."""
        return len(self.chunks) * len(self.chunks[0].timesteps) - sum(self.skipped)

    @property
    def passed(self) -> Iterator[int]:
        """The timesteps of all chunks that were not applied."""
        for chunk, skipped in zip(self.chunks, self.skipped or repeat(0), strict=False):
            yield from chunk.timesteps[:skipped]

    @classmethod
    def of(cls, chunk: StreamChunk, found: StepResult | None) -> AppliedChunks:
        """Return one chunk with its result; None: it was applied before, and no prediction of it is known any more."""
        if found is None:
            length = len(chunk.timesteps)
            return cls([chunk], [0], [None], [None], {}, [length], length)
        outputs = {name: array[None] for name, array in found.outputs.items()}
        return cls(
            [chunk], [found.step], [found.state_id or None], [found.version], outputs, [found.skipped], found.unknown,
            [found.versions],
        )  # fmt: skip


OnRejected = Callable[[Sequence[int], ClientError, list[int]], Awaitable[list[int]]]
"""Called with the indices of timesteps that the service rejects, and of those behind them in their chunk, before any of
these is applied; returns what is applied in their place."""


class ChunkSender:
    """Sends the chunks of one round, in as few messages as possible."""

    def __init__(self, feed: ServiceFeed, limits: PollLimits) -> None:
        self._feed = feed
        self._limits = limits

    async def send(
        self, chunks: Sequence[StreamChunk], poll: MappedPoll, on_rejected: OnRejected
    ) -> list[AppliedChunks]:
        """Step each stream by its chunk, and return once each has a final result.

        Args:
            chunks: At most one for each stream.
            poll: Their timesteps.
            on_rejected: Called with timesteps that the service rejects.

        Raises:
            ConnectError: The service rejects all requests of this connector, or `on_rejected` failed.
        """
        round_ = _Round(self._feed, poll, self._limits, on_rejected)
        try:
            async with asyncio.TaskGroup() as tasks:
                for frame in frames_of(chunks, poll, self._limits):
                    tasks.create_task(round_.send_frame(frame))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return round_.applied


class _Round:
    """The chunks of one round while they are sent."""

    def __init__(self, feed: ServiceFeed, poll: MappedPoll, limits: PollLimits, on_rejected: OnRejected) -> None:
        self.applied: list[AppliedChunks] = []
        self._feed = feed
        self._poll = poll
        self._limits = limits
        self._on_rejected = on_rejected

    async def send_frame(self, chunks: list[StreamChunk]) -> None:
        """Send chunks of one length until each has its final result."""
        policy = self._feed.new_policy()
        while chunks:
            reply = await self._reply(chunks)
            if isinstance(reply, BulkReply) and not reply.errors and not any(reply.unknown) and None not in reply.step:
                steps: Any = reply.step  # no None is in it
                self.applied.append(
                    AppliedChunks(
                        chunks, steps, reply.state_id, reply.version, reply.arrays(), reply.skipped,
                        by_timestep=reply.versions,
                    )
                )  # fmt: skip
                return
            again, last = [], None
            for chunk, found in zip(chunks, await self._results(chunks, reply), strict=True):
                if isinstance(found, ClientError) and found.retry == "same":
                    again.append(chunk)
                    last = found
                else:
                    await self._settle(chunk, found)
            if last is not None:
                await self._feed.pause(policy, last)
            chunks = again

    async def _try(self, chunks: list[StreamChunk]) -> list[StepResult | ClientError]:
        """Send chunks once, and return the result of each."""
        return await self._results(chunks, await self._reply(chunks))

    async def _results(
        self, chunks: list[StreamChunk], reply: BulkReply | ClientError
    ) -> list[StepResult | ClientError]:
        """Return the result of each chunk; a message that is rejected as a whole is sent in halves."""
        if isinstance(reply, BulkReply):
            return decoding.bulk_results(reply)
        if len(chunks) == 1:
            return [reply]
        middle = len(chunks) // 2
        return [*await self._try(chunks[:middle]), *await self._try(chunks[middle:])]

    async def _reply(self, chunks: list[StreamChunk]) -> BulkReply | ClientError:
        try:
            return await self._feed.send(columns_of(chunks, self._poll))
        except ClientError as error:
            if error.code not in _OF_A_TIMESTEP | _OF_A_STREAM:
                raise ConnectError(f"The service rejects every message: {error.problem}", fix=error.fix) from error
            return error

    async def _settle(self, chunk: StreamChunk, found: StepResult | ClientError) -> None:
        """Bring a chunk to its end, and what is applied in the place of what was rejected."""
        behind = await self._settle_once(chunk, found)
        while behind:
            first, rest = StreamChunk(chunk.stream, behind[: self._limits.steps]), behind[self._limits.steps :]
            behind = [*await self._settle_once(first, await self._try_until_final(first)), *rest]

    async def _settle_once(self, chunk: StreamChunk, found: StepResult | ClientError) -> list[int]:
        """Bring a chunk to its end, and return what is applied after it."""
        if isinstance(found, StepResult):
            await self._on_applied(chunk, found)
        elif found.code in _PASSED:
            self.applied.append(AppliedChunks.of(chunk, None))
        elif found.code in _OF_A_TIMESTEP and len(chunk.timesteps) > 1:
            return await self._isolate(chunk)
        elif found.code in _OF_A_TIMESTEP | _OF_A_STREAM:
            return await self._on_rejected(chunk.timesteps, found, [])
        else:
            raise ConnectError(f"Stream {chunk.stream!r}: {found.problem}", fix=found.fix) from found
        return []

    async def _on_applied(self, chunk: StreamChunk, found: StepResult) -> None:
        """Keep a result, and the predictions that the service has of timesteps before an unknown one.

        A timestep that was rejected before a crash is read again, is before the position now, and has no prediction.
        Those before it count as unknown, unless they are requested without it.
        """
        if found.unknown > 1:
            before = StreamChunk(chunk.stream, chunk.timesteps[: found.unknown - 1])
            earlier = await self._try_until_final(before)
            if isinstance(earlier, StepResult):
                await self._on_applied(before, earlier)
        self.applied.append(AppliedChunks.of(chunk, found))

    async def _isolate(self, chunk: StreamChunk) -> list[int]:
        """Apply all timesteps of a chunk but those that the service rejects; return what is applied after it.

        Each attempt begins with the first timestep of the chunk, so that the response to the last one has the
        predictions of all.
        """
        good: list[int] = []
        rest = chunk.timesteps
        applied: StepResult | None = None
        n_applied = n_before = 0  # by the attempts of this chunk, and before them
        while rest:
            low, high = 0, len(rest)  # `rest[:low]` is accepted, `rest[:high]` is rejected or was not tried
            error: ClientError | None = None
            size = high
            while low < high:
                found = await self._try_until_final(StreamChunk(chunk.stream, good + rest[:size]))
                if isinstance(found, StepResult):
                    n_before = found.skipped if found.skipped > n_applied else n_before
                    low, n_applied, applied = size, len(good) + size, replace(found, skipped=n_before)
                elif found.code in _OF_A_TIMESTEP:
                    high, error = size - 1, found
                elif found.code in _PASSED:
                    low = size
                else:
                    self._keep(StreamChunk(chunk.stream, good + rest[:low]), applied)
                    return await self._settle_once(StreamChunk(chunk.stream, rest[low:]), found)
                size = (low + high + 1) // 2
            good = good + rest[:low]
            if low == len(rest):
                rest = []
                break
            assert error is not None
            rest = await self._on_rejected([rest[low]], error, rest[low + 1 :])
            if rest and self._poll.seq[rest[0]] is not None:
                break  # it does not follow the step before it, which only a chunk of its own shows to the service
            if len(good) + len(rest) > self._limits.steps:
                break
        self._keep(StreamChunk(chunk.stream, good), applied)
        return rest

    def _keep(self, chunk: StreamChunk, found: StepResult | None) -> None:
        if chunk.timesteps:
            self.applied.append(AppliedChunks.of(chunk, found))

    async def _try_until_final(self, chunk: StreamChunk) -> StepResult | ClientError:
        policy = self._feed.new_policy()
        while True:
            [found] = await self._try([chunk])
            if isinstance(found, StepResult) or found.retry != "same":
                return found
            await self._feed.pause(policy, found)
