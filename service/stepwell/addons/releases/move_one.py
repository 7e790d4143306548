"""`StreamMoves`: moves one stream to another version, as an operation on it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import structs

from stepwell.addons.releases.takeover import TakeOverError
from stepwell.engine.protocol.decide import StepIntent
from stepwell.engine.streams.new_states import last_prediction_of, no_stream, responding_part
from stepwell.engine.streams.resets import ReplacedPosition, replay_position
from stepwell.engine.streams.transaction import Loaded, Reply, StreamOpDeps, Write, run_transaction
from stepwell.errors import ServiceError, state_changed
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import HAD_KEY, Kind, Record, blake2b_128, extend_history, version_flags, version_of
from stepwell.store.state_store import decoded
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.addons.releases.document import Take
    from stepwell.addons.releases.placing import ReleasePlacing
    from stepwell.models.served import ServedModel


@dataclass(frozen=True, slots=True)
class MovedPosition(ReplacedPosition):
    """The position of a stream after it was moved to a version.

    Attributes:
        version: The version.
    """

    version: int = 0


class StreamMoves:
    """Moves streams by hand.

    Args:
        deps: Store, models, admission and quota.
        placing: Places streams by the releases.
    """

    def __init__(self, deps: StreamOpDeps, placing: ReleasePlacing) -> None:
        self._deps = deps
        self._placing = placing

    async def move(
        self, key: StreamKey, *, version: int, take: Take, after: bytes | None, idempotency_key: str | None
    ) -> MovedPosition:
        """Move a stream to a version: step and last prediction stay, the state id is a new one.

        A stream of a pair goes on with the half of that version, if it has one; else the state of the half that
        responds is used. The stream then takes no part in the running trial. A retry with `after` gets the first
        response as long as no other operation was applied to the stream since; with an idempotency key, as long as its
        entry is stored.

        Args:
            key: The stream.
            version: The version.
            take: How its state is made.
            after: The state id that the stream must have; None: any.
            idempotency_key: The client's, if any.

        Raises:
            ServiceError: `stream_not_found`, `version_not_found`, `state_changed`, `release_refused`: the state cannot
                become one of that version; `model_changed`, `idempotency_key_reused`, or an error of the store.
        """
        target, models = self._version(key.model, version), self._deps.models
        parts = [b"move", target.fingerprint, take.encode(), after or b"", (idempotency_key or "").encode()]
        is_repeatable = after is not None or idempotency_key is not None
        op_id = blake2b_128(*parts) if is_repeatable else secrets.token_bytes(16)
        intent = StepIntent(op_id, 0, None, after, "auto", None)

        async def move(loaded: Loaded) -> Reply[MovedPosition] | Write[MovedPosition]:
            if loaded.entry is not None:
                stored = replay_position(loaded.entry, intent)
                return Reply(MovedPosition(stored.step, stored.state_id, True, version=version))
            record = decoded(loaded.raw)
            if record is None:
                raise no_stream(key)
            if record.op_id == op_id:
                return Reply(MovedPosition(record.step, record.history_hash, True, version=version))
            if after is not None and after != record.history_hash:
                raise state_changed(record.step, record.history_hash)
            state = await self._state(key.model, record, target, take)
            outputs = await last_prediction_of(models, key.model, record)
            new_record = self._record(record, target, op_id, state, outputs, had_key=idempotency_key is not None)
            await models.keep(key.model, target.fingerprint, loaded.deadline)
            entry = IdempotencyEntry(op_id, record.epoch, record.step, new_record.history_hash, 0, b"")
            position = MovedPosition(record.step, new_record.history_hash, False, record.history_hash, version)
            repeated = replace(position, replayed=True, before=None)
            return Write(new_record, record.guard, entry, position, lambda _: repeated)

        return await run_transaction(self._deps, key, move, idempotency_key=idempotency_key)

    # ---------------------------------------------------------------- helpers

    def _version(self, model: str, version: int) -> ServedModel:
        models = self._deps.models
        models.get(model)  # raises if there is no such model
        if version not in models.versions(model):
            raise ServiceError(
                "version_not_found",
                f"Model {model!r} has no version {version}; versions are {models.versions(model)}.",
                fix="Put its file into the models folder and POST /v1/models/reload.",
            )
        return models.get(model, version)

    async def _state(self, model: str, record: Record, target: ServedModel, take: Take) -> bytes:
        models = self._deps.models
        pair = await models.find(model, record.fingerprint, record.state)
        if pair is not None and (joined := pair.joined) is not None:
            for i, part in enumerate(pair.parts):
                if part.fingerprint == target.fingerprint:
                    return joined.part(record.state, i)
        writer, half_record = await responding_part(models, model, record)
        if writer is None:
            raise models.changed_error(
                model, record.fingerprint, target, step=record.step, state_id=record.history_hash
            )
        if writer.fingerprint == target.fingerprint:
            return half_record.state
        try:
            plan = self._placing.plan(model)
            named = None if plan is None else plan.document.translation(writer.fingerprint, target.fingerprint)
            return self._placing.takeover.state_by(take, writer, target, half_record.state, named)
        except TakeOverError as exc:
            raise ServiceError(
                "release_refused", exc.problem, fix="Send another `take`.", step=record.step,
                state_id=record.history_hash,
            ) from exc  # fmt: skip

    def _record(
        self, record: Record, target: ServedModel, op_id: bytes, state: bytes, outputs: bytes, *, had_key: bool
    ) -> Record:
        [history_hash] = extend_history([record.history_hash], Kind.MOVE, [op_id], target.fingerprint)
        return structs.replace(
            record,
            length=0,
            flags=Kind.MOVE | (HAD_KEY if had_key else 0) | version_flags(version_of(record.flags)),
            op_id=op_id,
            history_hash=history_hash,
            fingerprint=target.fingerprint,
            updated_ms=int(time.time() * 1000),
            outputs=outputs,
            state=state,
            answered_at=record.answered_at[-1:],
            answer_versions=record.answer_versions[-1:],
            moved=self._placing.pinned(target.name, record.moved),
        )
