"""`RunHandler`: handles timesteps whose states are in the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from stepwell.addons.packed_states import read_packed_state
from stepwell.addons.state_runs.bodies import run_columns_response, run_response
from stepwell.addons.state_runs.service import GivenState, StateRunResult, StateRuns
from stepwell.codec.step_bodies import DecodedRun
from stepwell.errors import ServiceError
from stepwell.requests.problems import problem_document
from stepwell_client.wire.formats import Format, encode

if TYPE_CHECKING:
    from stepwell.codec.request_decoder import RequestDecoder
    from stepwell.models.served import ServedModel
    from stepwell.requests.context import AppContext


@dataclass(slots=True)
class RunHandler:
    """Handles a request with one timestep, or columns of timesteps, whose states are in it.

    Attributes:
        context: The dependencies of every route.
        runs: Runs the timesteps.
        served: The model.
        tenant: The caller.
        request_format: The format of the body.
        response_format: The format of the response.
    """

    context: AppContext
    runs: StateRuns
    served: ServedModel
    tenant: str
    request_format: Format
    response_format: Format
    _is_columns: bool = field(init=False)
    extra_headers: ClassVar[None] = None
    is_reusable: ClassVar[bool] = False

    def submit(self, body: bytes, done: Callable[[StateRunResult | ServiceError], None]) -> None:
        """Run the timesteps, or raise what is wrong with the body."""
        self.context.large_bodies.run(
            body,
            self.context.decoder(self.served),
            lambda decoder: self._decode(decoder, body),
            lambda decoded: self._start(*decoded, done),
            done,
        )

    def _decode(self, decoder: RequestDecoder, body: bytes) -> tuple[DecodedRun, list[GivenState]]:
        """Return the decoded body, and its states.

        Raises:
            ServiceError: The body is rejected. In columns, an unreadable state is the error of its row alone.
        """
        run = decoder.run(body, self.request_format)
        if run.body.n_rows is None:
            return run, [None if text is None else read_packed_state(text) for text in run.states]
        return run, [run.faults.get(row) or _given(text) for row, text in enumerate(run.states)]

    def _start(
        self, run: DecodedRun, states: list[GivenState], done: Callable[[StateRunResult | ServiceError], None]
    ) -> None:
        self._is_columns = run.body.n_rows is not None

        def on_result(result: StateRunResult | ServiceError) -> None:
            if isinstance(result, StateRunResult) and result.errors and not self._is_columns:
                result = result.errors[0]
            done(result)

        self.runs.submit(self.served, self.tenant, run.inputs, states, on_result)

    def encode_response(self, result: Any) -> bytes:
        """Return the response body, and count the errors of its rows."""
        fingerprint = self.served.fingerprint
        if not self._is_columns:
            return encode(
                run_response(result.outputs, result.states, fingerprint, self.response_format), self.response_format
            )
        for error in result.errors.values():
            self.context.metrics.refusal(error.code)
        errors = {row: problem_document(error) for row, error in result.errors.items()}
        document = run_columns_response(result.outputs, result.states, fingerprint, errors, self.response_format)
        return encode(document, self.response_format)


def _given(text: str | None) -> GivenState:
    try:
        return None if text is None else read_packed_state(text)
    except ServiceError as exc:
        return exc
