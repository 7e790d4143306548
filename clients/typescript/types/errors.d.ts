/** @import { Problem } from "./api.js" */
import type { Problem } from "./api.js";
/** A call that was rejected, that got no response in time, or whose outcome is unknown. */
export declare class StepwellError extends Error {
    /**
     * One of the service's codes, or of the client's own: `no_answer`, `unreadable_answer`, `aborted`,
     * `closed`, `bad_url`, `no_websocket`.
     */
    code: string;
    /** Whether the call, or one of its retries, changed the stream; "unknown" if any attempt may have. */
    applied: "no" | "unknown" | "yes";
    /** What can be done next: repeat the same call, resend the inputs from `expected`, or nothing. */
    retry: "never" | "resend_from" | "same";
    /** The HTTP status, if a response arrived. */
    status: number | undefined;
    /** The stream's step, if the service reported it. */
    step: number | undefined;
    /** The next `seq` that the service accepts, if it reported it. */
    expected: number | undefined;
    /** The stream's state id, if the service reported it. */
    state_id: string | undefined;
    /** Milliseconds to wait before a retry, if the service reported them. */
    retryAfterMs: number | undefined;
    /**
     * @param {string} code
     * @param {string} message
     * @param {{ applied?: "no" | "yes" | "unknown", retry?: "same" | "resend_from" | "never", status?: number,
     *   step?: number, expected?: number, state_id?: string, retryAfterMs?: number, cause?: unknown }} [more]
     */
    constructor(code: string, message: string, more?: {
        applied?: "no" | "yes" | "unknown";
        retry?: "same" | "resend_from" | "never";
        status?: number;
        step?: number;
        expected?: number;
        state_id?: string;
        retryAfterMs?: number;
        cause?: unknown;
    });
}
/**
 * Return a problem document as an error.
 * @param {Problem} problem
 * @param {number} [retryAfterMs]
 */
export declare function problemError(problem: Problem, retryAfterMs?: number): StepwellError;
/** @param {AbortSignal} [signal] @param {"no" | "unknown"} [applied] */
export declare function abortedError(signal?: AbortSignal, applied?: "no" | "unknown"): StepwellError;
/** Return the error of a call on a client or feed that was closed before or during the call. */
export declare function closedError(): StepwellError;
