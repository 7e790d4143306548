import type { Model } from "./client.js";
import type { Inputs, Source } from "./inputs.js";
import type { CallOptions } from "./options.js";
import type { StepResponse } from "./api.js";
/**
 * A live feed of one model. Use `Model.feed`.
 *
 * Steps of different streams are in flight at the same time. Steps of one stream are sent one after the other, in the
 * order of the calls. If the connection is lost, pending steps are sent again over the next one, with the same `seq`;
 * while no WebSocket can be opened, over HTTP.
 */
export declare class Feed {
    #private;
    model: Model;
    transport: import("./transport.js").Transport;
    /** @param {Model} model */
    constructor(model: Model);
    /**
     * Step a stream by one timestep and return the response, with the prediction in `outputs`.
     * @param {string} stream
     * @param {Inputs} inputs
     * @param {CallOptions & { source?: Source }} [options] `source`: as for `Stream.step`.
     * @returns {Promise<StepResponse>}
     */
    step(stream: string, inputs: Inputs, options?: CallOptions & {
        source?: Source;
    }): Promise<StepResponse>;
    /** The number of steps without a response yet, sent or not. */
    get waiting(): number;
    /** Close the connection; pending steps fail with `closed`. */
    close(): void;
}
