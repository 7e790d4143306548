/** A model file run in this program, in browsers and Node, on streams that can move to a service and back. */
import { StepwellError } from "./errors.js";
import { fingerprintOf, manifestIn, stateFields } from "./local-manifest.js";
import { areFinite, bytesOf, cast, nested, raw, read, sizeOf, typed } from "./local-tensors.js";

/** @import { Inputs } from "./inputs.js" */
/** @import { Manifest, TensorSpec } from "./manifest.js" */

/** @typedef {{ state: string, step: number }} PackedState A stream's state as one text, and its step. */
/** @typedef {{ outputs: any, step: number }} LocalResult */
/** @typedef {any[]} States One typed array per state. */

const FINGERPRINT_BYTES = 8;
const CHECKSUM_BYTES = 4;

/** A model file on onnxruntime. Its streams run one timestep at a time. */
export class LocalModel {
  #ort;
  #session;
  /** The last of the timesteps that wait. @type {Promise<unknown>} */
  #last = Promise.resolve();
  #states;

  /**
   * Use `LocalModel.load`.
   * @internal
   * @param {any} ort @param {any} session @param {Manifest} manifest @param {Uint8Array} fingerprint
   */
  constructor(ort, session, manifest, fingerprint) {
    this.#ort = ort;
    this.#session = session;
    /** The file's manifest, with labels, units and latency. */
    this.manifest = manifest;
    /** 8 bytes that identify graph, weights and state schema; a packed state has them. */
    this.fingerprint = fingerprint;
    this.#states = stateFields(manifest);
    this.inputs = manifest.inputs.filter(({ name }) => name !== manifest.learn);
    this.outputs = manifest.outputs.filter(({ kind }) => kind !== "ignore");
  }

  /**
   * Load a model file.
   * @param {string | URL | Uint8Array | ArrayBuffer} source Its URL, or its bytes.
   * @param {{ ort: any, manifest?: Manifest, session?: object }} options `ort`: onnxruntime-web or onnxruntime-node;
   *   `manifest`: in place of the one in the file; `session`: options of onnxruntime's session.
   * @throws {StepwellError} `bad_manifest`: the file has no manifest; `not_found`: there is no file.
   */
  static async load(source, { ort, manifest, session }) {
    const isAddress = typeof source === "string" || source instanceof URL;
    const file = isAddress ? await download(source) : new Uint8Array(source);
    let text = manifest === undefined ? manifestIn(file) : JSON.stringify(manifest);
    if (text === undefined && isAddress) {
      text = new TextDecoder().decode(await download(`${source}.stepwell.json`));
    }
    if (text === undefined) {
      throw new StepwellError("bad_manifest", "The file has no manifest. Load a file that `stepwell export` has written.");
    }
    const found = /** @type {Manifest} */ (JSON.parse(text));
    const fingerprint = fingerprintOf(file, text, stateFields(found));
    return new LocalModel(ort, await ort.InferenceSession.create(file, session), found, fingerprint);
  }

  /**
   * Return a new stream.
   * @param {PackedState | string | null} [initial] The packed state from which it goes on; by default the model's initial
   *   state.
   * @throws {StepwellError} `bad_request`: it is no packed state; `model_changed`: another model wrote it;
   *   `non_finite_state`.
   */
  stream(initial = null) {
    if (initial === null) return new LocalStream(this, this.initialStates(), 0);
    const { state, step } = typeof initial === "string" ? { state: initial, step: 0 } : initial;
    return new LocalStream(this, this.#unpack(state), step);
  }

  // ------------------------------------------------------------------ for streams

  /** @internal @returns {States} */
  initialStates() {
    return this.#states.map(({ initial }) => initial);
  }

  /**
   * Run an action after those that wait: onnxruntime runs one timestep of a session at a time.
   * @internal
   * @template T
   * @param {() => T | Promise<T>} action
   * @returns {Promise<T>}
   */
  inTurn(action) {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {});
    return result;
  }

