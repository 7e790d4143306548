/**
 * A tensor to send: nested arrays in the shape that the model declares. Typed arrays may stand in the place of arrays of
 * numbers, and `null` is a missing value of a model that takes these.
 */
export type InputTensor = number | bigint | boolean | null | ArrayBufferView | readonly InputTensor[];

/** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
export type Inputs = InputTensor | { readonly [input: string]: InputTensor };

/**
 * Where timesteps stand in the log that they were read from: the log, and the position in it; for a chunk one for each
 * timestep, growing. Positions beyond 2^53 are `bigint`.
 *
 * It identifies timesteps instead of the handle's position: those at or before the newest one that was applied are not
 * applied again, however long ago that was. The response then has `skipped`, and `null` for outputs that are not known any
 * more; if none is known, the call fails with `source_passed`.
 */
export type Source = { readonly id: string; readonly at: number | bigint | readonly (number | bigint)[] };

/** The inputs of many streams, by stream id. */
export type InputsByStream = { readonly [stream: string]: Inputs };
