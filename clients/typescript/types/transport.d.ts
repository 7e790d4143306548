import { StepwellError } from "./errors.js";
import type { CallOptions, ClientOptions, Format, Request, Send } from "./options.js";
/** Requests and responses over HTTP, with retries. */
export declare class Transport {
    #private;
    base: string;
    /** @type {Format} */
    format: Format;
    key: string | undefined;
    timeoutMs: number;
    WebSocket: any;
    closing: AbortController;
    fetch: typeof fetch;
    /** @type {Send} */
    attempt: Send;
    /**
     * @param {string | URL} url
     * @param {ClientOptions} options
     */
    constructor(url: string | URL, options: ClientOptions);
    /** @param {CallOptions} [options] @returns {number} The time at which a call that begins now fails. */
    deadline(options?: CallOptions): number;
    /**
     * Send a request until it succeeds, fails for good, or the time is over. The same bytes are sent each time, so the
     * service recognizes a repetition by its `seq` and `after`, or by its key.
     * @param {Request} request
     * @param {number} deadline
     * @param {Send} [attempt] How one attempt is sent; over HTTP by default.
     */
    send(request: Request, deadline: number, attempt?: Send): Promise<any>;
    /**
     * @param {number} ms
     * @param {AbortSignal} [signal] Rejects with `closed` as soon as it is aborted; by default, when the client is closed.
     */
    wait(ms: number, signal?: AbortSignal): Promise<any>;
}
/** The retries of one call: growing pauses with jitter, so that clients retry at different times. */
export declare class Retries {
    deadline: number;
    failures: number;
    inDoubt: boolean;
    /** @param {number} deadline */
    constructor(deadline: number);
    /**
     * Return the milliseconds to wait before the next attempt.
     * @param {unknown} error
     * @returns {number}
     * @throws {StepwellError} The error, if it is final or the time is over.
     */
    pause(error: unknown): number;
    /**
     * Return the last error; `applied` is "unknown" instead of "no" if an earlier attempt may have been applied.
     * @param {StepwellError} error
     */
    final(error: StepwellError): StepwellError;
}
/**
 * Return a promise's result, or reject after some milliseconds.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {() => Error} late
 * @returns {Promise<T>}
 */
export declare function within<T>(promise: Promise<T>, ms: number, late: () => Error): Promise<T>;
/**
 * Return the error of an attempt without a response.
 * @param {string} url
 * @param {unknown} reason
 * @param {Request} request
 * @param {boolean} [sent] Whether the service may have received the request.
 */
export declare function noAnswer(url: string, reason: unknown, request: Request, sent?: boolean): StepwellError;
