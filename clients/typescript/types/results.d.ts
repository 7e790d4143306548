import type { RolloutResponse, StepResponse } from "./api.js";
import type { StepwellError } from "./errors.js";

/** What became of the step of each of many streams, by stream id. */
export type StepResults = Record<string, StepResponse | StepwellError>;

/** Where a handle expects its stream to be. */
export type Position = { step: number; state_id?: string | null };

/**
 * A timestep of a rollout: the prediction, and the input computed from it; with samples, their axis first. The last one has
 * the rollout's step, state id, seed and all of `next`.
 */
export type RolloutTimestep = { outputs: any; next: any; rollout?: RolloutResponse };
