import type { Inputs } from "./inputs.js";
import type { Manifest, TensorSpec } from "./manifest.js";
export type PackedState = {
    state: string;
    step: number;
};
export type LocalResult = {
    outputs: any;
    step: number;
};
export type States = any[];
/** A model file on onnxruntime. Its streams run one timestep at a time. */
export declare class LocalModel {
    #private;
    /** The file's manifest, with labels, units and latency. */
    manifest: Manifest;
    /** 8 bytes that identify graph, weights and state schema; a packed state has them. */
    fingerprint: Uint8Array<ArrayBufferLike>;
    inputs: TensorSpec[];
    outputs: TensorSpec[];
    /**
     * Load a model file.
     * @param {string | URL | Uint8Array | ArrayBuffer} source Its URL, or its bytes.
     * @param {{ ort: any, manifest?: Manifest, session?: object }} options `ort`: onnxruntime-web or onnxruntime-node;
     *   `manifest`: in place of the one in the file; `session`: options of onnxruntime's session.
     * @throws {StepwellError} `bad_manifest`: the file has no manifest; `not_found`: there is no file.
     */
    static load(source: string | URL | Uint8Array | ArrayBuffer, { ort, manifest, session }: {
        ort: any;
        manifest?: Manifest;
        session?: object;
    }): Promise<LocalModel>;
    /**
     * Return a new stream.
     * @param {PackedState | string | null} [initial] The packed state from which it goes on; by default the model's initial
     *   state.
     * @throws {StepwellError} `bad_request`: it is no packed state; `model_changed`: another model wrote it;
     *   `non_finite_state`.
     */
    stream(initial?: PackedState | string | null): LocalStream;
}
/** A stream of a `LocalModel`. Calls are made in their order; one that fails leaves the state as it was. */
export declare class LocalStream {
    #private;
    model: LocalModel;
    /**
     * Return a stream that goes on from the state of a service's stream, which stays as it is.
     * @param {LocalModel} model
     * @param {{ packedState(): Promise<PackedState> }} stream `client.model(M).stream(S)`.
     */
    static from(model: LocalModel, stream: {
        packedState(): Promise<PackedState>;
    }): Promise<LocalStream>;
    /**
     * Consume one timestep and return the prediction in `outputs`.
     * @param {Inputs} inputs
     * @returns {Promise<LocalResult>}
     * @throws {StepwellError} `bad_input`, `non_finite` or `non_finite_state`.
     */
    step(inputs: Inputs): Promise<LocalResult>;
    /**
     * Consume a chunk of timesteps; all of them, or none.
     * @param {Inputs} inputs With a leading time axis.
     * @param {{ return?: "all" | "last" | "none" }} [options]
     * @returns {Promise<LocalResult>}
     */
    steps(inputs: Inputs, options?: {
        return?: "all" | "last" | "none";
    }): Promise<LocalResult>;
    /** Return to the model's initial state and to step 0. */
    reset(): Promise<{
        step: number;
    }>;
    /** Return the state as one text, with the step. @returns {Promise<PackedState>} */
    state(): Promise<PackedState>;
    /** Return another stream with this one's state and step. */
    fork(): Promise<LocalStream>;
    /**
     * Put the state into a service's stream, which goes on from it.
     * @template T
     * @param {{ putState(state: PackedState): Promise<T> }} stream `client.model(M).stream(S)`.
     * @returns {Promise<T>}
     */
    moveTo<T>(stream: {
        putState(state: PackedState): Promise<T>;
    }): Promise<T>;
}
