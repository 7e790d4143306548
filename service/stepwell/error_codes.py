"""The one table of error codes in responses: status, title, what the client may do next, and what to do about it."""

from __future__ import annotations

from typing import Final, NamedTuple

from stepwell_client.wire.outcomes import Retry


class ErrorCode(NamedTuple):
    """A row of the table.

    Attributes:
        status: The HTTP status.
        retry: What the client may do next with the same request.
        title: What has happened, in a few words.
        advice: What to do about it, for the page that the `type` of a problem links to.
    """

    status: int
    retry: Retry
    title: str
    advice: str


# fmt: off
CODES: Final[dict[str, ErrorCode]] = {
    "bad_json": ErrorCode(400, "never", "The body cannot be read",
        "Fix the client: the body is no JSON (or msgpack), or has a key twice."),
    "bad_request": ErrorCode(400, "never", "The request is not well formed",
        "Fix the request: `detail` names the field, what was found and what was expected."),
    "unauthenticated": ErrorCode(401, "never", "No valid key",
        "Send a valid key as `Authorization: Bearer KEY`; `stepwell keys add` creates one."),
    "forbidden": ErrorCode(403, "never", "Not allowed",
        "Use a key that has the scope named in `detail`, or a page from an allowed origin."),
    "model_not_found": ErrorCode(404, "never", "No such model",
        "Check the name; `GET /v1/models` lists the models. Put a new file into the models folder, then `POST "
        "/v1/models/reload`."),
    "stream_not_found": ErrorCode(404, "never", "No such stream",
        "Begin the stream with its first timestep. If it existed before, it has expired or was lost: send its "
        "history again from the first timestep."),
    "snapshot_not_found": ErrorCode(404, "never", "No such snapshot",
        "`GET .../snapshots` lists the snapshots of the stream."),
    "version_not_found": ErrorCode(404, "never", "No such version",
        "Put the file of this version into the models folder, then `POST /v1/models/reload`."),
    "not_found": ErrorCode(404, "never", "No such route", "Check the path; `/docs` lists all routes."),
    "method_not_allowed": ErrorCode(405, "never", "Method not allowed",
        "Use one of the methods in the header `Allow`."),
    "seq_gap": ErrorCode(409, "resend_from", "Timesteps are missing in between",
        "Send the timesteps from `expected` on, then this one."),
    "seq_passed": ErrorCode(409, "never", "This position was applied before",
        "Nothing: this position was applied before. Go on with the next timestep."),
    "seq_conflict": ErrorCode(409, "never", "This position was taken by another request",
        "Read the stream, then decide which of the two inputs is right. Let only one writer step a stream."),
    "source_passed": ErrorCode(409, "never", "This position of the source was applied before",
        "Nothing: these timesteps were applied before. Continue after `at`."),
    "state_changed": ErrorCode(409, "never", "The stream has another history",
        "Read the stream, then decide again: another writer has moved it, or the store was rolled back."),
    "stream_exists": ErrorCode(409, "never", "The stream exists",
        "Use another id, or leave `create` out to continue the stream."),
    "model_changed": ErrorCode(409, "never", "The stream belongs to another model version",
        "Leave `version` out. If the request has none, `detail` names the missing model, and what to do."),
    "release_changed": ErrorCode(409, "never", "The release was changed by another request",
        "Read the release, then decide again."),
    "release_refused": ErrorCode(409, "never", "The release does not allow this",
        "`detail` has what does not fit: another candidate, its tensors, or its states."),
    "too_large": ErrorCode(413, "never", "Too large", "Send it in parts; `GET /v1/info` shows the limits."),
    "unsupported_encoding": ErrorCode(415, "never", "The body's encoding is not supported",
        "Send the body without `Content-Encoding`."),
    "bad_input": ErrorCode(422, "never", "An input does not fit the model",
        "Send the inputs as `GET /v1/models/{model}` describes them; `detail` names the input."),
    "bad_release": ErrorCode(422, "never", "The release is not well formed", "Fix the fields that `detail` names."),
    "non_finite": ErrorCode(422, "never", "An input is not finite",
        "Leave the timestep out, or replace NaN and infinity by numbers."),
    "non_finite_state": ErrorCode(422, "never", "The new state is not finite",
        "Check this timestep's values: the model returned NaN or infinity for them. The stream is unchanged."),
    "idempotency_key_reused": ErrorCode(422, "never", "The key was used for another request",
        "Use a new key for each request, and the same key only for its retries."),
    "precondition_required": ErrorCode(428, "never", "A precondition is required",
        "Add `after` or the header `Idempotency-Key`."),
    "stream_quota": ErrorCode(429, "same", "Too many streams",
        "Delete streams (or snapshots), or wait until idle ones expire."),
    "rate_limited": ErrorCode(429, "same", "Too many requests", "Send the same request again after `Retry-After`."),
    "state_corrupt": ErrorCode(500, "never", "The stored state cannot be read",
        "Reset or delete the stream; others are not affected."),
    "internal": ErrorCode(500, "same", "Internal error",
        "Send the same request again. The reason is in the service's log."),
    "overloaded": ErrorCode(503, "same", "The service is overloaded",
        "Send the same request again after `Retry-After`. If it stays so, add replicas."),
    "draining": ErrorCode(503, "same", "This process is about to end",
        "Send the same request again; another process accepts it."),
    "store_unavailable": ErrorCode(503, "same", "The store is unavailable",
        "Send the same request again. If it stays so, check the store."),
    "outcome_unknown": ErrorCode(503, "same", "The outcome is unknown",
        "Send the identical request again: with `seq`, `after` or `Idempotency-Key` it is applied at most once."),
    "store_full": ErrorCode(503, "same", "The store is full",
        "Delete streams or give the store more memory, then retry."),
    "not_durable": ErrorCode(503, "same", "The step is not as durable as promised",
        "Send the same request again: it is not applied twice."),
    "model_timeout": ErrorCode(503, "same", "The model took too long",
        "Send the same request again. If it stays so, raise `run_timeout_s` or use a smaller model."),
    "record_version": ErrorCode(503, "same", "The state was written by another release",
        "Finish the upgrade: a newer release wrote this state."),
}
# fmt: on
