import { StepwellError } from "./errors.js";
import type { Model, Stream } from "./client.js";
import type { InputsByStream } from "./inputs.js";
import type { Limits } from "./options.js";
import type { Position } from "./results.js";
import type { StepResponse } from "./api.js";
export type Row = Position & {
    stream: Stream;
};
/** @import { Model, Stream } from "./client.js" */
/** @import { InputsByStream } from "./inputs.js" */
/** @import { Limits } from "./options.js" */
/** @import { Position, StepResults } from "./results.js" */
/** @import { BulkResponse, StepResponse } from "./api.js" */
/** @typedef {Position & { stream: Stream }} Row */
/** As `Model.stepMany`. @param {Model} model @param {InputsByStream} inputs @param {Limits} limits */
export declare function bulkStep(model: Model, inputs: InputsByStream, limits: Limits): Promise<{
    [x: string]: StepResponse | StepwellError;
}>;
