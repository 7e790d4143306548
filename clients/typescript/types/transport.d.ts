import { StepwellError } from "./errors.js";
import type { CallOptions, ClientOptions, Format, Limits, Request, Send } from "./options.js";
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
    /**
     * @param {string | URL} url
     * @param {ClientOptions} options
     */
    constructor(url: string | URL, options: ClientOptions);
    /** @param {CallOptions} [options] @returns {Limits} The limits of a call that begins now. */
    limits(options?: CallOptions): Limits;
    /**
     * Send a request until it succeeds, fails for good, or is at its limits. The service recognizes a repetition by its
     * `seq` and `after`, or by its key.
     * @param {Request} request
     * @param {Limits} limits
     * @param {Send} [attempt] How one attempt is sent; over HTTP by default.
     * @param {Retries} [retries]
     */
    send(request: Request, { deadline, signal }: Limits, attempt?: Send, retries?: Retries): Promise<any>;
    /** Wait; reject as soon as the call is over. @param {number} ms @param {AbortSignal} [signal] */
    wait(ms: number, signal?: AbortSignal): Promise<any>;
    /** As `onAbort`, also when the client is closed. @param {AbortSignal | undefined} signal @param {() => void} act */
    onEnd(signal: AbortSignal | undefined, act: () => void): () => void;
    /** @param {Request} request @param {number} timeoutMs @param {AbortSignal} [signal] */
    attempt(request: Request, timeoutMs: number, signal?: AbortSignal): Promise<any>;
    /**
     * Send a request and yield the events of its response. It is sent again until there is a first event.
     * @param {Request} request
     * @param {Limits} limits
     * @returns {AsyncGenerator<{ event: string, data: any }, void, void>}
     * @throws {StepwellError} Also for the event `problem`.
     */
    events(request: Request, { deadline, signal }: Limits): AsyncGenerator<{
        event: string;
        data: any;
    }, void, void>;
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
 * Run an action as soon as a signal is aborted. A signal has one listener for all actions: Node warns of more than ten.
 * @param {AbortSignal | undefined} signal
 * @param {() => void} act
 * @returns {() => void} Leaves it undone.
 */
export declare function onAbort(signal: AbortSignal | undefined, act: () => void): () => void;
/**
 * Return a promise's result, or reject after some milliseconds or when a signal is aborted.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {() => Error} late
 * @param {AbortSignal} [signal]
 * @param {"no" | "unknown"} [applied] Of a call that is aborted meanwhile.
 * @returns {Promise<T>}
 */
export declare function within<T>(promise: Promise<T>, ms: number, late: () => Error, signal?: AbortSignal, applied?: "no" | "unknown"): Promise<T>;
/**
 * Return the error of an attempt without a response.
 * @param {string} url
 * @param {unknown} reason
 * @param {Request} request
 * @param {boolean} [sent] Whether the service may have received the request.
 */
export declare function noAnswer(url: string, reason: unknown, request: Request, sent?: boolean): StepwellError;
