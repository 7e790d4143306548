import type { Transport } from "./transport.js";
export type WatchOptions = {
    /**
     * Watch only this stream; by default, all streams of the model.
     */
    stream?: string;
    /**
     * Watch only streams whose id begins with it.
     */
    prefix?: string;
    /**
     * With `stream`, the last step already known; later steps are yielded first.
     */
    since?: number;
    /**
     * Include the inputs in each event.
     */
    inputs?: boolean;
    /**
     * Include what the candidate of a release computed.
     */
    candidate?: boolean;
    /**
     * Ends the watch, also while it waits for an event.
     */
    signal?: AbortSignal;
    /**
     * Called when the connection is ready, and with the milliseconds
     * until the next attempt when it is lost or could not be opened.
     *
     * A committed step or chunk; a chunk's tensors have a leading time axis.
     */
    onConnection?: (retryMs?: number) => void;
};
export type Event = {
    model: string;
    stream: string;
    step: number;
    state_id: string;
    outputs: Record<string, any>;
    inputs?: Record<string, any>;
    candidate?: {
        version: number;
        outputs: Record<string, any>;
    };
    gap?: undefined;
};
export type Gap = {
    gap: number;
};
/**
 * @param {Transport} transport
 * @param {string} model
 * @param {WatchOptions} [options]
 * @returns {AsyncGenerator<Event | Gap, void, void>}
 */
export declare function watch(transport: Transport, model: string, options?: WatchOptions): AsyncGenerator<Event | Gap, void, void>;