  /**
   * Return the inputs of each timestep as typed arrays, in the order of `inputs`.
   * @internal
   * @param {Inputs} given
   * @param {boolean} chunk Whether they have a leading time axis.
   * @returns {any[][]}
   */
  read(given, chunk) {
    const isNamed = given !== null && typeof given === "object" && !Array.isArray(given) && !ArrayBuffer.isView(given);
    const only = this.inputs.length === 1 && !isNamed;
    const values = /** @type {Record<string, any>} */ (only ? { [this.inputs[0].name]: given } : given);
    const names = this.inputs.map(({ name }) => name);
    const unknown = isNamed || only ? Object.keys(values).find((name) => !names.includes(name)) : String(given);
    if (unknown !== undefined) throw badInput(`The model has no input '${unknown}'; it has ${names.join(", ")}.`);
    const row = (/** @type {TensorSpec} */ spec, /** @type {any} */ value) => {
      if (value === undefined && spec.missing !== "nan") throw badInput(`Input '${spec.name}' is missing.`);
      return read(value === undefined ? null : value, spec);
    };
    if (!chunk) return [this.inputs.map((spec) => row(spec, values[spec.name]))];
    const lengths = new Set(Object.values(values).map((value) => value?.length).filter((length) => length !== undefined));
    const [length] = lengths;
    if (lengths.size !== 1 || !length) {
      throw badInput(`The inputs have ${[...lengths].join(" and ") || "no"} timesteps; expected the same number in each.`);
    }
    return Array.from({ length }, (_, t) => this.inputs.map((spec) => row(spec, values[spec.name]?.[t])));
  }

