import type { StepResponse } from "./api.js";
import type { StepwellError } from "./errors.js";

/** What became of the step of each of many streams, by stream id. */
export type StepResults = Record<string, StepResponse | StepwellError>;

/** Where a handle expects its stream to be. */
export type Position = { step: number; state_id?: string | null };
