// Generated from /openapi.json by scripts/api-types.mjs; not edited by hand.

/** A tensor: nested arrays in the shape that the model declares. */
export type Tensor = any;

/** One page of the alarms that are raised now, by model and stream, and the cursor of the next page. */
export type AlertsResponse = {
  alerts: Array<RaisedAlarm>;
  cursor: string | null;
};

/** The body of a step of many streams: each column has one item per stream. */
export type BulkBody = {
  /** auto: create a missing stream; never: an error if it is missing; must: an error if it exists. */
  create?: "auto" | "must" | "never";
  streams: Array<string>;
  /** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
  inputs: { [name: string]: Tensor } | Tensor;
  seq?: Array<number | null>;
  after?: Array<string | null>;
  /** Timesteps that were applied from these positions before are not applied again. */
  source?: SourceColumns;
};

/** The response to columns; a row that failed is null in each column. */
export type BulkResponse = {
  outputs: { [name: string]: Tensor };
  step: Array<number | null>;
  state_id: Array<string | null>;
  /** By row index, as text. */
  errors: { [name: string]: Problem };
  /** Indices of the rows that were applied before. */
  replayed?: Array<number>;
  /** For each row, its first timesteps that were applied before. */
  skipped?: Array<number>;
  /** Indices of the rows whose source replaced another. */
  source_changed?: Array<number>;
  /** For each row, `version` of the response to a chunk. */
  version?: Array<number | null>;
  /** For each row, `versions` of the response to a chunk; null: all are `version`. */
  versions?: Array<Array<number | null> | null>;
  /** In msgpack: for each row, its first timesteps without known outputs. */
  unknown?: Array<number>;
};

/** The body of a chunk of many streams. */
export type BulkStepsBody = {
  /** auto: create a missing stream; never: an error if it is missing; must: an error if it exists. */
  create?: "auto" | "must" | "never";
  streams: Array<string>;
  /** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
  inputs: { [name: string]: Tensor } | Tensor;
  seq?: Array<number | null>;
  after?: Array<string | null>;
  /** Timesteps that were applied from these positions before are not applied again. */
  source?: SourceColumns;
  /** Which predictions are returned. */
  return?: "all" | "last" | "none";
};

/** The comparison of the last candidate with the current version, over all replicas. */
export type ComparisonResponse = {
  steps: number;
  lost: number;
  fell_back: number;
  non_finite: number;
  outputs: { [name: string]: OutputComparison };
  /** By output and label; null: the model has no truth. */
  error: { [name: string]: { [name: string]: ErrorComparison } } | null;
};

/** What live streams look like beside the reference. */
export type DriftResponse = {
  /** Whether the model's manifest has a reference. */
  reference: boolean;
  /** `1h` and `24h`. */
  windows: { [name: string]: DriftWindow };
};

/** The features of a model in a window, by name: `x[0]` is the first number of `x`. */
export type DriftWindow = {
  inputs: { [name: string]: FeatureDrift };
  outputs: { [name: string]: FeatureDrift };
};

/** The body of a promotion or an abort, which may be empty. */
export type EndBody = {
  /** The reason, which the release then shows. */
  why?: string;
  /** The revision that the release must have; otherwise it was changed since. */
  revision?: number;
};

/** How the last candidate ended. */
export type EndedResponse = {
  how: "aborted" | "promoted";
  why: string | null;
  /** Seconds since 1970, by the store's clock. */
  at: number;
  candidate: number;
};

/** The errors of both versions against the truth, in one number of an output; null: not known yet. */
export type ErrorComparison = {
  /** Mean absolute error. */
  current: number | null;
  /** Mean absolute error. */
  candidate: number | null;
  /** The candidate's error in errors of the current version. */
  ratio: number | null;
  /** Lower end of the ratio's 95 % interval over streams. */
  low: number | null;
  /** Upper end. */
  high: number | null;
  /** Truths that both were compared with. */
  n: number;
};

/** One number of an input or output, in a window. */
export type FeatureDrift = {
  /** Sampled values that were there. */
  count: number;
  /** Share of the sampled values that were missing. */
  missing: number;
  min: number | null;
  max: number | null;
  /** By their share: `"0.5"` is the median. */
  quantiles: { [name: string]: number };
  /** Share of the values outside the reference's range; null without a reference or values. */
  outside: number | null;
  /** The greater of `psi_all` and `psi_tenth`; null if there is neither. */
  psi: number | null;
  /** Population stability index of all values against the reference's deciles; null without a reference, or below 500 values. */
  psi_all: number | null;
  /** The same of the tenth of the streams that deviates most. */
  psi_tenth: number | null;
};

