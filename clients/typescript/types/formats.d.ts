/**
 * The two formats of bodies and messages. Tensors are nested arrays in both; integers that a double cannot hold
 * exactly are `bigint`.
 */
/** @import { Format, Msgpack } from "./options.js" */
import type { Format, Msgpack } from "./options.js";
/** @type {Format} */
export declare const JSON_FORMAT: Format;
/**
 * Return the msgpack format on a library.
 * @param {Msgpack} library
 * @returns {Format}
 */
export declare function msgpackFormat(library: Msgpack): Format;
/**
 * Return a value as JSON. Numbers that are not finite are written so that the service rejects them as `non_finite`;
 * `JSON.stringify` would write `null`, which is a missing value.
 * @param {any} value
 * @returns {string}
 */
export declare function stringify(value: any): string;
/** The texts and numbers of a JSON text. */
export declare const NUMBERS_AND_TEXTS: RegExp;
/**
 * Return the value of a JSON text; integers beyond 2^53 become `bigint` instead of being rounded.
 * @param {string} text
 */
export declare function parse(text: string): any;
/**
 * Return a copy of a document, with plain arrays in the place of typed ones. It is made when a call is made, so that
 * the caller may reuse a buffer while the call waits or is repeated.
 * @param {any} value
 * @returns {any}
 */
export declare function plain(value: any): any;
/** Return the number of a 16-bit float. @param {number} bits */
export declare function half(bits: number): number;
