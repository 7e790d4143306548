/** Tensors between nested arrays, typed arrays for onnxruntime, and the bytes of a packed state. */
import { StepwellError } from "./errors.js";
import { half } from "./formats.js";

/** @import { TensorSpec } from "./manifest.js" */

/** @typedef {{ make: any, bytes: number, kind: "f" | "i" | "b", low?: bigint, high?: bigint }} Dtype */

/** @type {Record<string, Dtype>} */
const DTYPES = {
  bool: { make: Uint8Array, bytes: 1, kind: "b" },
  float16: { make: Uint16Array, bytes: 2, kind: "f" },
  float32: { make: Float32Array, bytes: 4, kind: "f" },
  float64: { make: Float64Array, bytes: 8, kind: "f" },
};
for (const bits of [8, 16, 32, 64]) {
  const all = 1n << BigInt(bits);
  const name = bits === 64 ? "BigInt64Array" : `Int${bits}Array`;
  const make = /** @type {any} */ (globalThis);
  DTYPES[`int${bits}`] = { make: make[name], bytes: bits / 8, kind: "i", low: -all / 2n, high: all / 2n - 1n };
  const unsigned = make[name.replace("Int", "Uint")];
  DTYPES[`uint${bits}`] = { make: unsigned, bytes: bits / 8, kind: "i", low: 0n, high: all - 1n };
}

/** @param {readonly number[]} shape */
export const sizeOf = (shape) => shape.reduce((product, size) => product * size, 1);

/** Return the bytes of a row. @param {string} dtype @param {readonly number[]} shape */
export const bytesOf = (dtype, shape) => DTYPES[dtype].bytes * sizeOf(shape);

/** Return a typed array of zeros, or on some bytes. @param {string} dtype @param {number | Uint8Array} given */
export function typed(dtype, given) {
  const { make } = DTYPES[dtype];
  return typeof given === "number" ? new make(given) : new make(given.slice().buffer);
}

/** Return the bytes of a typed array. @param {ArrayBufferView} array */
export const raw = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

/**
 * Return floats in another type of floats. @param {any} array @param {string} from @param {string} to
 */
export function cast(array, from, to) {
  if (from === to) return array;
  const numbers = from === "float16" ? Float64Array.from(array, half) : array;
  return to === "float16" ? Uint16Array.from(numbers, halfBits) : DTYPES[to].make.from(numbers);
}

/** @param {any} array @param {string} dtype */
export function areFinite(array, dtype) {
  if (DTYPES[dtype].kind !== "f") return true;
  return dtype === "float16" ? array.every((/** @type {number} */ bits) => (bits & 0x7c00) !== 0x7c00) : array.every(Number.isFinite);
}

/**
 * Return the numbers of an input as a typed array.
 * @param {any} value Nested arrays, typed arrays or numbers; null is a missing value.
 * @param {TensorSpec} spec
 * @throws {StepwellError} `bad_input` or `non_finite`.
 */
export function read(value, spec) {
  const array = typed(spec.dtype, sizeOf(spec.shape));
  const { kind, low, high } = DTYPES[spec.dtype];
  const missing = spec.missing === "nan";
  let at = 0;
  /** @param {any} item @param {number} axis */
  const fill = (item, axis) => {
    if (item === null && missing) {
      const count = sizeOf(spec.shape.slice(axis));
      array.fill(spec.dtype === "float16" ? 0x7e00 : NaN, at, at + count);
      at += count;
    } else if (axis < spec.shape.length) {
      const isList = Array.isArray(item) || (ArrayBuffer.isView(item) && axis === spec.shape.length - 1);
      if (!isList || /** @type {any} */ (item).length !== spec.shape[axis]) throw misfit(item, axis);
      for (let i = 0; i < spec.shape[axis]; i++) fill(/** @type {any} */ (item)[i], axis + 1);
    } else {
      array[at++] = number(item);
    }
  };
  /** @param {any} item */
  const number = (item) => {
    if (kind === "b" ? typeof item !== "boolean" : typeof item !== "number" && typeof item !== "bigint") throw misfit(item);
    if (kind === "b") return Number(item);
    if (missing && Number.isNaN(item)) return spec.dtype === "float16" ? 0x7e00 : NaN;
    if (!Number.isFinite(Number(item))) throw nonFinite();
    if (kind === "i") {
      if (typeof item === "number" && !Number.isInteger(item)) throw misfit(item);
      const exact = BigInt(item);
      if (exact < /** @type {bigint} */ (low) || exact > /** @type {bigint} */ (high)) throw misfit(item);
      return DTYPES[spec.dtype].bytes === 8 ? exact : Number(exact);
    }
    const bits = spec.dtype === "float16" ? halfBits(Number(item)) : Number(item);
    const kept = spec.dtype === "float16" ? half(bits) : spec.dtype === "float32" ? Math.fround(bits) : bits;
    if (!Number.isFinite(kept)) throw nonFinite();
    return bits;
  };
  const nonFinite = () =>
    new StepwellError("non_finite", `Input '${spec.name}' has a number that is not finite; expected finite numbers only.`);
  /** @param {any} item @param {number} [axis] */
  const misfit = (item, axis) => {
    const found = axis === undefined ? String(item) : Array.isArray(item) ? `a list of ${item.length}` : typeof item;
    const expected = `${spec.dtype} of shape [${spec.shape.join(", ")}]`;
    return new StepwellError("bad_input", `Input '${spec.name}' has ${found} in it; expected ${expected}.`);
  };
  fill(value, 0);
  return array;
}

/** Return a typed array as nested arrays. @param {any} array @param {string} dtype @param {readonly number[]} shape */
export function nested(array, dtype, shape) {
  let at = 0;
  const one = () => {
    const value = array[at++];
    if (dtype === "bool") return value !== 0;
    if (dtype === "float16" && array instanceof Uint16Array) return half(value);
    return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
  };
  /** @param {number} axis @returns {any} */
  const rows = (axis) => (axis === shape.length ? one() : Array.from({ length: shape[axis] }, () => rows(axis + 1)));
  return rows(0);
}

/** Return the bits of a number as a 16-bit float, rounded to the nearest, half to even. @param {number} number */
function halfBits(number) {
  const sign = Object.is(number, -0) || number < 0 ? 0x8000 : 0;
  const size = Math.abs(number);
  if (Number.isNaN(number)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 2 ** -25)));
  const scaled = size / 2 ** (exponent - 10); // 1024 to 2047; below, of a subnormal number
  const whole = Math.floor(scaled);
  const rest = scaled - whole;
  const rounded = whole + (rest > 0.5 || (rest === 0.5 && whole % 2 === 1) ? 1 : 0);
  return sign | (exponent === -14 && rounded < 1024 ? rounded : ((exponent + 14) << 10) + rounded);
}