/** The body of a fork. */
export type ForkBody = {
  /** Hash of the stream's history. */
  after?: string;
  /** The stream to create. */
  to: string;
  from?: "present" | {
    snapshot: string;
  };
};

/** The response to a fork. */
export type ForkResponse = {
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  /** The request was applied before; this is its first response. */
  replayed?: true;
  stream: string;
};

/** The result of an import of streams. */
export type ImportResponse = {
  /** Streams that are now as in the savepoint. */
  loaded: number;
  /** The first 1000. */
  refused: Array<RefusedStream>;
  refused_count: number;
};

/** The position of the source that a stream has used last. */
export type LastSource = {
  at: number;
};

/** The description of a model. */
export type ModelDescription = {
  name: string;
  version: number;
  versions: Array<number>;
  inputs: Array<{ [name: string]: any }>;
  outputs: Array<{ [name: string]: any }>;
  states: Array<{ [name: string]: any }>;
  /** By input, the output that it is computed from in a rollout. */
  feedback?: { [name: string]: any };
  /** The largest latency of the outputs, in samples; none: they have no samples. */
  latency?: number;
  /** The time between two timesteps, such as `1s`; none: it is not known. */
  every?: string;
  bytes_per_stream: number;
  parity: { [name: string]: any } | null;
};

/** The models that are served. */
export type ModelsResponse = {
  models: Array<ModelDescription>;
};

/** The response to a request that creates a snapshot. */
export type NewSnapshotResponse = {
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  /** The request was applied before; this is its first response. */
  replayed?: true;
  name: string;
};

/** The absolute differences between current version and candidate. */
export type NumberComparison = {
  max_abs: number;
  mean_abs: number;
  /** To 10 %. */
  p99_abs: number;
};

/** The absolute differences of one output between current version and candidate. */
export type OutputComparison = {
  max_abs: number;
  mean_abs: number;
  /** To 10 %. */
  p99_abs: number;
  /** Share of timesteps whose arg max differs; null for an output of one number. */
  disagree: number | null;
  /** The same of each number that has a label. */
  labels: { [name: string]: NumberComparison };
};

/** Positions in msgpack, as an int64 array. */
export type PackedPositions = {
  d: "int64";
  s: Array<number>;
  b: string;
};

/** The state of a stream, with `?packed=true`. */
export type PackedStateResponse = {
  /** A packed state: base64url of the model's fingerprint, the states' bytes, and a checksum. */
  state: string;
  step: number;
};

/** The body of a peek. */
export type PeekBody = {
  /** auto: create a missing stream; never: an error if it is missing; must: an error if it exists. */
  create?: "auto" | "must" | "never";
  /** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
  inputs: { [name: string]: Tensor } | Tensor;
  /** Number of the first timestep of this request, from 1 since creation or reset. */
  seq?: number;
  /** Hash of the stream's history. */
  after?: string;
  /** Timesteps that were applied from this position of this source before are not applied again. */
  source?: SourceField;
  /** Which predictions are returned. */
  return?: "all" | "last" | "none";
  /** The inputs have a time axis. */
  chunk?: boolean;
};

/** The response to a peek. */
export type PeekResponse = {
  outputs: { [name: string]: Tensor };
  /** The step that the stream would be at. */
  step: number;
  /** The stream's current state id; absent if the stream does not exist. */
  state_id?: string;
  /** The model version that responded; present with a `source`, or if it is another one than before. */
  version?: number;
};

/** The response to a reset or an imported state. */
export type PositionResponse = {
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  /** The request was applied before; this is its first response. */
  replayed?: true;
};

/** An error, as in RFC 9457. */
export type Problem = {
  type: string;
  title: string;
  status: number;
  /** What was found, what was expected, what to do. */
  detail: string;
  code: "bad_json" | "bad_request" | "unauthenticated" | "forbidden" | "model_not_found" | "stream_not_found" | "snapshot_not_found" | "version_not_found" | "not_found" | "method_not_allowed" | "seq_gap" | "seq_passed" | "seq_conflict" | "source_passed" | "state_changed" | "stream_exists" | "model_changed" | "release_changed" | "release_refused" | "too_large" | "unsupported_encoding" | "bad_input" | "bad_release" | "non_finite" | "non_finite_state" | "idempotency_key_reused" | "precondition_required" | "stream_quota" | "rate_limited" | "state_corrupt" | "internal" | "overloaded" | "draining" | "store_unavailable" | "outcome_unknown" | "store_full" | "not_durable" | "model_timeout" | "record_version";
  /** Whether this request was applied to the stream. */
  applied: "no" | "unknown" | "yes";
  retry: "never" | "resend_from" | "same";
  /** The stream's step. */
  step?: number;
  /** The `seq` that the stream expects next. */
  expected?: number;
  /** The stream's position of the request's `source`. */
  at?: number;
  /** The revision of the release. */
  revision?: number;
  /** Hash of the stream's history. */
  state_id?: string;
};

