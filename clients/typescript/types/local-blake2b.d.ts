/** BLAKE2b (RFC 7693) without a key, with 64-bit words as pairs of 32-bit ones, the low one first. */
/**
 * Return the hash of bytes.
 * @param {Uint8Array} bytes
 * @param {number} size Bytes of the hash, at most 64.
 */
export declare function blake2b(bytes: Uint8Array, size: number): Uint8Array<ArrayBuffer>;
