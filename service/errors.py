"""What can go wrong with a request or with the store; codes and words, no HTTP.

StepwellError (model_export.errors)    code, problem, fix
└── ServiceError                       also applied, retry, step, state_id, expected
    ├── StoreUnavailableError          the store did not answer, and the commit was surely not sent
    ├── OutcomeUnknownError            the store did not answer after the commit was sent
    ├── StoreFullError                 the store is at its memory limit; nothing was written
    ├── CorruptRecordError             the bytes at the stream's key are no record of ours
    └── RecordVersionError             a record of another format version
"""

from __future__ import annotations

from typing import Any, Literal

from model_export.errors import StepwellError

Applied = Literal["no", "yes", "unknown"]
Retry = Literal["same", "resend_from", "never"]

CODES: dict[str, Retry] = {
    "bad_json": "never",
    "bad_request": "never",
    "unauthenticated": "never",
    "forbidden": "never",
    "model_not_found": "never",
    "stream_not_found": "never",
    "snapshot_not_found": "never",
    "not_found": "never",
    "method_not_allowed": "never",
    "seq_gap": "resend_from",
    "seq_passed": "never",
    "seq_conflict": "never",
    "state_changed": "never",
    "stream_exists": "never",
    "model_changed": "never",
    "too_large": "never",
    "unsupported_encoding": "never",
    "bad_input": "never",
    "non_finite": "never",
    "non_finite_state": "never",
    "idempotency_key_reused": "never",
    "precondition_required": "never",
    "stream_quota": "same",
    "rate_limited": "same",
    "state_corrupt": "never",
    "internal": "same",
    "overloaded": "same",
    "draining": "same",
    "store_unavailable": "same",
    "outcome_unknown": "same",
    "store_full": "same",
    "not_durable": "same",
    "model_timeout": "same",
    "record_version": "same",
}
"""Every code on the wire, and what the client may do next with the same request."""


class ServiceError(StepwellError):
    """A request that was refused or whose outcome is not known.

    Attributes:
        code: One of `CODES`.
        applied: Whether this request moved the stream. For `seq_passed` "yes" means that the
            position was applied, by whichever request.
        retry: What may be done next: send the same again, send again from `expected`, or never.
        step: The stream's step as the server has it.
        state_id: The stream's state id as the server has it, 16 bytes.
        expected: The `seq` that the server would take next.
        retry_after_s: Seconds after which the same request may succeed; None: not known.
    """

    def __init__(
        self,
        code: str,
        problem: str,
        *,
        fix: str = "",
        applied: Applied = "no",
        step: int | None = None,
        state_id: bytes | None = None,
        expected: int | None = None,
        retry: Retry | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(problem, fix=fix)
        self.code = code
        self.applied: Applied = applied
        self.retry: Retry = retry or CODES[code]
        self.step = step
        self.state_id = state_id
        self.expected = expected
        self.retry_after_s = retry_after_s


class StoreUnavailableError(ServiceError):
    """The store did not answer; nothing was applied."""

    def __init__(self, problem: str, **more: Any) -> None:
        super().__init__("store_unavailable", problem, fix="Send the same request again after a pause.", **more)


class OutcomeUnknownError(ServiceError):
    """The store did not answer after the commit was sent; it may or may not have been applied."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            "outcome_unknown",
            problem,
            fix="Send the same request again: with seq, after or Idempotency-Key it is applied at most once.",
            applied="unknown",
        )


class StoreFullError(ServiceError):
    """The store refuses to grow; nothing was written."""

    def __init__(self, problem: str) -> None:
        super().__init__("store_full", problem, fix="Delete streams or give the store more memory, then retry.")


class CorruptRecordError(ServiceError):
    """The bytes stored for a stream are not a record; they are left as they are."""

    def __init__(self, problem: str, **more: Any) -> None:
        fix = more.pop("fix", "Reset or delete this stream; other streams are not touched.")
        super().__init__("state_corrupt", problem, fix=fix, **more)


class RecordVersionError(ServiceError):
    """A record of a format version that this release cannot read; it is left as it is."""

    def __init__(self, problem: str, **more: Any) -> None:
        super().__init__("record_version", problem, fix="Wait until every replica runs the same release.", **more)


def not_a_record(which: str = "The stream's key") -> CorruptRecordError:
    """Return the error of a stream whose key holds something else than a record, or too few bytes of one.

    Args:
        which: The key, where there are several in question.
    """
    return CorruptRecordError(f"{which} holds something that is no record.")


def wrong_state_size(found: int, expected: int) -> CorruptRecordError:
    """Return the error of a stored state that is not the model's.

    Args:
        found: Bytes of the stored state.
        expected: Bytes of the model's.
    """
    return CorruptRecordError(f"The stored state has {found} bytes; the model's has {expected}.")


def state_changed(step: int, state_id: bytes, *, expected: int | None = None, retry: Retry = "never") -> ServiceError:
    """Return the refusal of an `after` that is not the stream's history.

    Args:
        step: Where the stream stands.
        state_id: Its history, 16 bytes.
        expected: The `seq` that comes next, where the request has timesteps.
        retry: `resend_from` where the store lost what the client had been answered.
    """
    return ServiceError(
        "state_changed",
        f"`after` names another history than the stream's, which stands at step {step}.",
        fix="Read the stream, then go on from its `step` and `state_id`; if it fell back, send its inputs again.",
        step=step,
        state_id=state_id,
        expected=expected,
        retry=retry,
    )


def stream_exists(step: int, state_id: bytes, why: str, *, fix: str) -> ServiceError:
    """Return the refusal of a request that begins a stream which is there already.

    Args:
        step: Where the stream stands.
        state_id: Its history, 16 bytes.
        why: What in the request asks for a new stream.
        fix: What to do instead.
    """
    problem = f"The stream exists and stands at step {step}; {why}."
    return ServiceError("stream_exists", problem, fix=fix, step=step, state_id=state_id)
