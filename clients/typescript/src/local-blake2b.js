/** BLAKE2b (RFC 7693) without a key, with 64-bit words as pairs of 32-bit ones, the low one first. */

const IV = new Uint32Array([
  0xf3bcc908, 0x6a09e667, 0x84caa73b, 0xbb67ae85, 0xfe94f82b, 0x3c6ef372, 0x5f1d36f1, 0xa54ff53a, 0xade682d1,
  0x510e527f, 0x2b3e6c1f, 0x9b05688c, 0xfb41bd6b, 0x1f83d9ab, 0x137e2179, 0x5be0cd19,
]);
const SIGMA = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => Array.from(row, (digit) => 2 * parseInt(digit, 16)));
const BLOCK = 128;

/**
 * Return the hash of bytes.
 * @param {Uint8Array} bytes
 * @param {number} size Bytes of the hash, at most 64.
 */
export function blake2b(bytes, size) {
  const h = new Uint32Array(IV);
  h[0] ^= 0x01010000 ^ size;
  const v = new Uint32Array(32);
  const m = new Uint32Array(32);
  const block = new Uint8Array(BLOCK);
  const words = new DataView(block.buffer);
  for (let start = 0; start === 0 || start < bytes.length; start += BLOCK) {
    const end = Math.min(start + BLOCK, bytes.length);
    block.fill(0);
    block.set(bytes.subarray(start, end));
    for (let i = 0; i < 32; i++) m[i] = words.getUint32(4 * i, true);
    v.set(h);
    v.set(IV, 16);
    v[24] ^= end;
    v[25] ^= end / 2 ** 32;
    if (end === bytes.length) {
      v[28] = ~v[28];
      v[29] = ~v[29];
    }
    for (let round = 0; round < 12; round++) {
      const s = SIGMA[round % 10];
      for (let i = 0; i < 4; i++) mix(v, 2 * i, 8 + 2 * i, 16 + 2 * i, 24 + 2 * i, m, s[2 * i], s[2 * i + 1]);
      for (let i = 0; i < 4; i++) {
        const [b, c, d] = [8 + ((2 * i + 2) % 8), 16 + ((2 * i + 4) % 8), 24 + ((2 * i + 6) % 8)];
        mix(v, 2 * i, b, c, d, m, s[8 + 2 * i], s[9 + 2 * i]);
      }
    }
    for (let i = 0; i < 16; i++) h[i] ^= v[i] ^ v[i + 16];
  }
  const hash = new DataView(new ArrayBuffer(64));
  h.forEach((word, i) => hash.setUint32(4 * i, word, true));
  return new Uint8Array(hash.buffer, 0, size);
}

/**
 * Mix two words of the message into four of the state.
 * @param {Uint32Array} v @param {number} a @param {number} b @param {number} c @param {number} d
 * @param {Uint32Array} m @param {number} x @param {number} y
 */
function mix(v, a, b, c, d, m, x, y) {
  add(v, a, v[b], v[b + 1]);
  add(v, a, m[x], m[x + 1]);
  let low = v[d] ^ v[a];
  let high = v[d + 1] ^ v[a + 1];
  v[d] = high; // rotated by 32
  v[d + 1] = low;
  add(v, c, v[d], v[d + 1]);
  low = v[b] ^ v[c];
  high = v[b + 1] ^ v[c + 1];
  v[b] = (low >>> 24) | (high << 8);
  v[b + 1] = (high >>> 24) | (low << 8);
  add(v, a, v[b], v[b + 1]);
  add(v, a, m[y], m[y + 1]);
  low = v[d] ^ v[a];
  high = v[d + 1] ^ v[a + 1];
  v[d] = (low >>> 16) | (high << 16);
  v[d + 1] = (high >>> 16) | (low << 16);
  add(v, c, v[d], v[d + 1]);
  low = v[b] ^ v[c];
  high = v[b + 1] ^ v[c + 1];
  v[b] = (high >>> 31) | (low << 1);
  v[b + 1] = (low >>> 31) | (high << 1);
}

/** @param {Uint32Array} v @param {number} a @param {number} low @param {number} high */
function add(v, a, low, high) {
  const sum = v[a] + low;
  v[a + 1] += high + (sum >= 2 ** 32 ? 1 : 0);
  v[a] = sum;
}
