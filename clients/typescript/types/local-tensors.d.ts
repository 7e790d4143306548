import type { TensorSpec } from "./manifest.js";
export type Dtype = {
    make: any;
    bytes: number;
    kind: "f" | "i" | "b";
    low?: bigint;
    high?: bigint;
};
/** @param {readonly number[]} shape */
export declare const sizeOf: (shape: readonly number[]) => number;
/** Return the bytes of a row. @param {string} dtype @param {readonly number[]} shape */
export declare const bytesOf: (dtype: string, shape: readonly number[]) => number;
/** Return a typed array of zeros, or on some bytes. @param {string} dtype @param {number | Uint8Array} given */
export declare function typed(dtype: string, given: number | Uint8Array): any;
/** Return the bytes of a typed array. @param {ArrayBufferView} array */
export declare const raw: (array: ArrayBufferView) => Uint8Array<ArrayBufferLike>;
/**
 * Return floats in another type of floats. @param {any} array @param {string} from @param {string} to
 */
export declare function cast(array: any, from: string, to: string): any;
/** @param {any} array @param {string} dtype */
export declare function areFinite(array: any, dtype: string): any;
/**
 * Return the numbers of an input as a typed array.
 * @param {any} value Nested arrays, typed arrays or numbers; null is a missing value.
 * @param {TensorSpec} spec
 * @throws {StepwellError} `bad_input` or `non_finite`.
 */
export declare function read(value: any, spec: TensorSpec): any;
/** Return a typed array as nested arrays. @param {any} array @param {string} dtype @param {readonly number[]} shape */
export declare function nested(array: any, dtype: string, shape: readonly number[]): any;
