import { StepwellError } from "./errors.js";
import { Feed } from "./feed.js";
import { Transport } from "./transport.js";
import type { CallOptions, ClientOptions, Request } from "./options.js";
import type { Inputs, Source } from "./inputs.js";
import type { Event, Gap, WatchOptions } from "./events.js";
import type { ModelDescription, NewSnapshotResponse, PeekResponse, PositionResponse, RolloutBody, RolloutResponse, ServiceResponse, StatusResponse, StepResponse, StepsBody } from "./api.js";
/** @import { CallOptions, ClientOptions, Request, Send } from "./options.js" */
/** @import { Inputs, Source } from "./inputs.js" */
/** @import { Event, Gap, WatchOptions } from "./events.js" */
/**
 * @import { ForkResponse, ModelDescription, NewSnapshotResponse, PeekResponse, PositionResponse, RolloutBody, RolloutResponse,
 *   ServiceResponse, StatusResponse, StepResponse, StepsBody } from "./api.js"
 */
/** A connection to a service, in browsers and Node. */
export declare class Client {
    transport: Transport;
    keepStreams: number;
    /**
     * Create the client; nothing is sent yet.
     * @param {string | URL} url The service's address, `http://HOST:PORT`.
     * @param {ClientOptions} [options]
     * @throws {StepwellError} `bad_url`.
     */
    constructor(url: string | URL, options?: ClientOptions);
    /**
     * Return a model by name. The returned object holds the positions of its streams, so two objects of one model are two
     * independent writers.
     * @param {string} name
     */
    model(name: string): Model;
    /**
     * Return the service's version, durability and limits.
     * @param {CallOptions} [options]
     * @returns {Promise<ServiceResponse>}
     */
    info(options?: CallOptions): Promise<ServiceResponse>;
    /**
     * Send any request of the HTTP API, with the client's retries, and return the response's document. A request that
     * changes a stream needs `seq` or `after` in its body, or a `key`: else a retry may be applied twice.
     * @param {Request} request
     * @param {CallOptions} [options]
     * @returns {Promise<any>}
     */
    request(request: Request, options?: CallOptions): Promise<any>;
    /** Close all connections, including those of feeds and active watches; calls that wait fail with `closed`. */
    close(): void;
}
/** A model of a service, with the positions of its streams. Use `Client.model`. */
export declare class Model {
    #private;
    client: Client;
    name: string;
    path: string;
    /**
     * @param {Client} client
     * @param {string} name
     */
    constructor(client: Client, name: string);
    /**
     * Return the handle of a stream; the same id returns the same handle.
     * @param {string} id
     * @throws {StepwellError} `bad_request`: the id is not a valid stream id.
     */
    stream(id: string): Stream;
    /**
     * Return the model's description: its inputs, outputs and states.
     * @param {CallOptions} [options]
     * @returns {Promise<ModelDescription>}
     */
    describe(options?: CallOptions): Promise<ModelDescription>;
    /**
     * Step many streams by one timestep each, in one request. Return a response per stream, or its error; a failed stream
     * does not affect the others.
     * @param {{ readonly [stream: string]: Inputs }} inputs By stream id.
     * @param {CallOptions} [options]
     * @returns {Promise<Record<string, StepResponse | StepwellError>>}
     * @throws {StepwellError} The whole request failed: no stream was stepped, or the outcome of all is unknown.
     */
    stepMany(inputs: {
        readonly [stream: string]: Inputs;
    }, options?: CallOptions): Promise<Record<string, StepResponse | StepwellError>>;
    /** Open a live feed: steps of many streams over one WebSocket. */
    feed(): Feed;
    /**
     * Yield predictions as they are committed, from any sender, until the client is closed, the loop is left, or `signal`
     * is aborted. A lost connection is opened again. A watch of one stream then continues after the last event that it
     * yielded; steps that the service no longer keeps are reported as a gap. A watch of several streams reports each
     * reconnection as a gap.
     * @param {WatchOptions} [options]
     * @returns {AsyncGenerator<Event | Gap, void, void>}
     * @throws {StepwellError} The service rejected the watch.
     */
    watch(options?: WatchOptions): AsyncGenerator<Event | Gap, void, void>;
}
/**
 * A stream's handle, which keeps the stream's position and sends it with each step. Use `Model.stream`.
 *
 * The first call reads the position from the service; later calls use the handle's own last result. If another writer
 * changes the stream, the next call fails with `state_changed`, and `resume` reads the position again. After an error
 * with `applied: "unknown"`, repeat the same call: it is applied at most once. Calls of one stream are sent in the
 * order in which they were made, each after the response to the one before.
 */
