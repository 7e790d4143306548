"""`RolloutPlan`: one rollout, held against the model that runs it: its first inputs, its record, its answer. Does no I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model_export.feedback import FeedbackError, Rule, rules_of
from model_export.manifest import Array
from service.engine.packing import pack_outputs, prediction_bytes, unpack_outputs
from service.engine.protocol.decide import StepIntent
from service.engine.rollout.feedback import FeedbackInputs
from service.engine.rollout.worker import ActiveRollout
from service.errors import CorruptRecordError, ServiceError, wrong_state_size
from service.models.registry import ServedModel
from service.store.record import HAD_KEY, NO_HISTORY, IdempotencyEntry, Kind, Record, blake2b_128, extend_history
from service.types import RolloutRequest, RolloutResult

_SEEDS = 2**53  # so that JSON keeps a seed exactly


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """A rollout that is to be run.

    Attributes:
        ask: What is asked for.
        op_id: Names the operation, 16 bytes.
        served: The model that runs.
        rules: How inputs are made.
        seed: Of the chances.
    """

    request: RolloutRequest
    op_id: bytes
    served: ServedModel
    rules: Sequence[Rule]
    seed: int

    @classmethod
    def of(cls, ask: RolloutRequest, op_id: bytes, served: ServedModel) -> RolloutPlan:
        """Hold what is asked for against a model.

        Raises:
            ServiceError: `bad_request` or `bad_input`: a rule says nothing or does not fit the model, or there is none.
        """
        try:
            rules = rules_of(served.manifest.feedback if ask.feedback is None else ask.feedback, served.manifest)
        except FeedbackError as exc:
            raise ServiceError(
                "bad_request" if exc.fits_no_model else "bad_input",
                f"{str(exc)[:1].upper()}{str(exc)[1:]}.",
                fix="See GET /v1/models/{model} for what it takes and gives.",
            ) from exc
        if not rules:
            raise ServiceError(
                "bad_input",
                "The model says of no output that it feeds an input, and the request has no `feedback`.",
                fix='Send `"feedback": {"INPUT": "OUTPUT"}`, or export the model with `--feedback OUTPUT=INPUT`.',
            )
        # What is committed can be asked for again, and its seed then has to be the same.
        seed = int.from_bytes(op_id[:8], "little") % _SEEDS if ask.seed is None else ask.seed
        drawn = [rule.drawn(ask.temperature, ask.top_k, ask.top_p) for rule in rules]
        return cls(ask, op_id, served, drawn, seed)

    @property
    def intent(self) -> StepIntent:
        """What the decision needs of it."""
        ask = self.request
        return StepIntent(self.op_id, ask.horizon, ask.seq, ask.after, ask.create, self.served.fingerprint)

    def start(self, record: Record | None, deadline: float) -> ActiveRollout:
        """Return the rollout, ready to run.

        Args:
            record: Where the stream stands; None: it is missing, and begins at the model's initial state.
            deadline: On the monotonic clock.

        Raises:
            ServiceError: `state_corrupt`; or why there is no first input.
        """
        model = self.served.step_model
        if record is not None and len(record.state) != model.state_bytes:
            raise wrong_state_size(len(record.state), model.state_bytes)
        packed = np.frombuffer(model.initial_state if record is None else record.state, np.uint8)
        states = model.unpack(np.repeat(packed[None], self.request.samples, axis=0))
        feeding = FeedbackInputs(self.rules, seed=self.seed, samples=self.request.samples, horizon=self.request.horizon)
        return ActiveRollout(self._first_inputs(record, feeding), states, feeding, self.request.horizon, deadline)

    def result(self, record: Record | None, roll: ActiveRollout) -> RolloutResult:
        """Return the answer to a rollout that has ended, before it is committed."""
        step, chain = (0, b"") if record is None else (record.step, record.history_hash)
        outputs = {name: np.stack([row[name] for row in roll.outputs], axis=1) for name in roll.outputs[0]}
        followed = {
            rule.input.name: np.stack([row[rule.input.name] for row in roll.next_inputs], axis=1) for rule in self.rules
        }
        return RolloutResult(outputs, followed, self._seed_used, step + self.request.horizon, chain)

    def replayed_result(self, kept: Record | IdempotencyEntry) -> RolloutResult:
        """Return the first answer again: the predictions that were kept, and made anew what followed on each.

        Raises:
            CorruptRecordError: As many predictions are not kept.
        """
        wanted = self.request.horizon * prediction_bytes(self.served.manifest.answered)
        if len(kept.outputs) != wanted:
            raise CorruptRecordError(f"{len(kept.outputs)} bytes of predictions are kept; the rollout's have {wanted}.")
        outputs = {name: array[None] for name, array in unpack_outputs(self.served.manifest, kept.outputs).items()}
        feeding = FeedbackInputs(self.rules, seed=self.seed, samples=1, horizon=self.request.horizon)
        rows = [
            feeding.next({name: array[:, t] for name, array in outputs.items()}, t + 1, {})
            for t in range(self.request.horizon)
        ]
        followed = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        return RolloutResult(outputs, followed, self._seed_used, kept.step, kept.history_hash, replayed=True)

    def record(self, before: Record | None, roll: ActiveRollout, done: RolloutResult) -> Record:
        """Return the record that a rollout leaves. Its history covers what was fed, which the request may not tell."""
        ask, served, now = self.request, self.served, int(time.time() * 1000)
        data = [array.tobytes() for _, array in sorted(roll.fed_inputs.items())]
        chain = NO_HISTORY if before is None else before.history_hash
        [after] = extend_history([chain], Kind.ROLLOUT, [blake2b_128(self.op_id, *data)], served.fingerprint)
        return Record(
            epoch=secrets.randbits(64) if before is None else before.epoch,
            step=done.step,
            length=ask.horizon,
            flags=Kind.ROLLOUT | (HAD_KEY if ask.idempotency_key is not None else 0),
            op_id=self.op_id,
            history_hash=after,
            fingerprint=served.fingerprint,
            updated_ms=now,
            created_ms=now if before is None else before.created_ms,
            outputs=pack_outputs(served.manifest.answered, done.outputs, 1).tobytes(),
            state=served.step_model.pack(roll.states, rows=1).tobytes(),
        )

    # ---------------------------------------------------------------- helpers

    @property
    def _seed_used(self) -> int | None:
        return self.seed if any(rule.is_random for rule in self.rules) else None

    def _first_inputs(self, record: Record | None, feeding: FeedbackInputs) -> dict[str, Array]:
        """Return those that are given, and for the others what their rules make of the last prediction."""
        given, specs = self.request.inputs, self.served.manifest.inputs
        for spec in specs:
            row = given.get(spec.name)
            if row is not None and (row.dtype.name, row.shape) != (spec.dtype, spec.row_shape):
                raise ServiceError(  # it was read for another version of the model
                    "model_changed",
                    f"The stream's own version of the model takes {spec.dtype}{spec.shape} as input {spec.name!r}.",
                    fix="Name that version with ?version=, and send what it takes.",
                )
        ruled = {rule.input.name for rule in self.rules}
        missing = [spec.name for spec in specs if spec.name not in given]
        if without := [name for name in missing if name not in ruled]:
            raise ServiceError(
                "bad_input",
                f"`inputs` has no {', '.join(map(repr, without))}, which no feedback makes either.",
                fix="Send it: it is fed as it is in every timestep.",
            )
        inputs = {name: self._repeated(row) for name, row in given.items()}
        if not missing:
            return inputs
        last = {name: self._repeated(row) for name, row in self._last_prediction(record).items()}
        return {**feeding.next(last, 0, inputs), **inputs}

    def _last_prediction(self, record: Record | None) -> Mapping[str, Array]:
        """Return the stream's newest prediction, `*row` by name."""
        if record is None:
            raise ServiceError(
                "stream_not_found",
                f"There is no stream {self.request.key.stream!r} whose last prediction could be the first input.",
                fix="Send `inputs`, to go on from the model's initial state.",
            )
        size = prediction_bytes(self.served.manifest.answered)
        if not 0 < size <= len(record.outputs):
            raise ServiceError(
                "bad_request",
                "`inputs` is missing, and no prediction is kept that they could be made of: the stream's newest "
                'operation was a reset, a state that was put in, or a chunk with `"return": "none"`.',
                fix="Send `inputs`: the first input of the rollout.",
                step=record.step,
                state_id=record.history_hash,
            )
        kept = unpack_outputs(self.served.manifest, record.outputs[-size:])
        return {name: array[0] for name, array in kept.items()}

    def _repeated(self, row: Array) -> Array:
        return np.repeat(row[None], self.request.samples, axis=0)
