"""`RolloutPlan`: one rollout of one model version: its first inputs, its record, its result. Does no I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.addons.rollouts.feedback import FeedbackInputs
from stepwell.addons.rollouts.requests import RolloutRequest, RolloutResult
from stepwell.addons.rollouts.worker import ActiveRollout
from stepwell.engine.packing import pack_outputs, prediction_bytes, unpack_outputs
from stepwell.engine.placing import Placed
from stepwell.engine.protocol.decide import StepIntent
from stepwell.engine.stepping.model_runner import missing_input
from stepwell.errors import CorruptRecordError, ServiceError, wrong_state_size
from stepwell.models.served import ServedModel
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import HAD_KEY, NO_HISTORY, Kind, Record, blake2b_128, extend_history
from stepwell_export.runtime.feedback import FeedbackError, Rule, rules_of
from stepwell_export.runtime.manifest import Array

_SEEDS = 2**53  # integers below that are exact in JSON


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """A rollout that is to be run.

    Attributes:
        request: The request.
        op_id: Identifies the operation, 16 bytes.
        served: The model version that runs it.
        rules: How inputs are computed from predictions.
        seed: Seed of all random numbers.
        placed: How the record of a stream begins that the rollout creates; None: as that of any model.
    """

    request: RolloutRequest
    op_id: bytes
    served: ServedModel
    rules: Sequence[Rule]
    seed: int
    placed: Placed | None = None

    @classmethod
    def of(
        cls, request: RolloutRequest, op_id: bytes, served: ServedModel, placed: Placed | None = None
    ) -> RolloutPlan:
        """Check a request against a model.

        Raises:
            ServiceError: `bad_request` or `bad_input`: a rule is invalid, a rule does not fit the model, or there is
                no rule.
        """
        try:
            rules = rules_of(
                served.manifest.feedback if request.feedback is None else request.feedback, served.manifest
            )
        except FeedbackError as exc:
            raise ServiceError(
                "bad_request" if exc.fits_no_model else "bad_input",
                f"{str(exc)[:1].upper()}{str(exc)[1:]}.",
                fix="See GET /v1/models/{model} for its inputs and outputs.",
            ) from exc
        if not rules:
            raise ServiceError(
                "bad_input",
                "The model declares no feedback from an output to an input, and the request has no `feedback`.",
                fix='Send `"feedback": {"INPUT": "OUTPUT"}`, or export the model with `--feedback OUTPUT=INPUT`.',
            )
        # A retry of a committed rollout must have the same seed, so it is derived from the op id.
        seed = int.from_bytes(op_id[:8], "little") % _SEEDS if request.seed is None else request.seed
        rules = [rule.drawn(request.temperature, request.top_k, request.top_p) for rule in rules]
        return cls(request, op_id, served, rules, seed, placed)

    @property
    def intent(self) -> StepIntent:
        """The request as `decide` needs it."""
        request = self.request
        return StepIntent(
            self.op_id, request.horizon, request.seq, request.after, request.create, self.served.fingerprint
        )

    def start(self, record: Record | None, deadline: float) -> ActiveRollout:
        """Return the rollout, ready to run.

        Args:
            record: The stream's record; None: the stream is missing, and starts from the model's initial state.
            deadline: On the monotonic clock.

        Raises:
            ServiceError: `state_corrupt`; or `model_changed`, `bad_input`, `bad_request` or `stream_not_found`: there
                is no valid first input.
        """
        model = self.served.step_model
        if record is not None and len(record.state) != model.state_bytes:
            raise wrong_state_size(len(record.state), model.state_bytes)
        packed = np.frombuffer(self._initial_state() if record is None else record.state, np.uint8)
        states = model.unpack(np.repeat(packed[None], self.request.samples, axis=0))
        feedback = FeedbackInputs(
            self.rules, seed=self.seed, samples=self.request.samples, horizon=self.request.horizon
        )
        return ActiveRollout(self._first_inputs(record, feedback), states, feedback, self.request.horizon, deadline)

    def result(self, record: Record | None, rollout: ActiveRollout) -> RolloutResult:
        """Return the result of a finished rollout, before it is committed."""
        step, history_hash = (0, b"") if record is None else (record.step, record.history_hash)
        outputs = {name: np.stack([row[name] for row in rollout.outputs], axis=1) for name in rollout.outputs[0]}
        next_inputs = {
            rule.input.name: np.stack([row[rule.input.name] for row in rollout.next_inputs], axis=1)
            for rule in self.rules
        }
        return RolloutResult(outputs, next_inputs, self._seed_used, step + self.request.horizon, history_hash)

    def replayed_result(self, stored: Record | IdempotencyEntry) -> RolloutResult:
        """Return the result of an applied rollout: the stored predictions, and the recomputed input after each.

        Raises:
            CorruptRecordError: The number of stored predictions is not the horizon.
        """
        expected_bytes = self.request.horizon * prediction_bytes(self.served.manifest.answered)
        if len(stored.outputs) != expected_bytes:
            raise CorruptRecordError(
                f"{len(stored.outputs)} bytes of predictions are stored; the rollout has {expected_bytes}."
            )
        outputs = {name: array[None] for name, array in unpack_outputs(self.served.manifest, stored.outputs).items()}
        feedback = FeedbackInputs(self.rules, seed=self.seed, samples=1, horizon=self.request.horizon)
        rows = [
            feedback.next({name: array[:, t] for name, array in outputs.items()}, t + 1, {})
            for t in range(self.request.horizon)
        ]
        next_inputs = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        return RolloutResult(outputs, next_inputs, self._seed_used, stored.step, stored.history_hash, replayed=True)

    def record(self, previous: Record | None, rollout: ActiveRollout, result: RolloutResult) -> Record:
        """Return the record after a rollout. The history hash includes the inputs, since the request may lack them."""
        request, served, now = self.request, self.served, int(time.time() * 1000)
        data = [array.tobytes() for _, array in sorted(rollout.fed_inputs.items())]
        history_hash = NO_HISTORY if previous is None else previous.history_hash
        moved = 0 if self.placed is None else self.placed.moved
        if previous is not None:
            moved = previous.moved
        [after] = extend_history([history_hash], Kind.ROLLOUT, [blake2b_128(self.op_id, *data)], served.fingerprint)
        return Record(
            epoch=secrets.randbits(64) if previous is None else previous.epoch,
            step=result.step,
            length=request.horizon,
            flags=Kind.ROLLOUT | (HAD_KEY if request.idempotency_key is not None else 0),
            op_id=self.op_id,
            history_hash=after,
            fingerprint=served.fingerprint,
            updated_ms=now,
            created_ms=now if previous is None else previous.created_ms,
            outputs=pack_outputs(served.manifest.answered, result.outputs, 1).tobytes(),
            state=served.step_model.pack(rollout.states, rows=1).tobytes(),
            sources=() if previous is None else previous.sources,
            moved=moved,
        )

    # ---------------------------------------------------------------- helpers

    @property
    def _seed_used(self) -> int | None:
        return self.seed if any(rule.is_random for rule in self.rules) else None

    def _initial_state(self) -> bytes:
        """Return the packed state from which a stream starts."""
        state = self.served.step_model.initial_state
        return state if self.placed is None else self.placed.state(state)

    def _first_inputs(self, record: Record | None, feedback: FeedbackInputs) -> dict[str, Array]:
        """Return the inputs of the request; the others are computed by their rules from the last prediction.

        An input without a rule that the request lacks is missing in each timestep, where its values may be missing.
        """
        given, specs = self.request.inputs, self.served.manifest.inputs
        for spec in specs:
            row = given.get(spec.name)
            if row is not None and (row.dtype.name, row.shape) != (spec.dtype, spec.row_shape):
                raise ServiceError(  # the request was decoded for another version of the model
                    "model_changed",
                    f"Input {spec.name!r} is {row.dtype}{list(row.shape)}; version {self.served.version} of the model, "
                    f"to which the stream belongs, expects {spec.dtype}{list(spec.row_shape)}.",
                    fix=f"Send ?version={self.served.version}, and inputs for that version.",
                )
            if row is not None and spec.missing == "refuse" and np.isnan(row).any():
                raise missing_input(spec.name, self.served)
        has_rule = {rule.input.name for rule in self.rules}
        missing = [spec for spec in specs if spec.name not in given]
        without_rule = [spec for spec in missing if spec.name not in has_rule]
        if missing_without_rule := [spec.name for spec in without_rule if spec.missing == "refuse"]:
            raise ServiceError(
                "bad_input",
                f"`inputs` has no {', '.join(map(repr, missing_without_rule))}, and no feedback rule computes it.",
                fix="Send it: it has the same value in every timestep.",
            )
        rows = {**given, **{spec.name: np.full(spec.row_shape, np.nan, spec.dtype) for spec in without_rule}}
        inputs = {name: self._repeated(row) for name, row in rows.items()}
        if len(missing) == len(without_rule):
            return inputs
        last_prediction = {name: self._repeated(row) for name, row in self._last_prediction(record).items()}
        return {**feedback.next(last_prediction, 0, inputs), **inputs}

    def _last_prediction(self, record: Record | None) -> Mapping[str, Array]:
        """Return the stream's newest prediction, `*row` by name."""
        if record is None:
            raise ServiceError(
                "stream_not_found",
                f"There is no stream {self.request.key.stream!r} whose last prediction could be the first input.",
                fix="Send `inputs`, to start from the model's initial state.",
            )
        size = prediction_bytes(self.served.manifest.answered)
        if not 0 < size <= len(record.outputs):
            raise ServiceError(
                "bad_request",
                "`inputs` is missing, and the stream has no stored prediction to compute them from: its last operation "
                'was a reset, an import of a state, or a chunk with `"return": "none"`.',
                fix="Send `inputs`: the first input of the rollout.",
                step=record.step,
                state_id=record.history_hash,
            )
        arrays = unpack_outputs(self.served.manifest, record.outputs[-size:])
        return {name: array[0] for name, array in arrays.items()}

    def _repeated(self, row: Array) -> Array:
        return np.repeat(row[None], self.request.samples, axis=0)
