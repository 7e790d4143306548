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
     *
     * A committed step or chunk; a chunk's tensors have a leading time axis.
     */
    inputs?: boolean;
};
export type Event = {
    model: string;
    stream: string;
    step: number;
    state_id: string;
    outputs: Record<string, any>;
    inputs?: Record<string, any>;
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
export declare function watch(transport: Transport, model: string, { stream, prefix, since, inputs }?: WatchOptions): AsyncGenerator<Event | Gap, void, void>;
