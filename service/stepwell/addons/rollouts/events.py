"""`RolloutEvents`: a rollout as server-sent events, each timestep when it was made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

from starlette.types import Receive, Scope, Send

from stepwell.addons.rollouts.bodies import done_event, timestep_event
from stepwell.addons.rollouts.requests import RolloutRequest, RolloutResult
from stepwell.addons.rollouts.service import RolloutService
from stepwell.addons.server_sent_events import COMMENT, EventStreamResponse, encode_event
from stepwell.errors import ServiceError
from stepwell.requests.problems import internal_error, problem_document
from stepwell_client.wire.formats import JSON, encode
from stepwell_export.runtime.manifest import Array

_log = logging.getLogger(__name__)
_COMMENT_S: Final = 15.0
_Timestep = tuple[Mapping[str, Array], Mapping[str, Array]]


class RolloutEvents(EventStreamResponse):
    """The response to one rollout.

    Without `commit`, each timestep is sent as it is made, and the run ends if the client disconnects. With `commit`,
    all timesteps are computed and committed before the first is sent.
    """

    def __init__(
        self, rollouts: RolloutService, request: RolloutRequest, *, samples: bool, comment_s: float = _COMMENT_S
    ) -> None:
        """Start the rollout.

        Args:
            rollouts: Runs it.
            request: The rollout.
            samples: Whether tensors have an axis for samples.
            comment_s: Seconds without events after which a comment is sent.
        """
        super().__init__()
        self._request = request
        self._samples = samples
        self._comment_s = comment_s
        self._made: asyncio.Queue[_Timestep | None] = asyncio.Queue()  # None: there are no more
        self._first: list[_Timestep | None] = []
        self._n_sent = 0
        self._run = asyncio.create_task(rollouts.run(request, on_timestep=lambda *made: self._made.put_nowait(made)))
        self._run.add_done_callback(lambda _: self._made.put_nowait(None))

    async def wait_for_first(self) -> None:
        """Wait until there is a timestep to send.

        Raises:
            ServiceError: The rollout was rejected, or has failed before its first timestep.
        """
        try:
            self._first = [await self._made.get()]
            if self._first == [None]:
                self._run.result()
        except BaseException:
            self._run.cancel()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; the client's disconnection ends a rollout that is still running."""
        try:
            await self.send_until_disconnect(receive, send)
        finally:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)

    async def texts(self) -> AsyncIterator[bytes]:
        """Yield the bytes to send, one or more events each."""
        made = self._first
        while True:
            try:
                async with asyncio.timeout(self._comment_s):
                    made = made or [await self._made.get()]
            except TimeoutError:
                yield COMMENT
                continue
            while not self._made.empty():
                made.append(self._made.get_nowait())
            if texts := [self._timestep(*timestep) for timestep in made if timestep is not None]:
                yield b"".join(texts)
            if made[-1] is None:
                break
            made = []
        try:
            result = self._run.result()
        except ServiceError as exc:
            yield _problem(exc)
        except Exception as exc:  # noqa: BLE001 - the response has begun; it is logged, and reported as `internal`
            _log.error("A rollout failed (model=%s)", self._request.key.model, exc_info=exc)
            yield _problem(internal_error())
        else:
            for text in self._stored(result):
                yield text
            yield encode_event(encode(done_event(result, samples=self._samples), JSON), event_type=b"done")

    def _stored(self, result: RolloutResult) -> Iterator[bytes]:
        """Yield the events of the timesteps that were not sent as they were made."""
        for t in range(self._n_sent, self._request.horizon):
            outputs = {name: array[:, t] for name, array in result.outputs.items()}
            yield self._timestep(outputs, {name: array[:, t] for name, array in result.next_inputs.items()})

    def _timestep(self, outputs: Mapping[str, Array], next_inputs: Mapping[str, Array]) -> bytes:
        self._n_sent += 1
        document = timestep_event(outputs, next_inputs, samples=self._samples)
        return encode_event(encode(document, JSON), event_type=b"timestep")


def _problem(error: ServiceError) -> bytes:
    return encode_event(encode(problem_document(error), JSON), event_type=b"problem")