/** An alarm that `stepwell alert` has raised and not cleared. */
export type RaisedAlarm = {
  /** Random; every message about it has it. */
  id: string;
  /** The name of the rule. */
  rule: string;
  /** `raised`. */
  state: string;
  model: string;
  stream: string;
  /** Where it was raised; for silence, expiry and refusals, the last step. */
  step: number;
  /** When it was raised, seconds since 1970, by the store's clock. */
  at: number;
  /** The outputs of that step. */
  outputs: { [name: string]: any };
  /** `when`, `silent`, `expired` or `refused`: the key of the rule that raised it. */
  kind: string;
  /** Of refused timesteps: the error's code. */
  code?: string;
  /** `critical`, `warning` or `info`, if the rule has one. */
  severity?: string;
};

/** A stream that was not imported, and the code of the error. */
export type RefusedStream = {
  stream: string;
  code: string;
};

/** The body of a PUT of a release. */
export type ReleaseBody = {
  /** A version of the model. */
  current?: number;
  /** A version of the model. */
  candidate?: number;
  mode?: "ramp" | "shadow" | "switch";
  /** The candidate's share of the streams, or `[seconds, percent]` points from this request on. */
  percent?: number | Array<[number, number]>;
  take?: "keep" | "reset" | "translate";
  /** With `reset`: timesteps before the candidate responds. */
  warm_steps?: number;
  /** Whether streams that exist take part. */
  existing?: boolean;
  /** Whether `abort` is possible within an hour of `promote`. */
  rollback?: boolean;
  salt?: string;
  /** Limits on the comparison; a broken one aborts the release. Null: none. */
  gate?: { [name: string]: any } | null;
  /** The revision that the release must have; otherwise it was changed since. */
  revision?: number;
};

/** The release of a model. */
export type ReleaseResponse = {
  model: string;
  /** Grows with each change; 0: the model has no release. */
  revision: number;
  /** The version of new streams. */
  current: number;
  /** The version that is tried. */
  candidate: number | null;
  mode: "ramp" | "shadow" | "switch" | null;
  /** The candidate's share that is in force now. */
  percent: number;
  /** `[seconds, percent]` points. */
  schedule: Array<[number, number]>;
  take: "keep" | "reset" | "translate";
  warm_steps: number;
  existing: boolean;
  rollback: boolean;
  gate: { [name: string]: any } | null;
  /** When the last candidate started. */
  started_at: number | null;
  ended: EndedResponse | null;
  versions: Array<VersionStatus>;
  /** When the streams were counted last. */
  counted_at: number | null;
  compared: ComparisonResponse;
  /** Streams that the last sweep has moved. */
  moved: number;
  /** Streams that it has still to move. */
  left: number;
};

/** The models that were loaded, and why others were not. */
export type ReloadResponse = {
  loaded: Array<string>;
  failed: Array<string>;
  /** Models whose files are not kept for streams that need them, and why. */
  not_kept?: Array<string>;
  /** Files of the models folders that look like models but are none. */
  ignored?: Array<string>;
};

/** The number of streams that were reset. */
export type ResetAllResponse = {
  reset: number;
};

/** The body of a reset. */
export type ResetBody = {
  /** Hash of the stream's history. */
  after?: string;
  to?: "initial" | {
    snapshot: string;
  };
};

