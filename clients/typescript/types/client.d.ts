import { StepwellError } from "./errors.js";
import { Feed } from "./feed.js";
import { Transport } from "./transport.js";
import type { CallOptions, ClientOptions, Request } from "./options.js";
import type { Inputs, InputsByStream, Source } from "./inputs.js";
import type { RolloutTimestep, StepResults } from "./results.js";
import type { Event, Gap, WatchOptions } from "./events.js";
import type { ModelDescription, NewSnapshotResponse, PackedStateResponse, PeekResponse, PositionResponse, RolloutBody, RolloutResponse, ServiceResponse, SnapshotEntry, StateBody, StateResponse, StatusResponse, StepResponse, StepsBody } from "./api.js";
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
     * Step many streams by one timestep each, in a request or two. Return a response per stream, or its error; a failed
     * stream does not affect the others.
     * @param {InputsByStream} inputs By stream id.
     * @param {CallOptions} [options]
     * @returns {Promise<StepResults>}
     * @throws {StepwellError} No stream was stepped, or the outcome is unknown.
     */
    stepMany(inputs: InputsByStream, options?: CallOptions): Promise<StepResults>;
    /**
     * Run one timestep whose state is in the call; the service stores nothing.
     * @param {Inputs} inputs
     * @param {string | null} [state] The packed state of an earlier response, or of `Stream.packedState`; null, the default,
     *   is the model's initial state.
     * @param {CallOptions} [options]
     * @returns {Promise<{ outputs: any, state: string }>}
     */
    run(inputs: Inputs, state?: string | null, options?: CallOptions): Promise<{
        outputs: any;
        state: string;
    }>;
    /**
     * Run one timestep of each of several states, in one request. Return a response per state, or its error.
     * @param {Inputs} inputs With a leading axis for the states.
     * @param {(string | null)[]} states
     * @param {CallOptions} [options]
     * @returns {Promise<({ outputs: any, state: string } | StepwellError)[]>}
     */
    runMany(inputs: Inputs, states: (string | null)[], options?: CallOptions): Promise<({
        outputs: any;
        state: string;
    } | StepwellError)[]>;
    /** Open a live feed: steps of many streams over one WebSocket. */
    feed(): Feed;
    /**
     * Yield predictions as they are committed, from any sender, until the client is closed, the loop is left, or `signal`
     * is aborted. A lost connection is opened again.
     * @param {WatchOptions} [options]
     * @returns {AsyncGenerator<Event | Gap, void, void>}
     * @throws {StepwellError} The service rejected the watch.
     */
    watch(options?: WatchOptions): AsyncGenerator<Event | Gap, void, void>;
}
/**
 * A stream's handle, which keeps the stream's position and sends it with each step. Use `Model.stream`.
 *
 * The first call reads the position from the service. If another writer changes the stream, the next call fails with
 * `state_changed`, and `resume` reads the position again. After an error with `applied: "unknown"`, repeat the same call:
 * it is applied at most once. Calls of one stream are sent in their order, each after the response to the one before.
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
     * @param {Inputs} inputs
     * @param {CallOptions & { source?: Source }} [options]
     * @returns {Promise<StepResponse>}
     */
    step(inputs: Inputs, options?: CallOptions & {
        source?: Source;
    }): Promise<StepResponse>;
    /**
     * Step the stream by a chunk of timesteps; all are applied, or none.
     * @param {Inputs} inputs With a leading time axis.
     * @param {CallOptions & Pick<StepsBody, "return" | "create"> & { source?: Source }} [options]
     * @returns {Promise<StepResponse>}
     */
    steps(inputs: Inputs, options?: CallOptions & Pick<StepsBody, "return" | "create"> & {
        source?: Source;
    }): Promise<StepResponse>;
    /**
     * Feed the stream past timesteps; no predictions are returned.
     * @param {Inputs} inputs With a leading time axis.
     * @param {CallOptions} [options]
     * @returns {Promise<StepResponse>}
     */
    prime(inputs: Inputs, options?: CallOptions): Promise<StepResponse>;
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
     * Run the stream by its own predictions, and yield each timestep as it is made; leaving the loop ends the run. With
     * `commit`, all timesteps are committed before the first is yielded.
     * @param {number} horizon Timesteps to predict.
     * @param {Parameters<Stream["rollout"]>[1]} [options] As for `rollout`.
     * @returns {AsyncGenerator<RolloutTimestep, void, void>}
     */
    rolloutTimesteps(horizon: number, options?: Parameters<Stream["rollout"]>[1]): AsyncGenerator<RolloutTimestep, void, void>;
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
     * List the stream's snapshots.
     * @param {CallOptions} [options]
     * @returns {Promise<SnapshotEntry[]>}
     */
    snapshots(options?: CallOptions): Promise<SnapshotEntry[]>;
    /**
     * Save a named copy of the stream's state, in place of an earlier one of that name; `reset` returns to it.
     * @param {string} name
     * @param {CallOptions} [options]
     * @returns {Promise<NewSnapshotResponse>}
     */
    takeSnapshot(name: string, options?: CallOptions): Promise<NewSnapshotResponse>;
    /**
     * Delete a snapshot.
     * @param {string} name
     * @param {CallOptions} [options]
     * @returns {Promise<void>}
     */
    forgetSnapshot(name: string, options?: CallOptions): Promise<void>;
    /**
     * Return the stream's state.
     * @param {CallOptions} [options]
     * @returns {Promise<StateResponse>}
     */
    state(options?: CallOptions): Promise<StateResponse>;
    /**
     * Return the stream's state as one text, for `putState`, for `Model.run`, or for a model on a device.
     * @param {CallOptions} [options]
     * @returns {Promise<PackedStateResponse>}
     */
    packedState(options?: CallOptions): Promise<PackedStateResponse>;
    /**
     * Replace the stream's state, and continue from it.
     * @param {Pick<StateBody, "states" | "state" | "step" | "fingerprint">} state As `state` or `packedState` returns it.
     * @param {CallOptions} [options]
     * @returns {Promise<PositionResponse>}
     */
    putState(state: Pick<StateBody, "states" | "state" | "step" | "fingerprint">, options?: CallOptions): Promise<PositionResponse>;
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