  /**
   * Run one timestep; return the outputs as nested arrays, and the states after it.
   * @internal
   * @param {any[]} inputs Typed arrays, in the order of `inputs`.
   * @param {States} states
   */
  async run(inputs, states) {
    const { manifest } = this;
    const windows = manifest.windows ?? [];
    const hasTime = manifest.time?.chunk === "dynamic" && !windows.length;
    /** @type {Record<string, any>} */
    const feeds = {};
    const past = new Map(windows.map((window, i) => [window.input, states.length - windows.length + i]));
    const next = [...states];
    this.inputs.forEach((spec, i) => {
      let [array, shape] = [inputs[i], spec.graph_shape ?? spec.shape];
      const window = windows.find(({ input }) => input === spec.name);
      if (window) {
        const at = /** @type {number} */ (past.get(spec.name));
        [array, next[at]] = slide(states[at], array, spec, window.axis ?? 0, window.context);
        shape = spec.shape.map((size, axis) => (axis === (window.axis ?? 0) ? size + window.context : size));
      }
      feeds[spec.name] = this.#tensor(spec.dtype, array, shape, batchAxis(spec), hasTime);
    });
    this.#states.forEach((field, i) => {
      if (field.out) feeds[field.name] = this.#tensor(field.dtype, states[i], field.shape, field.batchAxis ?? null);
    });
    for (const [name, { dtype, value }] of Object.entries(manifest.constants ?? {})) {
      const shape = shapeOf(value);
      feeds[name] = this.#tensor(dtype, read(value, { name, dtype, shape }), shape, null);
    }
    if (manifest.learn) feeds[manifest.learn] = this.#tensor("bool", Uint8Array.of(1), [], 0, hasTime);
    const found = await this.#session.run(feeds).catch((/** @type {any} */ cause) => {
      throw badInput(`The model cannot run on these values: ${cause?.message ?? cause}`, cause);
    });
    const outputs = this.outputs.map(({ name, tensor, dtype, shape }) => {
      const array = typed(dtype, raw(found[tensor ?? name].data));
      if (!areFinite(array, dtype)) throw nonFinite(`output ${name}`);
      return [name, nested(array, dtype, shape)];
    });
    this.#states.forEach(({ name, dtype, store, out }, i) => {
      const stored = cast(out ? typed(dtype, raw(found[out].data)) : next[i], dtype, store);
      if (!areFinite(stored, store)) throw nonFinite(name);
      next[i] = cast(stored, store, dtype); // as a service continues from its store
    });
    return { outputs: Object.fromEntries(outputs), states: next };
  }

  /** @internal @param {States} states */
  pack(states) {
    const parts = this.#states.map(({ dtype, store }, i) => raw(cast(states[i], dtype, store)));
    const size = parts.reduce((sum, part) => sum + part.length, FINGERPRINT_BYTES);
    const bytes = new Uint8Array(size + CHECKSUM_BYTES);
    let at = FINGERPRINT_BYTES;
    bytes.set(this.fingerprint);
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    new DataView(bytes.buffer).setUint32(size, crc32(bytes.subarray(0, size)), true);
    return toBase64(bytes);
  }

  /** @param {string} text @returns {States} */
  #unpack(text) {
    const bytes = fromBase64(text);
    const size = (bytes?.length ?? 0) - CHECKSUM_BYTES;
    if (!bytes || size < FINGERPRINT_BYTES || crc32(bytes.subarray(0, size)) !== new DataView(bytes.buffer).getUint32(size, true)) {
      throw new StepwellError("bad_request", "The text is no packed state, or was changed. Give a state as it was received.");
    }
    if (this.fingerprint.some((byte, i) => byte !== bytes[i])) {
      throw new StepwellError("model_changed", "The state is of another model. Load the file of the version that wrote it.");
    }
    const sizes = this.#states.map(({ store, shape }) => bytesOf(store, shape));
    if (sizes.reduce((sum, one) => sum + one, FINGERPRINT_BYTES) !== size) {
      throw new StepwellError("bad_request", `The state has ${size - FINGERPRINT_BYTES} bytes of states; the model has others.`);
    }
    let at = FINGERPRINT_BYTES;
    return this.#states.map(({ name, dtype, store }, i) => {
      const stored = typed(store, bytes.subarray(at, at + sizes[i]));
      at += sizes[i];
      if (!areFinite(stored, store)) throw nonFinite(name);
      return cast(stored, store, dtype);
    });
  }

  /**
   * @param {string} dtype @param {any} array @param {number[]} row @param {number | null} batch The axis of the batch.
   * @param {boolean} [hasTime] Whether a time axis stands right behind it.
   */
  #tensor(dtype, array, row, batch, hasTime = false) {
    const ones = [...(batch === null ? [] : [1]), ...(hasTime ? [1] : [])];
    const dims = [...row.slice(0, batch ?? 0), ...ones, ...row.slice(batch ?? 0)];
    return new this.#ort.Tensor(dtype, array, dims);
  }
}

/** A stream of a `LocalModel`. Calls are made in their order; one that fails leaves the state as it was. */
export class LocalStream {
  /** @type {States} */
  #states;
  #step;

  /**
   * Use `LocalModel.stream`.
   * @internal
   * @param {LocalModel} model @param {States} states @param {number} step
   */
  constructor(model, states, step) {
    this.model = model;
    this.#states = states;
    this.#step = step;
  }

  /**
   * Return a stream that goes on from the state of a service's stream, which stays as it is.
   * @param {LocalModel} model
   * @param {{ packedState(): Promise<PackedState> }} stream `client.model(M).stream(S)`.
   */
  static async from(model, stream) {
    return model.stream(await stream.packedState());
  }

  /**
   * Consume one timestep and return the prediction in `outputs`.
   * @param {Inputs} inputs
   * @returns {Promise<LocalResult>}
   * @throws {StepwellError} `bad_input`, `non_finite` or `non_finite_state`.
   */
  async step(inputs) {
    const [{ outputs, step }] = await this.#advance(this.model.read(inputs, false));
    return { outputs, step };
  }

