/** The manifest of a model file, and the fingerprint of both. */
import { StepwellError } from "./errors.js";
import { NUMBERS_AND_TEXTS } from "./formats.js";
import { blake2b } from "./local-blake2b.js";
import { raw, sizeOf, typed } from "./local-tensors.js";

/** @import { Field, Manifest, PackedTensor } from "./manifest.js" */

const KEY = "stepwell.manifest";
const METADATA_PROPS = 14; // of ONNX's ModelProto
const MARK = "\u0000";

/** Return the manifest's text in an ONNX file, if it has one. @param {Uint8Array} file */
export function manifestIn(file) {
  for (const [field, value] of fields(file)) {
    if (field !== METADATA_PROPS) continue;
    const entry = Object.fromEntries([...fields(value)].map(([name, text]) => [name, new TextDecoder().decode(text)]));
    if (entry[1] === KEY) return entry[2];
  }
  return undefined;
}

/**
 * Yield the fields of a message of Protocol Buffers that have a length: their numbers and bytes.
 * @param {Uint8Array} message
 * @returns {Generator<[number, Uint8Array], void, void>}
 */
function* fields(message) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; at < message.length; shift += 7) {
      const byte = message[at++];
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) break;
    }
    return value;
  };
  while (at < message.length) {
    const tag = varint();
    const kind = tag & 7;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const size = varint();
      yield [Math.floor(tag / 8), message.subarray(at, at + size)];
      at += size;
    } else throw new StepwellError("bad_manifest", "The file is not an ONNX model. Load the file that is served.");
  }
}

/**
 * Return the states in the order of the packed state: those of the graph, then the past parts of windows.
 * @param {Manifest} manifest
 * @returns {Field[]}
 */
export function stateFields(manifest) {
  const states = (manifest.states ?? []).map((spec) => ({
    name: spec.in,
    dtype: spec.dtype,
    store: spec.store_dtype || spec.dtype,
    shape: spec.shape,
    initial: initial(spec.init, spec.dtype, spec.shape),
    out: spec.out,
    batchAxis: spec.batch_axis === undefined ? 0 : spec.batch_axis,
  }));
  const windows = (manifest.windows ?? []).map((window) => {
    const spec = /** @type {any} */ (manifest.inputs.find(({ name }) => name === window.input));
    const shape = [...spec.shape];
    shape[window.axis ?? 0] = window.context;
    const name = `${window.input}.context`;
    return { name, dtype: spec.dtype, store: spec.dtype, shape, initial: initial(window.init, spec.dtype, shape) };
  });
  return [...states, ...windows];
}

/** @param {"zeros" | PackedTensor | undefined} init @param {string} dtype @param {number[]} shape */
function initial(init, dtype, shape) {
  if (init === undefined || init === "zeros") return typed(dtype, sizeOf(shape));
  return typed(dtype, Uint8Array.from(atob(init.b), (character) => character.charCodeAt(0)));
}

/**
 * Return the 8 bytes that identify graph, weights and state schema, as the service computes them.
 * @param {Uint8Array} file
 * @param {string} text The manifest's.
 * @param {Field[]} states
 */
export function fingerprintOf(file, text, states) {
  const hex = (/** @type {any} */ array) => Array.from(raw(array), (byte) => byte.toString(16).padStart(2, "0")).join("");
  const schema = states.map(({ name, dtype, store, shape, initial: first }) => [name, dtype, store, shape, hex(first)]);
  // Numbers are kept as they are written: 1 and 1.0 have different texts in Python.
  const marked = text.replace(NUMBERS_AND_TEXTS, (token) => (token.startsWith('"') ? token : `"\\u0000${token}"`));
  const words = new TextEncoder().encode(pythonJson([schema, JSON.parse(marked).constants ?? {}]));
  const all = new Uint8Array(file.length + words.length);
  all.set(file);
  all.set(words, file.length);
  return blake2b(all, 8);
}

/** Return a value as Python's `json.dumps` with `sort_keys` writes it. @param {any} value @returns {string} */
function pythonJson(value) {
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  if (typeof value === "string" && value.startsWith(MARK)) return pythonNumber(value.slice(1));
  if (value === null || typeof value !== "object") {
    const escape = (/** @type {string} */ character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, escape);
  }
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${pythonJson(name)}: ${pythonJson(value[name])}`).join(", ")}}`;
}

/** Return a number of JSON as Python writes it. @param {string} token */
function pythonNumber(token) {
  if (!/[.eE]/.test(token)) return token;
  const [digits, exponent] = Number(token).toExponential().split("e");
  const power = Number(exponent);
  const decimals = digits.replace(/[-.]/g, "").length - 1 - power;
  if (power >= -4 && power < 16) return Number(token).toFixed(Math.max(1, decimals));
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}
