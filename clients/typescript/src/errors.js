/** @import { Problem } from "./api.js" */

/** A call that was rejected, that got no response in time, or whose outcome is unknown. */
export class StepwellError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{ applied?: "no" | "yes" | "unknown", retry?: "same" | "resend_from" | "never", status?: number,
   *   step?: number, expected?: number, state_id?: string, retryAfterMs?: number, cause?: unknown }} [more]
   */
  constructor(code, message, more = {}) {
    super(message, { cause: more.cause });
    this.name = "StepwellError";
    /**
     * One of the service's codes, or of the client's own: `no_answer`, `unreadable_answer`, `aborted`,
     * `closed`, `bad_url`, `no_websocket`.
     */
    this.code = code;
    /** Whether the call, or one of its retries, changed the stream; "unknown" if any attempt may have. */
    this.applied = more.applied ?? "no";
    /** What can be done next: repeat the same call, resend the inputs from `expected`, or nothing. */
    this.retry = more.retry ?? "never";
    /** The HTTP status, if a response arrived. */
    this.status = more.status;
    /** The stream's step, if the service reported it. */
    this.step = more.step;
    /** The next `seq` that the service accepts, if it reported it. */
    this.expected = more.expected;
    /** The stream's state id, if the service reported it. */
    this.state_id = more.state_id;
    /** Milliseconds to wait before a retry, if the service reported them. */
    this.retryAfterMs = more.retryAfterMs;
  }
}

/**
 * Return a problem document as an error.
 * @param {Problem} problem
 * @param {number} [retryAfterMs]
 */
export function problemError(problem, retryAfterMs) {
  return new StepwellError(problem.code, problem.detail, { ...problem, retryAfterMs });
}

/** @param {AbortSignal} [signal] @param {"no" | "unknown"} [applied] */
export function abortedError(signal, applied) {
  const message = "The call was aborted by its signal. Repeat the same call: it is applied at most once.";
  return new StepwellError("aborted", message, { applied, retry: "same", cause: signal?.reason });
}

/** Return the error of a call on a client or feed that was closed before or during the call. */
export function closedError() {
  return new StepwellError(
    "closed",
    "The client or the feed was closed. Create another one and repeat the call: a step is applied at most once.",
    { applied: "unknown", retry: "same" },
  );
}