/** The body of a rollout; `check_draw` checks how classes are drawn, and the rollout its feedback rules. */
export type RolloutBody = {
  /** Number of timesteps. */
  horizon: number;
  /** The first input; by default it is computed from the stream's last prediction. */
  inputs?: { [name: string]: Tensor } | Tensor;
  /** By input, the rule that computes it; by default the rules of the model's manifest. */
  feedback?: { [name: string]: string | {
    output: string;
    /** Timesteps ahead in the output, its first axis; the first is fed back. */
    horizon?: number;
    /** Factor of the output: a number, or one for each element of the input. */
    scale?: Tensor;
    /** Term added to that: a number, or one for each element of the input. */
    offset?: Tensor;
    /** Standard deviation of normal noise: a number, or the name of an output. */
    std?: Tensor;
    /** With `std`: degrees of freedom of Student's t: a number, or the name of an output. */
    df?: Tensor;
    /** Of a negative binomial count: a number, or the name of an output. */
    dispersion?: Tensor;
    /** The output has probabilities: draw a class from them. */
    sample?: boolean;
    /** The output has logarithms of probabilities. */
    logits?: boolean;
    /** The input is the one-hot vector of the drawn class. */
    one_hot?: boolean;
    /** 0: the most probable class; 1: the model's probabilities. */
    temperature?: number;
    /** Draw from this many of the most probable classes. */
    top_k?: number;
    /** Draw from the most probable classes with this total probability. */
    top_p?: number;
  } };
  /** Number of samples; tensors then have a first axis for them. */
  samples?: number;
  seed?: number;
  /** Apply the timesteps to the stream. */
  commit?: boolean;
  /** Number of the first timestep of this request, from 1 since creation or reset. */
  seq?: number;
  /** Hash of the stream's history. */
  after?: string;
  /** auto: create a missing stream; never: an error if it is missing; must: an error if it exists. */
  create?: "auto" | "must" | "never";
  /** 0: the most probable class; 1: the model's probabilities. */
  temperature?: number;
  /** Draw from this many of the most probable classes. */
  top_k?: number;
  /** Draw from the most probable classes with this total probability. */
  top_p?: number;
};

/** The response to a rollout; with `samples`, tensors have a first axis for them. */
export type RolloutResponse = {
  /** A prediction for each timestep: `[horizon, ..]`. */
  outputs: { [name: string]: Tensor };
  /** The next input that was computed from each prediction: `[horizon, ..]`. */
  next: { [name: string]: Tensor };
  /** The step that the stream is at, or would be at. */
  step: number;
  /** Hash of the stream's history. */
  state_id?: string;
  /** Seed of the random draws, if there were any. */
  seed?: number;
  /** The request was applied before; this is its first response. */
  replayed?: true;
  /** This request created the stream. */
  created?: true;
};

/** The body of a timestep whose state is in the request; with a list of states, of one timestep for each. */
export type RunBody = {
  /** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
  inputs: { [name: string]: Tensor } | Tensor;
  /** The state before the timestep; null: the initial state. A list: one for each row of the inputs. */
  state: string | Array<string | null> | null;
};

/** The response to timesteps whose state is in the request; a row that failed is null in each column. */
export type RunResponse = {
  outputs: { [name: string]: Tensor };
  /** The state after the timestep; of columns a list, with null for a row that failed. */
  state: string | Array<string | null>;
  /** Of columns: by row index, as text. */
  errors?: { [name: string]: Problem };
};

/** Version and limits of the service, and what is known of its store. */
export type ServiceResponse = {
  version: string;
  /** What a confirmed commit survives: `memory`, `fsync` or `replica`. */
  durability: string;
  store: { [name: string]: any };
  limits: { [name: string]: any };
  /** Commits that are kept of each stream, by model; `*`: of every other model. */
  history: { [name: string]: number };
  /** The tenant of the caller's key. */
  tenant: string;
};

/** The body of a request that creates a snapshot. */
export type SnapshotBody = {
  /** Hash of the stream's history. */
  after?: string;
};

/** A snapshot of a stream, without its state. */
export type SnapshotEntry = {
  name: string;
  version: number | null;
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  taken_at: string;
};

/** A snapshot of a stream. */
export type SnapshotResponse = {
  name: string;
  version: number | null;
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  taken_at: string;
  /** One tensor per state of the model. */
  states: { [name: string]: Tensor };
  /** Identifies the model that wrote the state. A model that is not loaded is rejected, unless `version` names the version that accepts the state. */
  fingerprint: string;
};

/** The snapshots of a stream. */
export type SnapshotsResponse = {
  snapshots: Array<SnapshotEntry>;
};

/** The same for columns: one row for each stream. */
export type SourceColumns = {
  /** The log of all streams, or one for each stream. */
  id: string | Array<string>;
  /** A position for each stream; for chunks a list of them for each stream. */
  at: Array<number | Array<number>> | PackedPositions;
};

/** How far a stream has consumed one source. */
export type SourceEntry = {
  /** Null if it is not stored any more. */
  id: string | null;
  /** The position of the newest timestep that was applied from it. */
  at: number;
};

