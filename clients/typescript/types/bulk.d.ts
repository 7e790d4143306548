import { StepwellError } from "./errors.js";
import type { Model } from "./client.js";
import type { Inputs } from "./inputs.js";
import type { StepResponse } from "./api.js";
/** @import { Model, Stream } from "./client.js" */
/** @import { Inputs } from "./inputs.js" */
/** @import { BulkResponse, StepResponse } from "./api.js" */
/**
 * Step many streams by one timestep each; streams with a transient error are retried.
 * @param {Model} model
 * @param {{ readonly [stream: string]: Inputs }} inputs
 * @param {number} deadline
 * @returns {Promise<Record<string, StepResponse | StepwellError>>}
 */
export declare function bulkStep(model: Model, inputs: {
    readonly [stream: string]: Inputs;
}, deadline: number): Promise<Record<string, StepResponse | StepwellError>>;
