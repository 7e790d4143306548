import type { Model } from "./client.js";
import type { InputsByStream } from "./inputs.js";
import type { Limits } from "./options.js";
import type { StepResults } from "./results.js";
/** @import { Model, Stream } from "./client.js" */
/** @import { InputsByStream } from "./inputs.js" */
/** @import { Limits } from "./options.js" */
/** @import { Position, StepResults } from "./results.js" */
/** @import { BulkResponse, StepResponse } from "./api.js" */
/** As `Model.stepMany`. @param {Model} model @param {InputsByStream} inputs @param {Limits} limits */
export declare function bulkStep(model: Model, inputs: InputsByStream, limits: Limits): Promise<StepResults>;
