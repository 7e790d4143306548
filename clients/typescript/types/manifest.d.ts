/** What `local.js` reads of a model file's manifest. */

export type TensorSpec = {
  name: string;
  dtype: string;
  /** One row. */
  shape: number[];
  batch_axis?: number | null;
  graph_shape?: number[] | null;
  /** Of an input: whether values may be missing. */
  missing?: "refuse" | "nan";
  /** Of an output: outputs of the kind `ignore` are not returned. */
  kind?: "value" | "random" | "ignore";
  /** Of an output: its name in the graph, where that is not `name`. */
  tensor?: string | null;
  /** Of an output: samples by which it is behind the input; none: it has no samples. */
  latency?: number | null;
  labels?: string[];
  unit?: string | string[];
};

/** A tensor as JSON: NumPy's name of the dtype, shape, and base64 of the bytes. */
export type PackedTensor = { d: string; s: number[]; b: string };

export type StateSpec = {
  in: string;
  out: string;
  dtype: string;
  shape: number[];
  batch_axis?: number | null;
  init?: "zeros" | PackedTensor;
  store_dtype?: string;
};

export type WindowSpec = { input: string; context: number; axis?: number; init?: "zeros" | PackedTensor };

export type Manifest = {
  name: string;
  time?: { chunk?: "step" | "dynamic" };
  inputs: TensorSpec[];
  states?: StateSpec[];
  outputs: TensorSpec[];
  constants?: Record<string, { dtype: string; value: any }>;
  windows?: WindowSpec[];
  /** The input, not one of `inputs`, which marks the timesteps that stages learn from. */
  learn?: string;
  /** Samples by which an output is behind its input. */
  latency?: number;
  [key: string]: unknown;
};

/** A state, or the past part of a windowed input, in the order of the packed state. */
export type Field = {
  name: string;
  dtype: string;
  store: string;
  shape: number[];
  initial: any;
  /** The state's name as an output of the graph; of a window, nothing. */
  out?: string;
  batchAxis?: number | null;
};
