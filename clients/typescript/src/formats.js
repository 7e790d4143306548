/**
 * The two formats of bodies and messages. Tensors are nested arrays in both; integers that a double cannot hold
 * exactly are `bigint`.
 */
/** @import { Format, Msgpack } from "./options.js" */

/** @type {Format} */
export const JSON_FORMAT = {
  type: "application/json",
  protocol: "stepwell.json",
  encode: stringify,
  decode: (body) => parse(typeof body === "string" ? body : new TextDecoder().decode(body)),
};

/**
 * Return the msgpack format on a library.
 * @param {Msgpack} library
 * @returns {Format}
 */
export function msgpackFormat(library) {
  return {
    type: "application/msgpack",
    protocol: "stepwell.msgpack",
    encode: (document) => new Uint8Array(library.encode(plain(document))),
    decode: (body) => unpacked(library.decode(/** @type {Uint8Array} */ (body))),
  };
}

/**
 * Return a value as JSON. Numbers that are not finite are written so that the service rejects them as `non_finite`;
 * `JSON.stringify` would write `null`, which is a missing value.
 * @param {any} value
 * @returns {string}
 */
export function stringify(value) {
  if (typeof value === "bigint") return String(value);
  if (Number.isNaN(value)) return "NaN";
  if (value === Infinity || value === -Infinity) return value > 0 ? "1e999" : "-1e999";
  if (Array.isArray(value)) return `[${value.map(stringify).join()}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${stringify(member)}`).join()}}`;
}

/** The texts and numbers of a JSON text. */
export const NUMBERS_AND_TEXTS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const MARK = "\u0000";

/**
 * Return the value of a JSON text; integers beyond 2^53 become `bigint` instead of being rounded.
 * @param {string} text
 */
export function parse(text) {
  if (!/(^|[^.\d])\d{16}/.test(text)) return JSON.parse(text);
  const marked = text.replace(NUMBERS_AND_TEXTS, (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"\\u0000${token}"` : token,
  );
  return JSON.parse(marked, (_, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(1)) : value,
  );
}

/**
 * Return a copy of a document, with plain arrays in the place of typed ones. It is made when a call is made, so that
 * the caller may reuse a buffer while the call waits or is repeated.
 * @param {any} value
 * @returns {any}
 */
export function plain(value) {
  if (ArrayBuffer.isView(value)) return Array.from(/** @type {any} */ (value));
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  return Object.fromEntries(members.map(([name, member]) => [name, plain(member)]));
}

/** @type {Record<string, (view: DataView, index: number) => number | bigint | boolean>} */
const READERS = {
  bool: (view, i) => view.getUint8(i) !== 0,
  int8: (view, i) => view.getInt8(i),
  uint8: (view, i) => view.getUint8(i),
  int16: (view, i) => view.getInt16(2 * i, true),
  uint16: (view, i) => view.getUint16(2 * i, true),
  int32: (view, i) => view.getInt32(4 * i, true),
  uint32: (view, i) => view.getUint32(4 * i, true),
  int64: (view, i) => exact(view.getBigInt64(8 * i, true)),
  uint64: (view, i) => exact(view.getBigUint64(8 * i, true)),
  float16: (view, i) => half(view.getUint16(2 * i, true)),
  float32: (view, i) => view.getFloat32(4 * i, true),
  float64: (view, i) => view.getFloat64(8 * i, true),
};

/** @param {bigint} value */
function exact(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

/** Return the number of a 16-bit float. @param {number} bits */
export function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

/**
 * Return a decoded msgpack document with nested arrays in the place of packed tensors `{d, s, b}`.
 * @param {any} value
 * @returns {any}
 */
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  if (value.b instanceof Uint8Array) return nested(value);
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, unpacked(member)]));
}

/** @param {{ d: string, s: number[], b: Uint8Array }} tensor */
function nested({ d, s, b }) {
  const view = new DataView(b.buffer, b.byteOffset, b.byteLength);
  const read = READERS[d];
  if (!read) throw new TypeError(`a tensor of dtype ${d}`);
  let index = 0;
  /** @param {number} axis @returns {any} */
  const rows = (axis) =>
    axis === s.length ? read(view, index++) : Array.from({ length: s[axis] }, () => rows(axis + 1));
  return rows(0);
}
