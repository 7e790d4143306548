/** What programs import: the classes of `index.js`, and the types of what they take and return. */
export * from "./index.js";
export type {
  ModelDescription,
  PackedStateResponse,
  PeekResponse,
  PositionResponse,
  RolloutResponse,
  ServiceResponse,
  SnapshotEntry,
  StateResponse,
  StatusResponse,
  StepResponse,
} from "./api.js";
export type { Event, Gap, WatchOptions } from "./events.js";
export type { Inputs, InputsByStream, Source } from "./inputs.js";
export type { CallOptions, ClientOptions } from "./options.js";
export type { RolloutTimestep, StepResults } from "./results.js";