  /**
   * Consume a chunk of timesteps; all of them, or none.
   * @param {Inputs} inputs With a leading time axis.
   * @param {{ return?: "all" | "last" | "none" }} [options]
   * @returns {Promise<LocalResult>}
   */
  async steps(inputs, options) {
    const results = await this.#advance(this.model.read(inputs, true));
    const { outputs: last, step } = results[results.length - 1];
    if (options?.return === "none") return { outputs: {}, step };
    if (options?.return === "last") return { outputs: last, step };
    const column = (/** @type {string} */ name) => results.map(({ outputs }) => outputs[name]);
    return { outputs: Object.fromEntries(Object.keys(last).map((name) => [name, column(name)])), step };
  }

  /** Return to the model's initial state and to step 0. */
  reset() {
    return this.model.inTurn(() => {
      this.#states = this.model.initialStates();
      this.#step = 0;
      return { step: 0 };
    });
  }

  /** Return the state as one text, with the step. @returns {Promise<PackedState>} */
  state() {
    return this.model.inTurn(() => ({ state: this.model.pack(this.#states), step: this.#step }));
  }

  /** Return another stream with this one's state and step. */
  fork() {
    return this.model.inTurn(() => new LocalStream(this.model, this.#states, this.#step));
  }

  /**
   * Put the state into a service's stream, which goes on from it.
   * @template T
   * @param {{ putState(state: PackedState): Promise<T> }} stream `client.model(M).stream(S)`.
   * @returns {Promise<T>}
   */
  async moveTo(stream) {
    return stream.putState(await this.state());
  }

  /** @param {any[][]} timesteps */
  #advance(timesteps) {
    return this.model.inTurn(async () => {
      let states = this.#states;
      const results = [];
      for (const inputs of timesteps) {
        const result = await this.model.run(inputs, states);
        states = result.states;
        results.push({ outputs: result.outputs, step: this.#step + results.length + 1 });
      }
      this.#states = states;
      this.#step += timesteps.length;
      return results;
    });
  }
}

/** @param {TensorSpec} spec */
const batchAxis = (spec) => (spec.batch_axis === undefined ? 0 : spec.batch_axis);

/** @param {any} value @returns {number[]} */
const shapeOf = (value) => (Array.isArray(value) ? [value.length, ...shapeOf(value[0])] : []);

/**
 * Put the past part of an input in front of the new one, along an axis; return both together, and the next past part.
 * @param {any} past @param {any} now @param {TensorSpec} spec @param {number} axis @param {number} context
 */
function slide(past, now, { dtype, shape }, axis, context) {
  const rows = sizeOf(shape.slice(0, axis));
  const inner = sizeOf(shape.slice(axis + 1));
  const [before, after] = [context * inner, shape[axis] * inner];
  const joined = typed(dtype, rows * (before + after));
  const next = typed(dtype, rows * before);
  for (let row = 0; row < rows; row++) {
    const start = row * (before + after);
    joined.set(past.subarray(row * before, (row + 1) * before), start);
    joined.set(now.subarray(row * after, (row + 1) * after), start + before);
    next.set(joined.subarray(start + after, start + after + before), row * before);
  }
  return [joined, next];
}

/** @param {string | URL} address */
async function download(address) {
  const response = await fetch(address);
  if (!response.ok) throw new StepwellError("not_found", `${address} has status ${response.status}; expected a model file.`);
  return new Uint8Array(await response.arrayBuffer());
}

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** @param {Uint8Array} bytes */
function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** Return the bytes, if the text is base64url without padding. @param {string} text */
function fromBase64(text) {
  if (!/^[A-Za-z0-9_-]*$/.test(text) || text.length % 4 === 1) return undefined;
  const decoded = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
  const bytes = Uint8Array.from(decoded, (character) => character.charCodeAt(0));
  return toBase64(bytes) === text ? bytes : undefined;
}

/** @param {string} message @param {unknown} [cause] */
const badInput = (message, cause) => new StepwellError("bad_input", message, { cause });

/** @param {string} name */
function nonFinite(name) {
  return new StepwellError("non_finite_state", `There is NaN or infinity in '${name}'; the state stays as it was.`);
}