/** Where the timesteps of a body stand in the log that they were read from. */
export type SourceField = {
  /** The log: for example a topic and its partition. */
  id: string;
  /** The position of the timestep in it; for a chunk one for each timestep, strictly growing. */
  at: number | Array<number>;
};

/** The body of a request that imports a state, in `states` or packed; it is not yet checked against a model. */
export type StateBody = {
  /** Hash of the stream's history. */
  after?: string;
  /** One tensor per state of the model. */
  states?: { [name: string]: Tensor };
  /** A packed state: base64url of the model's fingerprint, the states' bytes, and a checksum. */
  state?: string;
  step?: number;
  fingerprint?: string | null;
};

/** The state of a stream. */
export type StateResponse = {
  /** One tensor per state of the model. */
  states: { [name: string]: Tensor };
  step: number;
  /** Identifies the model that wrote the state. A model that is not loaded is rejected, unless `version` names the version that accepts the state. */
  fingerprint: string;
};

/** The position and the times of a stream. */
export type StatusResponse = {
  stream: string;
  model: string;
  version: number | null;
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  created_at: string;
  updated_at: string;
  expires_in_s: number;
  outputs?: { [name: string]: Tensor };
  source?: LastSource;
  /** The sources used last, the newest use first; a record keeps four. */
  sources?: Array<SourceEntry>;
};

/** The body of a step. */
export type StepBody = {
  /** auto: create a missing stream; never: an error if it is missing; must: an error if it exists. */
  create?: "auto" | "must" | "never";
  /** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
  inputs: { [name: string]: Tensor } | Tensor;
  /** Number of the first timestep of this request, from 1 since creation or reset. */
  seq?: number;
  /** Hash of the stream's history. */
  after?: string;
  /** Timesteps that were applied from this position of this source before are not applied again. */
  source?: SourceField;
};

/** The response to a step or a chunk. */
export type StepResponse = {
  outputs: { [name: string]: Tensor };
  /** The number of the request's last timestep. */
  step: number;
  /** Null if the stream has been stepped further since. */
  state_id: string | null;
  /** The request was applied before; this is its first response. */
  replayed?: true;
  /** This request created the stream. */
  created?: true;
  /** The model version that responded; present with a `source`, or if it is another one than before. */
  version?: number;
  /** The version that responded to each timestep, null if not known; present if they are several. */
  versions?: Array<number | null>;
  /** Number of first timesteps that were applied before, by their positions in `source`. */
  skipped?: number;
  /** The record keeps this source in place of the one used longest ago. */
  source_changed?: true;
  /** In msgpack: number of first timesteps whose outputs are not known, and zeros. */
  unknown?: number;
};

/** The body of a chunk. */
export type StepsBody = {
  /** auto: create a missing stream; never: an error if it is missing; must: an error if it exists. */
  create?: "auto" | "must" | "never";
  /** One tensor per input of the model; for a model with one input, the tensor alone is accepted too. */
  inputs: { [name: string]: Tensor } | Tensor;
  /** Number of the first timestep of this request, from 1 since creation or reset. */
  seq?: number;
  /** Hash of the stream's history. */
  after?: string;
  /** Timesteps that were applied from this position of this source before are not applied again. */
  source?: SourceField;
  /** Which predictions are returned. */
  return?: "all" | "last" | "none";
};

/** A stream in a list; the step is null if its record cannot be read. */
export type StreamEntry = {
  stream: string;
  step: number | null;
  /** With `?sources=true`. */
  sources?: Array<SourceEntry>;
};

/** The body of a request that moves one stream to a version. */
export type StreamMoveBody = {
  /** A version of the model. */
  version: number;
  take?: "keep" | "reset" | "translate";
  /** Hash of the stream's history. */
  after?: string;
};

/** The position of a stream after its move to another version. */
export type StreamMoveResponse = {
  step: number;
  /** Hash of the stream's history. */
  state_id: string;
  version: number;
  replayed?: boolean;
};

/** One page of a model's streams, and the cursor of the next page. */
export type StreamsResponse = {
  streams: Array<StreamEntry>;
  cursor: string | null;
};

/** The body of a request that moves all sleeping streams, which may be empty. */
export type SweepBody = {
  /** Streams per second; default: no limit. */
  limit_per_s?: number;
};

/** A version of the model, by its fingerprint, and how many streams it has. */
export type VersionStatus = {
  /** Null if no replica has the file any more. */
  version: number | null;
  fingerprint: string;
  /** Streams of all tenants; a pair counts for what responds. */
  streams: number;
  status: "current" | "drained" | "draining" | "inactive" | "ramping";
};
