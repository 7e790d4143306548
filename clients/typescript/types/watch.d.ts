import type { Event, Gap, WatchOptions } from "./events.js";
import type { Transport } from "./transport.js";
/**
 * @param {Transport} transport
 * @param {string} model
 * @param {WatchOptions} [options]
 * @returns {AsyncGenerator<Event | Gap, void, void>}
 */
export declare function watch(transport: Transport, model: string, options?: WatchOptions): AsyncGenerator<Event | Gap, void, void>;
