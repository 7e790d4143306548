"""What to do about each error code, for the page that the `type` of a problem links to."""

from __future__ import annotations

ADVICE: dict[str, str] = {
    "bad_json": "Fix the client: the body is no JSON (or msgpack), or has a key twice.",
    "bad_request": "Fix the request: `detail` names the field, what was found and what was expected.",
    "unauthenticated": "Send a valid key as `Authorization: Bearer KEY`; `stepwell keys add` creates one.",
    "forbidden": "Use a key that has the scope named in `detail`, or a page from an allowed origin.",
    "model_not_found": "Check the name; `GET /v1/models` lists the models. Put a new file into the models folder, "
    "then `POST /v1/models/reload`.",
    "stream_not_found": "Begin the stream with its first timestep. If it existed before, it has expired or was lost: "
    "send its history again from the first timestep.",
    "snapshot_not_found": "`GET .../snapshots` lists the snapshots of the stream.",
    "version_not_found": "Put the file of this version into the models folder, then `POST /v1/models/reload`.",
    "not_found": "Check the path; `/docs` lists all routes.",
    "method_not_allowed": "Use one of the methods in the header `Allow`.",
    "seq_gap": "Send the timesteps from `expected` on, then this one.",
    "seq_passed": "Nothing: this position was applied before. Go on with the next timestep.",
    "seq_conflict": "Read the stream, then decide which of the two inputs is right. Let only one writer step a stream.",
    "source_passed": "Nothing: these timesteps were applied before. Continue after `at`.",
    "state_changed": "Read the stream, then decide again: another writer has moved it, or the store was rolled back.",
    "stream_exists": "Use another id, or leave `create` out to continue the stream.",
    "model_changed": "Leave `version` out. If the request has none, `detail` names the missing model, and what to do.",
    "release_changed": "Read the release, then decide again.",
    "release_refused": "`detail` has what does not fit: another candidate, its tensors, or its states.",
    "too_large": "Send it in parts; `GET /v1/info` shows the limits.",
    "unsupported_encoding": "Send the body without `Content-Encoding`.",
    "bad_input": "Send the inputs as `GET /v1/models/{model}` describes them; `detail` names the input.",
    "bad_release": "Fix the fields that `detail` names.",
    "non_finite": "Leave the timestep out, or replace NaN and infinity by numbers.",
    "non_finite_state": "Check this timestep's values: the model returned NaN or infinity for them. The stream is "
    "unchanged.",
    "idempotency_key_reused": "Use a new key for each request, and the same key only for its retries.",
    "precondition_required": "Add `after` or the header `Idempotency-Key`.",
    "stream_quota": "Delete streams (or snapshots), or wait until idle ones expire.",
    "rate_limited": "Send the same request again after `Retry-After`.",
    "state_corrupt": "Reset or delete the stream; others are not affected.",
    "internal": "Send the same request again. The reason is in the service's log.",
    "overloaded": "Send the same request again after `Retry-After`. If it stays so, add replicas.",
    "draining": "Send the same request again; another process accepts it.",
    "store_unavailable": "Send the same request again. If it stays so, check the store.",
    "outcome_unknown": "Send the identical request again: with `seq`, `after` or `Idempotency-Key` it is applied at "
    "most once.",
    "store_full": "Delete streams or give the store more memory, then retry.",
    "not_durable": "Send the same request again: it is not applied twice.",
    "model_timeout": "Send the same request again. If it stays so, raise `run_timeout_s` or use a smaller model.",
    "record_version": "Finish the upgrade: a newer release wrote this state.",
}