export declare class Stream {
    #private;
    model: Model;
    id: string;
    path: string;
    /** Whether the service may have applied a step whose response did not arrive. */
    inDoubt: boolean;
    /**
     * @param {Model} model
     * @param {string} id
     */
    constructor(model: Model, id: string);
    /**
     * Step the stream by one timestep and return the response, with the prediction in `outputs`.
     *
     * With a `source`, the timestep is identified by its position in that log, instead of the handle's position: if it is
     * at or before the newest one that was applied, it is not applied again, however long ago that was. The response then
     * has `skipped`, and `null` for outputs that are not known any more.
     * @param {Inputs} inputs
     * @param {CallOptions & { source?: Source }} [options]
     * @returns {Promise<StepResponse>}
     * @throws {StepwellError} `source_passed`: it was applied before, and its prediction is not known any more.
     */
    step(inputs: Inputs, options?: CallOptions & {
        source?: Source;
    }): Promise<StepResponse>;
    /**
     * Step the stream by a chunk of timesteps; all are applied, or none.
     * @param {Inputs} inputs With a leading time axis.
     * @param {CallOptions & Pick<StepsBody, "return" | "create"> & { source?: Source }} [options] `return`: `all`
     *   predictions, `last`, or `none`; `create`: `must` fails if the stream exists, `never` if it does not; `source`: as
     *   for `step`, with a position for each timestep.
     * @returns {Promise<StepResponse>}
     */
    steps(inputs: Inputs, options?: CallOptions & Pick<StepsBody, "return" | "create"> & {
        source?: Source;
    }): Promise<StepResponse>;
    /**
     * Return the result that a step would have from the current state; nothing is committed.
     * @param {Inputs} inputs
     * @param {CallOptions & { chunk?: boolean }} [options] `chunk`: the inputs have a leading time axis.
     * @returns {Promise<PeekResponse>}
     */
    peek(inputs: Inputs, options?: CallOptions & {
        chunk?: boolean;
    }): Promise<PeekResponse>;
    /**
     * Run the stream by its own predictions and return them; with `commit` the predicted timesteps are committed.
     * @param {number} horizon Timesteps to predict.
     * @param {CallOptions & Omit<RolloutBody, "horizon" | "inputs" | "seq" | "after"> & { inputs?: Inputs }} [options]
     *   `inputs`: the first input; by default it is computed from the stream's last prediction.
     * @returns {Promise<RolloutResponse>}
     */
    rollout(horizon: number, options?: CallOptions & Omit<RolloutBody, "horizon" | "inputs" | "seq" | "after"> & {
        inputs?: Inputs;
    }): Promise<RolloutResponse>;
    /**
     * Create another stream as a copy of this one, or of a snapshot of it, and return its handle.
     * @param {string} to
     * @param {CallOptions & { snapshot?: string }} [options]
     */
    fork(to: string, options?: CallOptions & {
        snapshot?: string;
    }): Promise<Stream>;
    /**
     * Reset the stream to its initial state or to a snapshot, if its position is still the handle's.
     * @param {CallOptions & { to?: string }} [options] `to`: the snapshot's name.
     * @returns {Promise<PositionResponse>}
     */
    reset(options?: CallOptions & {
        to?: string;
    }): Promise<PositionResponse>;
    /**
     * Save a named copy of the stream's state, in the place of an earlier one of that name; `reset` can return to it.
     * @param {string} name
     * @param {CallOptions} [options]
     * @returns {Promise<NewSnapshotResponse>}
     */
    takeSnapshot(name: string, options?: CallOptions): Promise<NewSnapshotResponse>;
    /**
     * Return the stream's position and times. The handle keeps its own position; `resume` replaces it.
     * @param {CallOptions} [options]
     * @returns {Promise<StatusResponse>}
     * @throws {StepwellError} `stream_not_found`, or as for `step`.
     */
    status(options?: CallOptions): Promise<StatusResponse>;
    /**
     * Read the stream's position from the service, continue from it, and return the step; 0 without a stream.
     * @param {CallOptions} [options]
     */
    resume(options?: CallOptions): Promise<number>;
    /**
     * Delete the stream, whatever its position; the next step creates a new one.
     * @param {CallOptions} [options]
     * @returns {Promise<void>}
     */
    delete(options?: CallOptions): Promise<void>;
    /**
     * Yield the stream's predictions; as `Model.watch`.
     * @param {Omit<WatchOptions, "stream" | "prefix">} [options]
     */
    watch(options?: Omit<WatchOptions, "stream" | "prefix">): AsyncGenerator<Event | Gap, void, void>;
}
/** Return an `Idempotency-Key`: it has to be unique, not secret, and `crypto.randomUUID` exists only on https pages. */
export declare function newKey(): string;
