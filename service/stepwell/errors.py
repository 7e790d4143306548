"""Errors of requests and of the store: codes and messages, independent of HTTP.

StepwellError (stepwell_export.runtime.errors)    code, problem, fix
├── SettingsError                      a setting, a flag or a key of a configuration file
└── ServiceError                       also applied, retry, step, state_id, expected, at
    ├── StoreUnavailableError          the store did not reply, and the commit was certainly not sent
    ├── OutcomeUnknownError            the store did not reply after the commit was sent
    ├── StoreFullError                 the store is at its memory limit; nothing was written
    ├── CorruptRecordError             the value of the stream's key is not a record of ours
    └── RecordVersionError             a record of another format version
"""

from __future__ import annotations

from typing import Any

from stepwell.error_codes import CODES
from stepwell_client.wire.outcomes import Applied, Retry
from stepwell_export.runtime.errors import StepwellError


class SettingsError(StepwellError):
    """A setting, a flag or a key of a configuration file has an invalid value."""

    code = "bad_setting"


class ServiceError(StepwellError):
    """A request that was rejected, or whose outcome is unknown.

    Attributes:
        code: One of `stepwell.error_codes.CODES`.
        applied: Whether this request was applied to the stream. For `seq_passed`, "yes" means that the position was
            applied, by this or another request.
        retry: What the client may do: send the same request again, resend from `expected`, or never retry.
        step: The stream's step in the store.
        state_id: The stream's state id in the store, 16 bytes.
        expected: The next `seq` of the stream.
        at: The stream's position of the request's source.
        revision: The revision of the model's release document.
        retry_after_s: Seconds after which the same request may succeed; None: unknown.
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
        at: int | None = None,
        revision: int | None = None,
        retry: Retry | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(problem, fix=fix)
        self.code = code
        self.applied: Applied = applied
        self.retry: Retry = retry or CODES[code].retry
        self.step = step
        self.state_id = state_id
        self.expected = expected
        self.at = at
        self.revision = revision
        self.retry_after_s = retry_after_s


class StoreUnavailableError(ServiceError):
    """The store did not reply; nothing was applied."""

    def __init__(self, problem: str, **more: Any) -> None:
        super().__init__("store_unavailable", problem, fix="Send the same request again after a pause.", **more)


class OutcomeUnknownError(ServiceError):
    """The store did not reply after the commit was sent; it may or may not have been applied."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            "outcome_unknown",
            problem,
            fix="Send the same request again: with seq, after or Idempotency-Key it is applied at most once.",
            applied="unknown",
        )


class StoreFullError(ServiceError):
    """The store is at its memory limit; nothing was written."""

    def __init__(self, problem: str) -> None:
        super().__init__("store_full", problem, fix="Delete streams or give the store more memory, then retry.")


class CorruptRecordError(ServiceError):
    """The stored value of a stream is not a record; it is left unchanged."""

    def __init__(self, problem: str, **more: Any) -> None:
        fix = more.pop("fix", "Reset or delete this stream; other streams are not touched.")
        super().__init__("state_corrupt", problem, fix=fix, **more)


class RecordVersionError(ServiceError):
    """A record of a format version that this release cannot decode; it is left unchanged."""

    def __init__(self, problem: str, **more: Any) -> None:
        super().__init__("record_version", problem, fix="Wait until every replica runs the same release.", **more)


def not_a_record(which: str = "The stream's key") -> CorruptRecordError:
    """Return the error for a stream whose key holds a value that is not a record, or a truncated one.

    Args:
        which: The key, if the request concerns several.
    """
    return CorruptRecordError(f"{which} holds a value that is not a record.")


def wrong_state_size(found: int, expected: int) -> CorruptRecordError:
    """Return the error for a stored state whose size is not that of the model's.

    Args:
        found: Bytes of the stored state.
        expected: Bytes of the model's state.
    """
    return CorruptRecordError(f"The stored state has {found} bytes; the model's state has {expected}.")


def state_changed(step: int, state_id: bytes, *, expected: int | None = None, retry: Retry = "never") -> ServiceError:
    """Return the error for an `after` that is not the stream's state id.

    Args:
        step: The stream's step.
        state_id: The stream's state id, 16 bytes.
        expected: The next `seq`, if the request has timesteps.
        retry: `resend_from` if the store has lost commits that it had confirmed to the client.
    """
    return ServiceError(
        "state_changed",
        f"`after` is not the state id of the stream, which is at step {step}.",
        fix="Read the stream, then continue from its `step` and `state_id`; if the store lost steps, resend their "
        "inputs.",
        step=step,
        state_id=state_id,
        expected=expected,
        retry=retry,
    )


def stream_exists(step: int, state_id: bytes, reason: str, *, fix: str) -> ServiceError:
    """Return the error for a request that creates a stream which exists already.

    Args:
        step: The stream's step.
        state_id: The stream's state id, 16 bytes.
        reason: The field of the request that requires a new stream.
        fix: What to do instead.
    """
    problem = f"The stream exists and is at step {step}; {reason}."
    return ServiceError("stream_exists", problem, fix=fix, step=step, state_id=state_id)
