import type { Field, Manifest } from "./manifest.js";
/** Return the manifest's text in an ONNX file, if it has one. @param {Uint8Array} file */
export declare function manifestIn(file: Uint8Array): string | undefined;
/**
 * Return the states in the order of the packed state: those of the graph, then the past parts of windows.
 * @param {Manifest} manifest
 * @returns {Field[]}
 */
export declare function stateFields(manifest: Manifest): Field[];
/**
 * Return the 8 bytes that identify graph, weights and state schema, as the service computes them.
 * @param {Uint8Array} file
 * @param {string} text The manifest's.
 * @param {Field[]} states
 */
export declare function fingerprintOf(file: Uint8Array, text: string, states: Field[]): Uint8Array<ArrayBuffer>;
